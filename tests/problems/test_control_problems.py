"""The control problems with a known optimum: orders of convergence, the optimality system, ranks, and the heat sink."""

import pathlib

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl

from pdeopt import problems
from pdeopt.report import InputError, MeshError

HEAT_SINK = pathlib.Path(__file__).resolve().parents[2] / "meshes" / "heat_sink.msh"
SMOOTH = ("PoissonControl", "BoundaryControl", "SemilinearControl", "ConstrainedControl", "PartialObservationControl")
ALL = (*SMOOTH, "BoundedPoissonControl")


def unit_mesh(cells, dimension=2):
    mesh = dolfinx.mesh
    create = {1: mesh.create_unit_interval, 2: mesh.create_unit_square, 3: mesh.create_unit_cube}
    return create[dimension](MPI.COMM_WORLD, *[cells] * dimension)


def solved(name, cells, dimension=2, **settings):
    case = getattr(problems, name)(unit_mesh(cells, dimension), **settings)
    case.problem.solve(method="direct")
    return case


def order(coarse, fine, ratio=2.0):
    return float(np.log(coarse / fine) / np.log(ratio))


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize(("degree", "meshes", "bound"), [(1, (16, 32, 64), 1.95), (2, (8, 16, 32), 2.9)])
def test_orders_of_smooth_optima(name, degree, meshes, bound):
    """State, control, adjoint and multiplier converge by the degree of the elements plus one."""
    alpha = {"alpha": 1e-3} if name == "PoissonControl" else {}
    errors = [solved(name, cells, degree=degree, **alpha).errors() for cells in meshes]
    for field in errors[0]:
        assert order(errors[-2][field], errors[-1][field]) >= bound, field
        assert errors[-1][field] < errors[-2][field] < errors[0][field], field


def test_orders_between_bounds():
    """The kinks of the optimal control cost half an order, and the bounds hold it on large sets from both sides."""
    errors = [solved("BoundedPoissonControl", cells) for cells in (16, 32, 64)]
    coarse, fine = (case.errors() for case in errors[-2:])
    assert order(coarse["control"], fine["control"]) >= 1.4
    assert order(coarse["state"], fine["state"]) >= 1.9
    assert order(coarse["adjoint"], fine["adjoint"]) >= 1.9
    values = errors[-1].control.x.array
    assert values.min() == -0.4
    assert values.max() == 0.6
    assert np.mean(values == -0.4) >= 0.15
    assert np.mean(values == 0.6) >= 0.1


@pytest.mark.parametrize("name", ALL)
def test_orders_in_space(name):
    """The same formulas in three dimensions."""
    coarse, fine = (solved(name, cells, dimension=3, alpha=1e-2).errors() for cells in (8, 12))
    for field in coarse:
        bound = 1.4 if name == "BoundedPoissonControl" and field == "control" else 1.75
        assert order(coarse[field], fine[field], 1.5) >= bound, field


def test_orders_on_the_interval():
    for name in ("PoissonControl", "BoundaryControl", "SemilinearControl", "ConstrainedControl"):
        coarse, fine = (solved(name, cells, dimension=1, alpha=1e-2).errors() for cells in (64, 128))
        for field in coarse:
            assert order(coarse[field], fine[field]) >= 1.99, (name, field)


@pytest.mark.parametrize(
    ("name", "bound"),
    [*[(name, 1.8 if name == "BoundaryControl" else 1.95) for name in SMOOTH], ("BoundedPoissonControl", 1.3)],
)
def test_the_optimum_solves_the_optimality_system(name, bound):
    """The residual at the interpolated optimum, in the Riesz norm, falls with the mesh size."""
    coarse, fine = (residual_at_optimum(name, cells) for cells in (32, 64))
    assert order(coarse, fine) >= bound


def residual_at_optimum(name, cells, disturb=1.0):
    case = getattr(problems, name)(unit_mesh(cells), alpha=1e-2)
    case.exact = {**case.exact, "adjoint": disturb * case.exact["adjoint"]}
    case.set_optimum()
    return case.problem.solve(method="direct").residuals[0]


def test_a_wrong_optimum_is_noticed():
    """Twice the right adjoint solves no optimality system, and 10 % more than it keep the error from falling."""
    for name in ALL:
        coarse, fine = (residual_at_optimum(name, cells, disturb=2.0) for cells in (32, 64))
        assert order(coarse, fine) <= 0.2, name
        assert fine >= 5.0 * residual_at_optimum(name, 64), name
    errors = []
    for cells in (32, 64):
        case = solved("SemilinearControl", cells)
        case.exact = {**case.exact, "adjoint": 1.1 * case.exact["adjoint"]}
        errors.append(case.errors()["adjoint"])
    assert order(*errors) <= 0.3


# Of the discrete optima on 16 x 16 cells with the default settings, to the digits that one rank printed.
OBJECTIVES = {
    "PoissonControl": 1.31513930940e-07,
    "BoundaryControl": 1.50733373404e-02,
    "SemilinearControl": 3.31105843981e-02,
    "ConstrainedControl": 1.91447527631e-02,
    "PartialObservationControl": 1.38694747244e-02,
    "BoundedPoissonControl": 3.11077776475e-02,
}
# Of the heat sink, by refinements, bounds and method.
HEAT_SINK_OBJECTIVES = {
    (1, None, "matched_schur"): 5.88385808760e-06,
    (0, (0.0, 0.2), "direct"): 6.11920739438e-06,
}


