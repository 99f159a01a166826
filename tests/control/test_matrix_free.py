"""The KKT matrix as a nest of blocks, as one matrix, and without a matrix."""

from mpi4py import MPI

import numpy as np
import pytest
from test_structures import KINDS, build

from pdeopt.parallel import random_stream
from pdeopt.report import OptionError


@pytest.mark.parallel([1, 2, 3])
def test_three_forms_of_the_kkt_matrix_are_one_operator():
    """Nest, monolithic and matrix-free agree on random vectors at a random point, and each is symmetric."""
    for kind in KINDS if MPI.COMM_WORLD.size < 3 else KINDS[2:5]:  # three ranks on two cores are slow
        problem, _, _ = build(kind)
        system = problem.system
        stream = random_stream(f"kkt {kind}", 0, MPI.COMM_WORLD)
        unknowns, first, second = (system.layout.create_vector() for _ in range(3))
        for vector in (unknowns, first, second):
            vector.array[:] = stream.uniform(-1.0, 1.0, vector.getLocalSize())
        system.set_unknowns(unknowns)
        products = []
        for form in ("nest", "monolithic", "matrix_free"):
            matrix = problem.kkt_matrix(form)
            product, other = first.duplicate(), first.duplicate()
            matrix.mult(first, product)
            matrix.mult(second, other)
            scale = product.norm() * second.norm()
            assert abs(product.dot(second) - other.dot(first)) <= 1e-14 * scale, kind
            products.append(product)
        for product in products[1:]:
            product.axpy(-1.0, products[0])
            assert product.norm() <= 1e-13 * products[0].norm(), kind


def test_matrix_free_action_is_the_derivative_of_the_residual():
    """Central differences of the residual converge to the action with order 2."""
    problem, _, _ = build("nonlinear")
    system = problem.system
    stream = random_stream("differences", 0, MPI.COMM_WORLD)
    point, direction, action = (system.layout.create_vector() for _ in range(3))
    point.array[:] = stream.uniform(-1.0, 1.0, point.getLocalSize())
    direction.array[:] = stream.uniform(-1.0, 1.0, point.getLocalSize())
    system.set_unknowns(point)
    problem.kkt_matrix("matrix_free").mult(direction, action)
    errors = []
    for step in (1e-1, 5e-2, 2.5e-2):
        sides = []
        for sign in (1.0, -1.0):
            moved, residual = point.duplicate(), point.duplicate()
            moved.waxpy(sign * step, direction, point)
            system.set_unknowns(moved)
            system.residual(residual)
            sides.append(residual)
        sides[0].axpy(-1.0, sides[1])
        sides[0].scale(0.5 / step)
        sides[0].axpy(-1.0, action)
        errors.append(sides[0].norm())
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert orders == pytest.approx([2.0, 2.0], abs=0.02)


def test_unknown_form_is_named():
    problem, _, _ = build("boundary")
    with pytest.raises(OptionError, match="'dense' is unknown"):
        problem.kkt_matrix("dense")
