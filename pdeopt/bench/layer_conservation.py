"""Line 4: fluxes whose balance holds in every cell, at scale, beside the saddle-point matrix factored by MUMPS."""

import time

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import dolfinx.fem.petsc
import numpy as np
import ufl
from dolfinx import fem

from pdeopt.bench.harness import Row, say
from pdeopt.bench.study import Study, number
from pdeopt.fem import forms
from pdeopt.learn.conserve import FluxProjection

_THIS = __name__
_CONTRASTS = (1.0, 1e6)


def measure(study: Study, quick: bool) -> None:
    """Project a flux on meshes up to a million unknowns, on 1, 2 and 3 ranks. Collective: yes."""
    rows: list[Row] = []
    cells = 16 if quick else 577
    for contrast in _CONTRASTS:
        for ranks in (1, 2) if quick else (1, 2, 3):
            row = study.case(f"{_THIS}:project", ranks, cells=cells, contrast=contrast)
            rows.append(row)
            study.row("Flux projection, RT of degree 1 on triangles", row)
    prescribed = [
        study.case(f"{_THIS}:project", ranks, cells=cells, contrast=contrast, closed=True)
        for contrast in _CONTRASTS
        for ranks in ((1, 2) if quick else (1, 2, 3))
    ]
    for row in prescribed:
        study.row("Flux projection, RT of degree 1 on triangles", row)
    for family, degree, side in (("RT", 2, 8 if quick else 150), ("BDM", 1, 8 if quick else 200)):
        row = study.case(f"{_THIS}:project", 1, cells=side, contrast=1e6, family=family, degree=degree)
        rows.append(row)
        study.row("Flux projection, other elements", row)
    row = study.case(f"{_THIS}:project", 1, cells=4 if quick else 24, contrast=1e6, dimension=3)
    rows.append(row)
    study.row("Flux projection, RT of degree 1 on tetrahedra", row)
    for ranks in (1, 2):
        study.row(
            "The saddle-point matrix factored by MUMPS, and the projection",
            study.case(f"{_THIS}:beside_mumps", ranks, cells=16 if quick else 165),
        )
    say(study.comm, "  targets")
    study.target("4a", "largest imbalance of a cell", _most([*rows, *prescribed], "imbalance of a cell"), 1e-13)
    study.target("4b", "asymmetry in the mass inner product, relative", _most(rows, "asymmetry"), 1e-12)
    large = rows[: len(_CONTRASTS) * (2 if quick else 3)]
    study.target("4c", "CG iterations, 1e6 unknowns, contrasts and ranks, largest", _most(large, "CG iterations"), 25)
    study.target("4c.closed", "the same, flux prescribed on the boundary", _most(prescribed, "CG iterations"), 25)
    growth = max(
        abs(number(row, "CG iterations") - number(large[0], "CG iterations")) for row in large if row["contrast"] == 1.0
    )
    study.target("4d", "difference of the iterations on 1, 2, 3 ranks", growth, 2)


def _most(rows: list[Row], column: str) -> float:
    return max(number(row, column) for row in rows)


def _spaces(
    comm: MPI.Comm, cells: int, dimension: int, family: str, degree: int
) -> tuple[fem.FunctionSpace, ufl.core.expr.Expr, ufl.core.expr.Expr]:
    """Return the space, a flux that satisfies no balance, and a source."""
    if dimension == 2:
        mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
    else:
        mesh = dolfinx.mesh.create_unit_cube(comm, cells, cells, cells)
    x = ufl.SpatialCoordinate(mesh)
    flux = ufl.as_vector([ufl.sin(3.0 * x[i]) + x[(i + 1) % dimension] ** 2 for i in range(dimension)])
    return fem.functionspace(mesh, (family, degree)), flux, 1.0 + ufl.cos(2.0 * x[0]) * x[1]


def _checkerboard(mesh: dolfinx.mesh.Mesh, contrast: float) -> fem.Function:
    """Return one and ``contrast`` in 8 x 8 squares by turns."""
    weight = fem.Function(fem.functionspace(mesh, ("DG", 0)))
    weight.interpolate(lambda x: np.where((np.floor(8.0 * x[: mesh.geometry.dim]).sum(axis=0) % 2) == 0, 1.0, contrast))
    return weight


def _draw(space: fem.FunctionSpace, seed: int) -> fem.Function:
    """Return a flux with smooth and rough parts that depends on no numbering."""
    function = fem.Function(space)

    def value(x: np.typing.NDArray[np.float64]) -> np.typing.NDArray[np.float64]:
        dimension = space.mesh.geometry.dim
        waves = [np.sin((7.0 + 40.0 * i + seed) * x[i]) + np.cos((3.0 + seed) * x[(i + 1) % dimension])
                 for i in range(dimension)]  # fmt: skip
        return np.array(waves)

    function.interpolate(value)
    return function


