"""The KKT matrix without a matrix: its action assembled from the second derivative of the Lagrangian."""

from petsc4py import PETSc

import dolfinx
import numpy as np
import ufl

from pdeopt.control.kkt import KKTSystem
from pdeopt.fem import forms


class MatrixFreeKKT:
    """Applies the KKT matrix at the present unknowns: one linear form per unknown and action, no block in memory.

    It equals `KKTSystem.matrix` of the assembled blocks, bounds aside, and shares no assembled entry with it.

    Parameters
    ----------
    system
        The KKT system.
    """

    def __init__(self, system: KKTSystem) -> None:
        self._system = system
        lagrangian = system.lagrangian
        self._directions = [dolfinx.fem.Function(unknown.function_space) for unknown in lagrangian.unknowns]
        self._forms: list[dolfinx.fem.Form | None] = []
        for unknown in lagrangian.unknowns:
            gradient = ufl.derivative(lagrangian.functional, unknown, ufl.TestFunction(unknown.function_space))
            action = ufl.Form([])
            for other, direction in zip(lagrangian.unknowns, self._directions, strict=True):
                action += ufl.derivative(gradient, other, direction)
            empty = forms.is_zero(action)
            self._forms.append(None if empty else forms.compile_form(action, lagrangian.entity_maps))

    def create_matrix(self) -> PETSc.Mat:
        """Return the PETSc matrix of type python. Collective: yes.

        It holds this object; the other way round too, nothing but `destroy` would ever free the two.
        """
        layout = self._system.layout
        sizes = (layout.offsets[-1], layout.global_size)
        matrix = PETSc.Mat().createPython((sizes, sizes), context=self, comm=self._system.comm)
        matrix.setOption(PETSc.Mat.Option.SYMMETRIC, True)
        matrix.setUp()
        return matrix

    def mult(self, matrix: PETSc.Mat, vector: PETSc.Vec, out: PETSc.Vec) -> None:
        """Apply the KKT matrix. Collective: yes."""
        system, last = self._system, self._system.adjoint_field
        fixed = system.dirichlet_dofs
        for field, direction in enumerate(self._directions):
            values = np.array(system.layout.read(vector, field))
            if field in (0, last):
                values[fixed] = 0.0
                forms.set_function(direction, values)
            else:
                values[system.idle[field - 1]] = 0.0
                system.controls[field - 1].expand(values, direction)
        for field, form in enumerate(self._forms):
            covector = None if form is None else forms.assemble_vector(form)
            if field in (0, last):
                size = system.layout.sizes[field]
                values = np.zeros(size) if covector is None else np.array(covector.array_r[:size])
                # The rows of the state's Dirichlet degrees of freedom are those of the identity in A and A'.
                values[fixed] = system.layout.read(vector, last - field)[fixed]
            else:
                control, idle = system.controls[field - 1], system.idle[field - 1]
                values = np.zeros(control.size) if covector is None else control.restrict(covector)
                values[idle] = system.layout.read(vector, field)[idle]
            system.layout.write(out, field, values)
            if covector is not None:
                covector.destroy()

    multTranspose = mult
