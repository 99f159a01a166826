"""What the tests of `pdeopt tune` share: parts of scripts, and systems as if a script had solved them."""

import os

from petsc4py import PETSc

from pdeopt._launchers import clean_environment
from pdeopt.relaxation import tune_replay
from pdeopt.relaxation.features import FeatureReader
from pdeopt.relaxation.reuse import ValueWatch

# Finite-difference matrices by their entries, fast to make and known to be what they are.
HEAD = """
import sys
import time
import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

def from_coo(n, rows, columns, values, comm=None):
    A = PETSc.Mat().createAIJ((n, n), comm=comm)
    A.setPreallocationCOO(rows.astype(PETSc.IntType), columns.astype(PETSc.IntType))
    A.setValuesCOO(values)
    return A

def five_point(m, convection=0.0, shift=0.0):
    \"\"\"Return rows, columns, values of the five-point Laplacian on m x m points, unsymmetric with convection.\"\"\"
    i = np.arange(m * m).reshape(m, m)
    parts = [(i.ravel(), i.ravel(), np.full(m * m, 4.0 + shift))]
    for a, b in ((i[1:], i[:-1]), (i[:, 1:], i[:, :-1])):
        parts.append((a.ravel(), b.ravel(), np.full(a.size, -1.0 - convection)))
        parts.append((b.ravel(), a.ravel(), np.full(a.size, -1.0 + convection)))
    return [np.concatenate(arrays) for arrays in zip(*parts)]

def solver(prefix, A, **options):
    ksp = PETSc.KSP().create(A.comm)
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(A)
    database = PETSc.Options(prefix)
    for name, value in options.items():
        database[name] = value
    ksp.setFromOptions()
    return ksp

def load(A):
    b, x = A.createVecs()
    b.array[:] = np.sin(np.arange(b.local_size) ** 1.5)
    return b, x

def solve_for_a_while(ksp, b, x):
    end = time.perf_counter() + 0.1
    while time.perf_counter() < end:
        ksp.solve(b, x)

def done(name, ksp, x):
    print(name, f"{x.norm():.9e}", flush=True)
    pc = ksp.getPC()
    print(name, ksp.getType(), pc.getType(), pc.getFactorSolverType(), file=sys.stderr, flush=True)
"""


def environment():
    return {**clean_environment(os.environ), "OMP_NUM_THREADS": "1"}


def parts(report):
    """Return the part of a report on each solver, by its name."""
    return {part.split("(", 1)[1].split(")")[0]: part for part in report.split("\nsolver ")[1:]}


def system_of(A, values, prefix="unit_"):
    """Return the system with the given solution, as if the script had solved it."""
    x, b = A.createVecs()
    x.array[:] = values
    A.mult(x, b)
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(A)
    ksp.setFromOptions()
    watch = ValueWatch()
    watch.compare(A)
    return tune_replay.System(ksp, A, b, x, None, 1.0, FeatureReader().read(A, watch.vector, watch.image))


def dense(entries):
    A = PETSc.Mat().createDense(entries.shape, array=entries, comm=PETSc.COMM_SELF)
    return A.convert("aij")
