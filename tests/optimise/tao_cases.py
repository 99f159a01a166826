"""A program set in a TAO by callbacks, distributed over the ranks."""

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np

SIZE = 12


def layout(comm):
    """Return this rank's slice of the unknowns."""
    probe = PETSc.Vec().createMPI(SIZE, comm=comm)
    first, last = probe.getOwnershipRange()
    probe.destroy()
    return np.arange(first, last)


def root_cause(error):
    """Return what was raised first."""
    while isinstance(error, PETSc.Error) and error.__cause__ is not None:
        error = error.__cause__
    return error


class QuarticOnSphere:
    """Minimise sum of (x_i - t_i)^2 / 2 + x_i^4 / 4 subject to |x|^2 = 1, or without the constraint.

    Every callback raises, if asked, in a later call and on the last rank only, after what it does together with others.
    """

    def __init__(self, comm=MPI.COMM_WORLD, constrained=True, fails=None, both=True):
        self.comm, self.fails, self.calls = comm, fails, 0
        self.rows = layout(comm)
        self.target = np.cos(self.rows)
        self.tao = tao = PETSc.TAO().create(comm)
        tao.setType("python")
        tao.setOptionsPrefix("test_")
        self.solution = PETSc.Vec().createMPI(SIZE, comm=comm)
        self.solution.array[:] = 0.1 + 0.2 * self.target
        self.gradient_vector = self.solution.duplicate()
        tao.setSolution(self.solution)
        if both:
            tao.setObjectiveGradient(self.objective_gradient, self.gradient_vector)
        else:
            tao.setObjective(self.objective)
            tao.setGradient(self.gradient, self.gradient_vector)
        self.matrix = PETSc.Mat().createAIJ(SIZE, nnz=1, comm=comm)
        self.matrix.setUp()
        tao.setHessian(self.hessian, self.matrix)
        self.constrained = constrained
        if constrained:
            self.values = PETSc.Vec().createMPI(1, comm=comm)
            self.row = PETSc.Mat().createAIJ((self.values.sizes, self.solution.sizes), nnz=(SIZE, SIZE), comm=comm)
            self.row.setUp()
            tao.setEqualityConstraints(self.constraint, self.values)
            tao.setJacobianEquality(self.jacobian, self.row)

    def check(self, name):
        self.calls += name == self.fails
        if name == self.fails and self.calls == 3 and self.comm.rank == self.comm.size - 1:
            raise ValueError(f"mistake in the {name}")

    def objective(self, tao, x):
        values = x.array_r
        value = self.comm.allreduce(float(np.sum(0.5 * (values - self.target) ** 2 + 0.25 * values**4)))
        self.check("objective")
        return value

    def gradient(self, tao, x, out):
        self.check("gradient")
        out.array[:] = x.array_r - self.target + x.array_r**3

    def objective_gradient(self, tao, x, out):
        value = self.objective(tao, x)
        self.gradient(tao, x, out)
        return value

    def hessian(self, tao, x, matrix, preconditioner):
        diagonal = 1 + 3 * x.array_r**2
        if self.constrained:
            multipliers = tao.getPythonContext().multipliers
            own = float(multipliers.array_r[0]) if multipliers.local_size else 0.0
            diagonal += 2 * self.comm.allreduce(own)
        vector = x.duplicate()
        vector.array[:] = diagonal
        matrix.setDiagonal(vector)
        matrix.assemble()
        vector.destroy()
        self.check("Hessian")

    def constraint(self, tao, x, out):
        square = x.dot(x)
        out.array[:] = square - 1.0
        self.check("constraint")

    def jacobian(self, tao, x, matrix, preconditioner):
        whole = 2 * np.concatenate(self.comm.allgather(np.array(x.array_r)))
        if matrix.getOwnershipRange() == (0, 1):
            matrix.setValues([0], np.arange(SIZE, dtype=PETSc.IntType), whole)
        matrix.assemble()
        self.check("Jacobian")

    def solve(self, type_name="pdeopt.AdaSketchNewton", **options):
        """Set options under the TAO's prefix, solve, remove them; return the method's object."""
        database = PETSc.Options()
        options = {f"test_tao_{name}": value for name, value in {"python_type": type_name, **options}.items()}
        for name, value in options.items():
            database[name] = value
        try:
            self.tao.setFromOptions()
            self.tao.solve()
        except PETSc.Error as error:  # petsc4py hands on what was raised as the cause
            raise root_cause(error) from None
        finally:
            for name in options:
                database.delValue(name)
        return self.tao.getPythonContext()

    def kkt(self, multiplier):
        """Return the largest entry of the optimality conditions."""
        x = self.solution.array_r
        gradient = np.abs(x - self.target + x**3 + 2 * multiplier * x).max(initial=0.0)
        square = self.solution.dot(self.solution)
        return max(self.comm.allreduce(float(gradient), op=MPI.MAX), abs(square - 1.0) if self.constrained else 0.0)

    def destroy(self):
        self.tao.destroy()
        for item in (self.solution, self.gradient_vector, self.matrix):
            item.destroy()
        if self.constrained:
            self.values.destroy()
            self.row.destroy()
