"""Problems that are gone leave no MPI communicators behind."""

import gc
import inspect

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import pytest

from pdeopt import problems


def free_communicators():
    """Return how many communicators can still be made."""
    made = []
    try:
        while True:
            made.append(MPI.COMM_WORLD.Dup())
    except MPI.Exception:  # none is left
        count = len(made)
    for communicator in made:
        communicator.Free()
    return count


def solve(name):
    case = getattr(problems, name)(dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, 4, 4))
    case.problem.kkt_matrix("matrix_free")
    case.problem.solve()
    case.problem.destroy()


@pytest.mark.parallel([1, 2])
def test_problems_leave_no_communicators(monkeypatch):
    # Without conftest.py's hold on communicators, which would keep them, and free what the problems should have freed.
    for kind in (dolfinx.mesh.Mesh, dolfinx.fem.FunctionSpace):
        monkeypatch.setattr(kind, "__init__", inspect.unwrap(kind.__init__))
    for name in ("PoissonControl", "SemilinearControl"):
        counts = []
        for _ in range(3):
            solve(name)
            gc.collect()
            PETSc.garbage_cleanup(PETSc.COMM_WORLD)
            counts.append(free_communicators())
        assert counts[0] == counts[1] == counts[2], name