def sizes(data):
    """Area or length of every named group, of the whole, of its boundary, and of the border of the copper."""
    dx = ufl.Measure("dx", data.mesh, subdomain_data=data.cell_tags)
    ds = ufl.Measure("ds", data.mesh, subdomain_data=data.facet_tags)
    one = dolfinx.fem.Constant(data.mesh, 1.0)
    # Between ranks the jump is right only if ghost cells have their tags too.
    copper = dolfinx.fem.Function(dolfinx.fem.functionspace(data.mesh, ("DG", 0)))
    copper.x.array[data.cell_tags.find(data.tag("copper"))] = 1.0
    forms = {name: one * (dx if dimension == 2 else ds)(tag) for name, (dimension, tag) in data.physical_groups.items()}
    forms |= {"section": one * dx, "boundary": one * ds, "border": ufl.jump(copper) ** 2 * ufl.dS(data.mesh)}
    compiled = {name: dolfinx.fem.form(form) for name, form in forms.items()}
    return {name: data.mesh.comm.allreduce(dolfinx.fem.assemble_scalar(form)) for name, form in compiled.items()}


def owned_and_ghost_counts(data, tags):
    """Tagged entities over all ranks: those that their rank owns, and those that it sees as ghosts."""
    owned = int(np.count_nonzero(tags.indices < data.mesh.topology.index_map(tags.dim).size_local))
    return data.mesh.comm.allreduce(owned), data.mesh.comm.allreduce(tags.indices.size - owned)


@pytest.mark.parallel([1, 2, 3])
def test_one_optimum_on_every_rank_count():
    """All problems, the heat sink's refined tags, and the errors of all ranks."""
    for name, objective in OBJECTIVES.items():
        case = solved(name, 16)
        assert case.problem.objective_value() == pytest.approx(objective, rel=1e-8), name
        if name == "ConstrainedControl":
            assert abs(case.problem.system.constraint_values()[0]) <= 1e-10

    coarse = problems.HeatSinkControl(MPI.COMM_WORLD, HEAT_SINK).mesh_data
    assert sizes(coarse)["border"] > 2.2  # the slug is 2.2 units wide
    for (refinements, bounds, method), objective in HEAT_SINK_OBJECTIVES.items():
        case = problems.HeatSinkControl(MPI.COMM_WORLD, HEAT_SINK, refinements=refinements, bounds=bounds)
        case.problem.solve(method=method, rtol=1e-10)
        assert case.problem.objective_value() == pytest.approx(objective, rel=1e-8), (refinements, bounds)
        if bounds:
            values = case.control.x.array
            assert values.min() >= bounds[0]
            assert values.max() <= bounds[1]
            assert MPI.COMM_WORLD.allreduce(bool((values == bounds[1]).any()), op=MPI.LOR)
    for refinements in (1, 2):
        data = problems.HeatSinkControl(MPI.COMM_WORLD, HEAT_SINK, refinements=refinements).mesh_data
        assert sizes(data) == pytest.approx(sizes(coarse), rel=1e-12)
        for kind, factor in (("cell_tags", 4**refinements), ("facet_tags", 2**refinements)):
            owned, ghosts = owned_and_ghost_counts(data, getattr(data, kind))
            coarse_owned, coarse_ghosts = owned_and_ghost_counts(coarse, getattr(coarse, kind))
            assert owned == factor * coarse_owned, kind
            assert (ghosts > 0) == (coarse_ghosts > 0), kind

    with pytest.raises(MeshError, match="both sides of x_0 = 1/2"):
        problems.PartialObservationControl(unit_mesh(5))
    shifted = unit_mesh(4)
    shifted.geometry.x[:, 0] += 1.0
    with pytest.raises(MeshError, match="posed on the cube"):
        problems.PoissonControl(shifted)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: problems.PoissonControl(unit_mesh(2), alpha=0.0), "alpha = 0.0 is out of range"),
        (lambda: problems.SemilinearControl(unit_mesh(2), alpha=0.2), "alpha = 0.2 is out of range"),
        (lambda: problems.BoundedPoissonControl(unit_mesh(2), bounds=(-2.0, 0.5)), "both hold the control"),
        (lambda: problems.PartialObservationControl(unit_mesh(2, dimension=1)), "need a mesh of the plane"),
        (lambda: problems.HeatSinkControl(MPI.COMM_WORLD, HEAT_SINK, refinements=-1), "refinements = -1 is negative"),
        (lambda: problems.HeatSinkControl(MPI.COMM_WORLD, HEAT_SINK.with_name("none.msh")), "there is no such file"),
        (lambda: problems.PoissonControl(unit_mesh(2), bounds=(0.1, 0.6)).errors(), "unknown with these bounds"),
        (lambda: problems.PoissonControl(unit_mesh(2), bounds=(0.1, 0.6)).exact_objective, "unknown with these"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_bounds_that_hold_nothing_leave_the_optimum():
    bounded = solved("PoissonControl", 16, alpha=1e-4, bounds=(-1.0, 2.0))
    assert bounded.errors() == pytest.approx(solved("PoissonControl", 16, alpha=1e-4).errors(), rel=1e-6)


def test_exact_objective_in_every_dimension():
    for dimension, cells, accuracy in ((1, 64, 1e-7), (2, 32, 1e-5), (3, 8, 2e-3)):
        case = problems.PoissonControl(unit_mesh(cells, dimension), alpha=1e-4, degree=2)
        case.problem.solve(method="matched_schur")
        assert case.problem.objective_value() == pytest.approx(case.exact_objective, rel=accuracy), dimension