def project(
    comm: MPI.Comm,
    cells: int,
    contrast: float,
    family: str = "RT",
    degree: int = 1,
    dimension: int = 2,
    closed: bool = False,
) -> Row:
    """Project a flux and say how well and how fast; ``closed`` prescribes it on the whole boundary. Collective: yes."""
    space, flux, source = _spaces(comm, cells, dimension, family, degree)
    weight = _checkerboard(space.mesh, contrast)
    guess = fem.Function(space)
    guess.interpolate(fem.Expression(flux, space.element.interpolation_points, comm=comm))
    boundary = None
    if closed:  # a flux that exists gives source and boundary flux, another one is projected
        boundary, source, guess = guess, ufl.div(guess), _draw(space, 0)
    began = time.perf_counter()
    projection = FluxProjection(space, source=source, inverse_permeability=weight, prescribed=boundary)
    setup = time.perf_counter() - began
    before = projection.defect(guess)
    began = time.perf_counter()
    result = projection.project(guess)
    seconds = time.perf_counter() - began
    iterations = projection.report.linear_iterations
    after = projection.defect(result)
    again = projection.project(result)
    change = np.max(np.abs(forms.owned_values(again) - forms.owned_values(result)), initial=0.0)
    size = np.max(np.abs(forms.owned_values(result)), initial=0.0)
    row: Row = {
        "element": f"{family}{degree}",
        "unknowns": space.dofmap.index_map.size_global * space.dofmap.index_map_bs,
        "contrast": contrast,
        "boundary": "prescribed" if closed else "free",
        "imbalance before": before.absolute,
        "imbalance of a cell": after.absolute,
        "relative imbalance": after.relative,
        "CG iterations": iterations,
        "set-up [s]": setup,
        "projection [s]": seconds,
        "asymmetry": _asymmetry(space, weight),
        "change when projected again, relative": comm.allreduce(change, op=MPI.MAX) / comm.allreduce(size, op=MPI.MAX),
    }
    projection.destroy()
    return row


def _asymmetry(space: fem.FunctionSpace, weight: fem.Function) -> float:
    """Return |(P q, r) - (q, P r)| over the norms, in the weighted mass inner product, without source."""
    homogeneous = FluxProjection(space, source=0.0, inverse_permeability=weight)
    trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
    mass = forms.assemble_matrix(fem.form(weight * ufl.inner(trial, test) * ufl.dx))
    vectors: list[list[PETSc.Vec]] = []
    for one in (_draw(space, 0), _draw(space, 1)):
        vectors.append([])
        for function in (one, homogeneous.project(one)):
            vector = mass.createVecRight()
            vector.array[:] = forms.owned_values(function)
            vectors[-1].append(vector)
    image = mass.createVecLeft()

    def product(a: PETSc.Vec, b: PETSc.Vec) -> float:
        mass.mult(b, image)
        return float(a.dot(image))

    (q, projected_q), (r, projected_r) = vectors
    difference = abs(product(projected_q, r) - product(q, projected_r))
    scale = (product(q, q) * product(r, r)) ** 0.5
    homogeneous.destroy()
    mass.destroy()
    return difference / scale


def beside_mumps(comm: MPI.Comm, cells: int) -> Row:
    """Solve the same projection as one saddle-point system by LU, and compare. Collective: yes."""
    space, flux, source = _spaces(comm, cells, 2, "RT", 1)
    guess = fem.Function(space)
    guess.interpolate(fem.Expression(flux, space.element.interpolation_points, comm=comm))
    pressures = fem.functionspace(space.mesh, ("DG", 0))
    q, v = ufl.TrialFunction(space), ufl.TestFunction(space)
    p, w = ufl.TrialFunction(pressures), ufl.TestFunction(pressures)
    dx = ufl.dx(metadata={"quadrature_degree": 4})
    a = fem.form([[ufl.inner(q, v) * dx, p * ufl.div(v) * dx], [ufl.div(q) * w * dx, None]])
    L = fem.form([ufl.inner(guess, v) * dx, source * w * dx])
    matrix = dolfinx.fem.petsc.assemble_matrix(a, kind="mpi")
    matrix.assemble()
    right = dolfinx.fem.petsc.assemble_vector(L, kind="mpi")
    right.ghostUpdate(addv=PETSc.InsertMode.ADD, mode=PETSc.ScatterMode.REVERSE)
    ksp = PETSc.KSP().create(comm)
    ksp.setOperators(matrix)
    ksp.setType("preonly")
    ksp.getPC().setType("lu")
    ksp.getPC().setFactorSolverType("mumps")
    began = time.perf_counter()
    ksp.setUp()
    factor = time.perf_counter() - began
    solution = right.duplicate()
    began = time.perf_counter()
    ksp.solve(right, solution)
    solve = time.perf_counter() - began
    began = time.perf_counter()
    projection = FluxProjection(space, source=source)
    setup = time.perf_counter() - began
    began = time.perf_counter()
    result = projection.project(guess)
    seconds = time.perf_counter() - began
    own = forms.owned_values(result)
    difference = np.max(np.abs(own - solution.array_r[: own.size]), initial=0.0)
    row: Row = {
        "unknowns of the flux": space.dofmap.index_map.size_global,
        "factors of MUMPS [s]": factor,
        "its solve [s]": solve,
        "set-up of the projection [s]": setup,
        "projection [s]": seconds,
        "greatest difference": float(comm.allreduce(difference, op=MPI.MAX)),
    }
    for handle in (ksp, matrix, right, solution):
        handle.destroy()
    projection.destroy()
    return row
