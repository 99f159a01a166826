"""Cell matrices of an H(div) space: what hybridisation eliminates, for all cells at once."""

import basix.ufl
import dolfinx
import numpy as np
import ufl
from basix import ElementFamily
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.report import InputError

type Coefficient = float | Expr

_FAMILIES = (ElementFamily.RT, ElementFamily.BDM)


def divergence_element(space: fem.FunctionSpace) -> basix.ufl._ElementBase:
    """Return the discontinuous element that holds exactly the divergences of an H(div) space. Collective: no."""
    element = space.ufl_element()
    family = getattr(element, "element_family", None)
    if family not in _FAMILIES or getattr(element, "discontinuous", False):
        raise InputError(
            f"the space is on the element {element}, but flux projection needs a conforming H(div) element: "
            'take "RT" or "BDM"'
        )
    cell = element.cell_type
    if cell.name in ("triangle", "tetrahedron"):
        name = "DG"
    elif family == ElementFamily.RT:
        name = "DQ"
    else:
        name = "DPC"
    return basix.ufl.element(name, cell.name, element.degree - 1)


def blocks(matrix: dolfinx.la.MatrixCSR, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the dense blocks of a matrix between discontinuous spaces, shape (cells, rows, columns).

    Parameters
    ----------
    matrix
        With nothing but cell blocks.
    rows, columns
        Degrees of freedom of the owned cells in both spaces.

    Collective: no.
    """
    width = columns.shape[1]
    starts = matrix.indptr[rows]
    if np.any(matrix.indptr[rows + 1] - starts != width):
        raise InputError("the form couples cells: only integrals over cells are allowed")
    # Within a row the columns are sorted by their index.
    position = np.argsort(np.argsort(columns, axis=1), axis=1)
    return matrix.data[starts[:, :, None] + position[:, None, :]]


def _weighted(weight: Coefficient | None, flux: Expr) -> Expr:
    if weight is None:
        return flux
    return ufl.dot(weight, flux) if isinstance(weight, Expr) and weight.ufl_shape else weight * flux


class CellMatrices:
    """Mass and divergence matrices of the owned cells, and the inverses of their saddle-point matrices.

    Parameters
    ----------
    space
        Conforming H(div) space.
    weight
        Weight of the mass matrix; None is one.

    Collective: yes.
    """

    def __init__(self, space: fem.FunctionSpace, weight: Coefficient | None) -> None:
        mesh = space.mesh
        self.space = space
        self.comm = mesh.comm
        self.count = mesh.topology.index_map(mesh.topology.dim).size_local
        self.pressure_space = fem.functionspace(mesh, divergence_element(space))
        element = space.ufl_element()
        broken = fem.functionspace(
            mesh, basix.ufl.element(element.element_family, element.cell_type.name, element.degree, discontinuous=True)
        )
        flux, flux_test = ufl.TrialFunction(broken), ufl.TestFunction(broken)
        pressure, pressure_test = ufl.TrialFunction(self.pressure_space), ufl.TestFunction(self.pressure_space)

        self.dofs = space.dofmap.list[: self.count].astype(np.int64)
        self.pressure_dofs = self.pressure_space.dofmap.list[: self.count].astype(np.int64)
        broken_dofs = broken.dofmap.list[: self.count].astype(np.int64)

        def assemble(form: ufl.Form, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            return blocks(fem.assemble_matrix(fem.form(form)), rows, columns)

        mass = assemble(ufl.inner(_weighted(weight, flux), flux_test) * ufl.dx, broken_dofs, broken_dofs)
        divergence = assemble(ufl.div(flux) * pressure_test * ufl.dx, self.pressure_dofs, broken_dofs)
        self.pressure_mass = assemble(pressure * pressure_test * ufl.dx, self.pressure_dofs, self.pressure_dofs)
        self._orient(mass)
        mass = np.ascontiguousarray(mass.transpose(0, 2, 1))
        self._orient(mass)
        divergence = np.ascontiguousarray(divergence.transpose(0, 2, 1))
        self._orient(divergence)
        self.mass = mass
        self.divergence = np.ascontiguousarray(divergence.transpose(0, 2, 1))

        one = fem.Function(self.pressure_space)
        one.interpolate(lambda x: np.ones(x.shape[1]))
        # Coefficients of the constant one: the test function of the balance of a cell.
        self.constant = one.x.array[self.pressure_dofs]
        self.inverse = self._saddle_point_inverses()

        self._attached = self.add_up(np.ones(self.dofs.shape))
        stiff = np.diagonal(self.mass, axis1=1, axis2=2)
        self._portion = stiff / self.copies(self.add_up(stiff))

    def _orient(self, rows: np.ndarray) -> None:
        """Turn the rows of cell matrices from the reference basis of a cell into the basis that cells share."""
        mesh = self.space.mesh
        mesh.topology.create_entity_permutations()
        if self.count == 0:  # basix divides by the number of cells
            return
        permutations = mesh.topology.get_cell_permutation_info()[: self.count]
        self.space.element.T_apply(rows.reshape(-1), permutations, rows.shape[2])

    def _saddle_point_inverses(self) -> np.ndarray:
        """Return the inverses of [[M, B^T], [B, 0]] of all cells, shape (cells, n + m, n + m)."""
        n, m = self.mass.shape[1], self.divergence.shape[1]
        scale = np.trace(self.mass, axis1=1, axis2=2)[:, None, None] / n
        matrix = np.zeros((self.count, n + m, n + m))
        # Without the scale the two blocks of a cell with a weight of 1e6 would differ by as much.
        matrix[:, :n, :n] = self.mass / scale
        matrix[:, n:, :n] = self.divergence
        matrix[:, :n, n:] = self.divergence.transpose(0, 2, 1)
        inverse = np.linalg.inv(matrix)
        inverse[:, :n, :n] /= scale
        inverse[:, n:, n:] *= scale
        return inverse

    # --- between degrees of freedom and the copies that cells have of them -------------------------------------------

    def copies(self, values: np.ndarray) -> np.ndarray:
        """Return the values that the owned cells see, shape (cells, n), from those of owned and ghost dofs."""
        return values[self.dofs]

    def add_up(self, copies: np.ndarray) -> np.ndarray:
        """Return the sums of the cells' copies for owned and ghost dofs. Collective: yes."""
        vector = dolfinx.la.vector(self.space.dofmap.index_map, self.space.dofmap.index_map_bs)
        vector.array[:] = np.bincount(self.dofs.reshape(-1), copies.reshape(-1), minlength=vector.array.size)
        vector.scatter_reverse(dolfinx.la.InsertMode.add)
        vector.scatter_forward()
        return vector.array

    def average(self, copies: np.ndarray) -> np.ndarray:
        """Return the mean of the cells' copies for owned and ghost dofs. Collective: yes."""
        return self.add_up(copies) / self._attached

    def share(self, owned: np.ndarray) -> np.ndarray:
        """Return copies whose sums are the given values of owned dofs. Collective: yes.

        Each cell bears what its weight allows: half of a force could move a flux of 1e6 in a cell with a small weight.
        """
        return self.copies(self.with_ghosts(owned)) * self._portion

    def with_ghosts(self, owned: np.ndarray) -> np.ndarray:
        """Return the values of owned and ghost dofs from those of the owned. Collective: yes."""
        vector = dolfinx.la.vector(self.space.dofmap.index_map, self.space.dofmap.index_map_bs)
        vector.array[: owned.size] = owned
        vector.scatter_forward()
        return vector.array
