"""V-cycles for all time steps together: contraction whatever the steps, adjoints, and the optimum of the sweeps."""

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import pytest
import ufl
from dolfinx.fem import petsc as fem_petsc

from pdeopt.control.waveform import StackedMatrix, WaveformMultigrid, suits
from pdeopt.fem.time import BDF2, Theta
from pdeopt.problems import HeatControl
from pdeopt.report import OptionError

comm = MPI.COMM_WORLD
SCHEMES = (Theta(1.0), Theta(0.5), BDF2())


def heat_matrices(cells):
    """Return mass and stiffness matrix on the unit square, the boundary left free, and their space."""
    space = dolfinx.fem.functionspace(dolfinx.mesh.create_unit_square(comm, cells, cells), ("Lagrange", 1))
    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
    matrices = []
    for form in (u * v * ufl.dx, ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx):
        matrix = fem_petsc.assemble_matrix(dolfinx.fem.form(form))
        matrix.assemble()
        matrices.append(matrix)
    return *matrices, space


def combine(mass, stiffness, factors):
    matrix = mass.copy()
    matrix.scale(factors[0])
    matrix.axpy(factors[1], stiffness)
    return matrix


def waveform(mass, stiffness, scheme, steps):
    """Return V-cycles for the steps of the heat equation on (0, 1), and the operator."""
    size = 1.0 / steps
    numbers = scheme.coefficients(min(3, steps))
    diagonal = combine(mass, stiffness, (numbers.mass[0], size * numbers.stiffness[0]))
    couplings = [combine(mass, stiffness, (numbers.mass[1], size * numbers.stiffness[1]))]
    if numbers.mass[2] != 0.0:
        couplings.append(combine(mass, stiffness, (numbers.mass[2], 0.0)))
    pc = PETSc.PC().create(comm)
    pc.setOptionsPrefix("waveform_test_")
    PETSc.Options()["waveform_test_pc_gamg_threshold"] = 0.02
    pc.setType("gamg")
    pc.setOperators(diagonal)
    pc.setFromOptions()
    pc.setUp()
    assert suits(pc)
    products = [StackedMatrix(matrix.copy(), steps) for matrix in (diagonal, *couplings)]

    def apply(values):
        out = products[0](values).copy()
        for back, product in enumerate(products[1:], start=1):
            out[back:] += product(values)[:-back]
        return out

    return WaveformMultigrid(pc, couplings, steps), apply


def norm(values):
    return np.sqrt(comm.allreduce(float(np.sum(values**2))))


@pytest.mark.parallel([1, 2])
def test_the_contraction_depends_on_neither_mesh_nor_steps():
    for scheme in SCHEMES:
        for cells, steps in ((16, 4), (16, 64), (48, 16)):
            mass, stiffness, _space = heat_matrices(cells)
            cycles, apply = waveform(mass, stiffness, scheme, steps)
            stream = np.random.default_rng(comm.rank)
            values = stream.standard_normal((steps, mass.getLocalSize()[0]))
            right = apply(values)
            sizes = [norm(right)]
            iterate = np.zeros_like(values)
            for _ in range(6):
                iterate += cycles.solve(right - apply(iterate))
                sizes.append(norm(right - apply(iterate)))
            assert (sizes[-1] / sizes[1]) ** 0.2 < 0.45, (scheme.name, cells, steps, sizes)
            assert norm(iterate - values) <= 1e-2 * norm(values)
            cycles.release()


@pytest.mark.parallel([1, 2])
def test_time_reversed_is_transposed():
    mass, stiffness, _space = heat_matrices(12)
    for scheme in SCHEMES:
        cycles, _ = waveform(mass, stiffness, scheme, 9)
        stream = np.random.default_rng(7 + comm.rank)
        one, other = stream.standard_normal((2, 9, mass.getLocalSize()[0]))
        forward = comm.allreduce(float(np.sum(other * cycles.solve(one))))
        backward = comm.allreduce(float(np.sum(one * cycles.solve(other[::-1])[::-1])))
        assert forward == pytest.approx(backward, rel=1e-11)
        cycles.release()


@pytest.mark.parallel([1, 3])
def test_stacked_products_are_the_single_ones_where_ranks_own_nothing_too():
    stream = np.random.default_rng(comm.rank)
    for columns in (5, 0 if comm.rank == comm.size - 1 else 4):
        matrix = PETSc.Mat().createAIJ(((6, None), (columns, None)), comm=comm)
        matrix.setPreallocationNNZ(8)
        matrix.setOption(PETSc.Mat.Option.NEW_NONZERO_ALLOCATION_ERR, False)
        total = matrix.getSize()[1]
        for row in range(*matrix.getOwnershipRange()):
            for column in {row % max(total, 1), (3 * row + 1) % max(total, 1)} if total else ():
                matrix.setValue(row, column, stream.standard_normal())
        matrix.assemble()
        product = StackedMatrix(matrix, 7)
        values = stream.standard_normal((7, columns))
        for _ in range(2):  # the second time work space is reused
            found = product(values)
            right, left = matrix.createVecs()
            for given, result in zip(values, found, strict=True):
                right.array[:] = given
                matrix.mult(right, left)
                assert np.allclose(result, left.array_r, rtol=1e-13, atol=1e-13)
        product.release()


@pytest.mark.parallel([1, 2])
def test_both_sweeps_lead_to_one_optimum():
    mesh = dolfinx.mesh.create_rectangle(comm, [[-1, -1], [1, 1]], [6, 6])
    for scheme in (Theta(0.5), BDF2()):
        found = {}
        case = HeatControl(mesh, 4, scheme=scheme)
        start = case.problem.functional.create_vector()
        for sweep in ("waveform", "sequential"):
            PETSc.Options()["kkt_sweep"] = sweep
            case.problem.functional.set_control(start)
            report = case.problem.solve(method="all_at_once", rtol=1e-9)
            assert ("waveform" in report.method) == (sweep == "waveform")
            found[sweep] = (report.linear_iterations, report.quantities["objective"])
        case.problem.destroy()
        del PETSc.Options()["kkt_sweep"]
        assert found["waveform"][1] == pytest.approx(found["sequential"][1], rel=1e-12)
        assert found["waveform"][0] <= found["sequential"][0] + 6


def test_options_that_do_not_fit_are_named():
    mesh = dolfinx.mesh.create_rectangle(comm, [[-1, -1], [1, 1]], [4, 4])
    case = HeatControl(mesh, 3)
    options = PETSc.Options()
    options["kkt_sweep"] = "parallel"
    with pytest.raises(OptionError, match=r"'parallel'.*sequential, waveform"):
        case.problem.solve(method="all_at_once")
    options["kkt_sweep"] = "waveform"
    options["kkt_shifted_pc_type"] = "jacobi"
    with pytest.raises(OptionError, match="kkt_shifted_pc_type"):
        case.problem.solve(method="all_at_once")
    del options["kkt_sweep"]
    del options["kkt_shifted_pc_type"]
    case.problem.destroy()
