"""Flux projection: what it must conserve, that it is the nearest flux, and its derivatives, on 1, 2 and 3 ranks."""

import gc
import resource

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem, mesh
from dolfinx.fem import petsc as fem_petsc
from dolfinx.mesh import CellType

from pdeopt import conserve
from pdeopt.learn._conserve_cells import CellMatrices
from pdeopt.learn._torch import torch
from pdeopt.report import ConvergenceError, InputError

COMM = MPI.COMM_WORLD
ELEMENTS = [
    ("triangle", "RT", 1),
    ("triangle", "RT", 2),
    ("triangle", "BDM", 1),
    ("triangle", "BDM", 2),
    ("quadrilateral", "RT", 1),
    ("quadrilateral", "RT", 2),
    ("quadrilateral", "BDM", 2),
    ("tetrahedron", "RT", 1),
    ("tetrahedron", "RT", 2),
    ("tetrahedron", "BDM", 1),
    ("hexahedron", "RT", 1),
    ("hexahedron", "RT", 2),
]
IDS = [f"{family}{degree}-{cell}" for cell, family, degree in ELEMENTS]


def make_mesh(cell, n, comm=COMM):
    if cell in ("triangle", "quadrilateral"):
        domain = mesh.create_unit_square(comm, n, n, CellType[cell])
    else:
        domain = mesh.create_unit_cube(comm, n, n, n, CellType[cell])
    # Bent, so that no two cells are alike and bilinear ones are not affine.
    x = domain.geometry.x
    x[:, 0] += 0.05 * np.sin(3.0 * x[:, 1])
    x[:, 1] += 0.04 * x[:, 0] * x[:, 1]
    return domain


def make_space(cell, family, degree, n):
    return fem.functionspace(make_mesh(cell, n), (family, degree))


def smooth(space, kind=0):
    """A flux that is given by a formula, so that it is the same on any number of ranks."""
    dim = space.mesh.geometry.dim
    function = fem.Function(space)
    function.interpolate(
        lambda x: np.array([np.sin(3 * x[0] + kind) * x[1], np.cos(2 * x[1]) + kind * x[0], x[0] * x[2] + 1.0])[:dim]
    )
    function.x.scatter_forward()
    return function


def source(space):
    x = ufl.SpatialCoordinate(space.mesh)
    return ufl.exp(x[0]) * ufl.cos(2 * x[1]) + 0.3


def checkerboard(domain, contrast):
    """Weight that jumps by ``contrast`` between the fields of a checkerboard."""
    weight = fem.Function(fem.functionspace(domain, ("DG", 0)))
    weight.interpolate(lambda x: np.where(np.sum(np.floor(4 * x[: domain.geometry.dim]), axis=0) % 2, contrast, 1.0))
    weight.x.scatter_forward()
    return weight


def integrate(form):
    return COMM.allreduce(fem.assemble_scalar(fem.form(form)))


def product(p, q, weight=1.0):
    return integrate(weight * ufl.inner(p, q) * ufl.dx)


def distance(p, q, weight=1.0):
    return np.sqrt(product(p - q, p - q, weight))


def owned(function):
    return function.x.array[: function.function_space.dofmap.index_map.size_local]


def boundary_dofs(space):
    facet_dim = space.mesh.topology.dim - 1
    space.mesh.topology.create_connectivity(facet_dim, facet_dim + 1)
    facets = mesh.exterior_facet_indices(space.mesh.topology)
    return fem.locate_dofs_topological(space, facet_dim, facets), facets


def saddle_point_solution(space, guess, weight, right_hand_side, boundary_flux=None):
    """The same projection as one matrix, factorised."""
    pressures = CellMatrices(space, None).pressure_space
    q, p = ufl.TrialFunction(space), ufl.TrialFunction(pressures)
    r, s = ufl.TestFunction(space), ufl.TestFunction(pressures)
    a = [[weight * ufl.inner(q, r) * ufl.dx, p * ufl.div(r) * ufl.dx], [ufl.div(q) * s * ufl.dx, None]]
    L = [weight * ufl.inner(guess, r) * ufl.dx, right_hand_side * s * ufl.dx]
    bcs = []
    if boundary_flux is not None:
        bcs = [fem.dirichletbc(boundary_flux, boundary_dofs(space)[0])]
    options = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps", "mat_mumps_icntl_24": 1}
    problem = fem_petsc.LinearProblem(
        a, L, bcs=bcs, kind="mpi", petsc_options_prefix="test_saddle_", petsc_options=options
    )
    return problem.solve()[0]


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize(("cell", "family", "degree"), ELEMENTS, ids=IDS)
def test_projection_conserves_and_is_the_nearest(cell, family, degree):
    space = make_space(cell, family, degree, 6 if cell in ("triangle", "quadrilateral") else 3)
    weight = 1.0 + ufl.SpatialCoordinate(space.mesh)[0] ** 2
    f = source(space)
    projection = conserve.FluxProjection(space, source=f, inverse_permeability=weight)
    guess = smooth(space)
    assert projection.defect(guess).absolute > 1e-3
    q = projection.project(guess)
    defect = projection.defect(q)
    assert defect.absolute < 1e-13
    assert defect.relative < 1e-11
    assert projection.report.quantities["largest imbalance of a cell"] == pytest.approx(defect.absolute, abs=1e-15)

    reference = saddle_point_solution(space, guess, weight, f)
    assert distance(q, reference, weight) < 1e-10 * np.sqrt(product(guess, guess, weight))
    assert distance(projection.project(q), q) < 1e-12 * np.sqrt(product(q, q))
    projection.destroy()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("contrast", [1.0, 1e6])
@pytest.mark.parametrize("closed", [False, True], ids=["free", "closed"])
def test_projection_is_self_adjoint(contrast, closed):
    space = make_space("triangle", "RT", 1, 24)
    weight = checkerboard(space.mesh, contrast)
    no_flux = fem.Function(space) if closed else None
    projection = conserve.divergence_free(space, inverse_permeability=weight, prescribed=no_flux)
    p, q = smooth(space, 0), smooth(space, 2)
    projected_p, projected_q = projection.project(p), projection.project(q)
    size = np.sqrt(product(p, p, weight) * product(q, q, weight))
    assert abs(product(projected_p, q, weight) - product(p, projected_q, weight)) < 1e-12 * size
    assert abs(product(projected_p, p, weight) - product(projected_p, projected_p, weight)) < 1e-12 * size
    # The nearest: what was taken away is orthogonal to all fluxes that are left.
    assert abs(product(p - projected_p, projected_q, weight)) < 1e-12 * size
    assert projection.defect(projected_p).absolute < 1e-13
    assert distance(projection.project(projected_p), projected_p, weight) < 1e-12 * np.sqrt(product(p, p, weight))
    projection.destroy()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("contrast", [1.0, 1e6])
def test_iterations_stay_few(contrast):
    space = make_space("triangle", "RT", 1, 80)
    weight = checkerboard(space.mesh, contrast)
    projection = conserve.FluxProjection(space, source=source(space), inverse_permeability=weight)
    q = projection.project(smooth(space))
    assert projection.defect(q).absolute < 1e-13
    assert 0 < projection.report.linear_iterations <= 25
    assert projection.report.converged
    assert "cg + gamg" in str(projection.report)
    projection.destroy()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize(("cell", "family", "degree"), [ELEMENTS[0], ELEMENTS[3], ELEMENTS[5], ELEMENTS[9]])
def test_prescribed_flux_is_exact(cell, family, degree):
    space = make_space(cell, family, degree, 5 if cell in ("triangle", "quadrilateral") else 2)
    given = smooth(space, 1)
    # On the whole boundary: then the source has to add up.
    projection = conserve.FluxProjection(space, source=ufl.div(given), prescribed=given)
    guess = smooth(space)
    q = projection.project(guess)
    dofs, facets = boundary_dofs(space)
    assert np.array_equal(q.x.array[dofs], given.x.array[dofs])
    assert projection.defect(q).absolute < 1e-13
    reference = saddle_point_solution(space, guess, 1.0, ufl.div(given), given)
    assert distance(q, reference) < 1e-10 * np.sqrt(product(guess, guess))

    # On the left only; the function is read anew.
    left = facets[mesh.compute_midpoints(space.mesh, space.mesh.topology.dim - 1, facets)[:, 0] < 0.2]
    some = conserve.FluxProjection(space, source=source(space), prescribed=(left, given))
    for factor in (1.0, 2.0):
        given.x.array[:] *= factor
        q = some.project(guess)
        dofs = fem.locate_dofs_topological(space, space.mesh.topology.dim - 1, left)
        assert np.array_equal(q.x.array[dofs], given.x.array[dofs])
        assert some.defect(q).absolute < 1e-13
    projection.destroy()
    some.destroy()


@pytest.mark.parallel([1, 2, 3])
def test_answers_do_not_depend_on_the_number_of_ranks():
    space = make_space("triangle", "RT", 2, 8)
    weight = checkerboard(space.mesh, 1e4)
    projection = conserve.FluxProjection(space, source=source(space), inverse_permeability=weight)
    q = projection.project(smooth(space))
    x = ufl.SpatialCoordinate(space.mesh)
    numbers = np.array([product(q, q), integrate(q[0] * x[1] * ufl.dx), integrate(ufl.dot(q, x) * x[0] * ufl.dx)])
    # Computed on one rank.
    expected = [0.8922260455082507, 0.2641519679939839, 0.3659081159864003]
    np.testing.assert_allclose(numbers, expected, rtol=1e-10)
    projection.destroy()


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("closed", [False, True], ids=["free", "closed"])
def test_ranks_without_cells(closed):
    space = fem.functionspace(mesh.create_unit_square(COMM, 1, 1), ("BDM", 2))  # two cells
    given = smooth(space, 1)
    projection = conserve.FluxProjection(space, source=ufl.div(given), prescribed=given if closed else None)
    q = projection.project(smooth(space))
    assert projection.defect(q).absolute < 1e-13
    assert distance(projection.project(q), q) < 1e-13
    projection.destroy()


@pytest.mark.parametrize("closed", [False, True], ids=["free", "closed"])
def test_one_cell(closed):
    domain = mesh.create_unit_square(MPI.COMM_SELF, 1, 1, CellType.quadrilateral)
    space = fem.functionspace(domain, ("RT", 1))
    given = smooth(space, 1)
    projection = conserve.FluxProjection(space, source=ufl.div(given), prescribed=given if closed else None)
    q = projection.project(smooth(space))
    assert projection.defect(q).absolute < 1e-13
    assert not closed or np.allclose(q.x.array, given.x.array, atol=1e-13)
    projection.destroy()


@pytest.mark.parallel([1, 2, 3])
def test_tensor_weight_and_changing_source():
    space = make_space("triangle", "RT", 1, 6)
    strength = fem.Constant(space.mesh, 1.0)
    x = ufl.SpatialCoordinate(space.mesh)
    tensor = ufl.as_matrix([[2.0 + x[0], 0.5], [0.5, 1.0]])
    projection = conserve.FluxProjection(space, source=strength * source(space), inverse_permeability=tensor)
    guess = smooth(space)
    for strength.value in (1.0, -3.0):
        q = projection.project(guess, out=fem.Function(space))
        assert projection.defect(q).absolute < 1e-13
        other = projection.project(q)
        assert distance(q, other) < 1e-12
    # Orthogonal in the tensor's product to what has no divergence.
    free = conserve.divergence_free(space, inverse_permeability=tensor).project(smooth(space, 2))
    assert abs(integrate(ufl.inner(tensor * (q - guess), free) * ufl.dx)) < 1e-12
    in_place = smooth(space)
    assert projection.project(in_place, out=in_place) is in_place
    assert distance(in_place, q) < 1e-13


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parallel([1, 2, 3])
def test_source_and_boundary_flux_that_do_not_add_up():
    space = make_space("triangle", "RT", 1, 6)
    projection = conserve.FluxProjection(space, source=1.0, prescribed=fem.Function(space))
    with pytest.raises(InputError, match=r"adds up to 1\.0.* carries 0 out of the domain"):
        projection.project(smooth(space))
    projection.destroy()


@pytest.mark.parallel([1, 2, 3])
def test_nan_on_one_rank_is_an_error_on_all():
    space = make_space("triangle", "RT", 1, 6)
    projection = conserve.divergence_free(space)
    guess = smooth(space)
    if COMM.rank == COMM.size - 1:
        guess.x.array[0] = np.nan
    with pytest.raises(InputError, match=f"q_hat has NaN or Inf in 1 values of rank {COMM.size - 1}"):
        projection.project(guess)
    with pytest.raises(InputError, match="q_hat has shape"):
        projection(torch.zeros(3, dtype=torch.float64))
    projection.destroy()


@pytest.mark.parallel([1, 2])
def test_wrong_spaces_and_facets():
    domain = make_mesh("triangle", 4)
    with pytest.raises(InputError, match="conforming H\\(div\\) element"):
        conserve.divergence_free(fem.functionspace(domain, ("Lagrange", 1, (2,))))
    space = fem.functionspace(domain, ("RT", 1))
    inside = mesh.locate_entities(domain, 1, lambda x: (x[0] > 0.2) & (x[0] < 0.8))
    with pytest.raises(InputError, match="are not on the boundary"):
        conserve.divergence_free(space, prescribed=(inside, fem.Function(space)))
    other = fem.functionspace(domain, ("RT", 2))
    with pytest.raises(InputError, match="function of the space"):
        conserve.divergence_free(space, prescribed=fem.Function(other))
    projection = conserve.divergence_free(space, petsc_options={"ksp_max_it": 1})
    with pytest.raises(InputError, match="no report yet"):
        _ = projection.report
    with pytest.raises(InputError, match="q_hat has shape"):
        projection.project(fem.Function(other))
    with pytest.raises(ConvergenceError, match="did not converge"):
        projection.project(smooth(space))


@pytest.mark.parallel([1, 2])
def test_a_sign_error_is_found(monkeypatch):
    """The checks above can fail: with the cells on one side entering with the wrong sign nothing is conserved."""
    space = make_space("triangle", "RT", 1, 6)
    projection = conserve.FluxProjection(space, source=source(space))
    to_cells = projection._facets.to_cells
    monkeypatch.setattr(projection._facets, "to_cells", lambda multipliers: -to_cells(multipliers))
    with pytest.raises(ConvergenceError, match="leaves a jump"):
        projection.project(smooth(space))
    monkeypatch.undo()
    monkeypatch.setattr(projection._solver, "solve", flipped(projection._solver.solve))
    q = projection.project(smooth(space))
    assert projection.defect(q).absolute > 1e-3


def flipped(solve):
    def wrong(**arguments):
        return solve(**arguments | {"balance": -arguments["balance"]})

    return wrong


def test_memory_does_not_grow():
    space = make_space("triangle", "RT", 1, 24)
    projection = conserve.FluxProjection(space, source=source(space))
    out = fem.Function(space)
    guesses = [smooth(space, kind) for kind in (0, 1)]

    def run(times):
        for step in range(times):
            projection.project(guesses[step % 2], out=out)
        gc.collect()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = run(20)
    assert run(200) - before < 5_000  # kilobytes
    projection.destroy()


# --- torch ------------------------------------------------------------------------------------------------------------


def random_tensor(size, seed, gradient=True):
    generator = torch.Generator().manual_seed(100 * seed + COMM.rank)
    return torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=gradient)


@pytest.mark.parametrize("prescribed", ["none", "some", "all"])
def test_gradcheck(prescribed):
    space = make_space("triangle", "RT", 2, 2)
    weight = checkerboard(space.mesh, 100.0)
    given = smooth(space, 1)
    facets = boundary_dofs(space)[1]
    choices = {"none": None, "some": (facets[:3], given), "all": given}
    projection = conserve.FluxProjection(
        space, source=ufl.div(given), inverse_permeability=weight, prescribed=choices[prescribed]
    )
    guess = random_tensor(owned(given).size, 1)
    assert torch.autograd.gradcheck(projection, guess, eps=1e-3, atol=1e-9)
    assert torch.autograd.gradgradcheck(projection, guess, eps=1e-3, atol=1e-9)
    if prescribed != "all":  # there the source is not free
        f = random_tensor(projection.source_space.dofmap.index_map.size_local, 2)
        assert torch.autograd.gradcheck(projection, (guess, f), eps=1e-3, atol=1e-9)
        # The map is affine: second derivatives exist, and those of a nonlinear function of it follow.
        assert torch.autograd.gradgradcheck(lambda q, s: projection(q, s) ** 2, (guess, f), eps=1e-4, atol=1e-6)
    projection.destroy()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("closed", [False, True], ids=["free", "closed"])
def test_derivatives_agree_across_ranks(closed):
    """The transpose: for all directions a, b: (J a, b) = (a, J^T b), with sums over the ranks."""
    space = make_space("triangle", "BDM", 1, 6)
    weight = checkerboard(space.mesh, 1e3)
    projection = conserve.FluxProjection(
        space,
        source=ufl.div(smooth(space, 1)),
        inverse_permeability=weight,
        prescribed=smooth(space, 1) if closed else None,
    )
    size = owned(smooth(space)).size
    source_size = projection.source_space.dofmap.index_map.size_local
    guess, f = random_tensor(size, 1), torch.zeros(source_size, dtype=torch.float64, requires_grad=True)
    if closed:  # a source that adds up to the flux through the boundary
        total = fem.Function(projection.source_space)
        total.interpolate(
            fem.Expression(ufl.div(smooth(space, 1)), projection.source_space.element.interpolation_points)
        )
        f = torch.tensor(owned(total), requires_grad=True)
    b = random_tensor(size, 3, gradient=False)
    value = torch.dot(projection(guess, f), b)
    gradient_guess, gradient_f = torch.autograd.grad(value, (guess, f))

    a = random_tensor(size, 4, gradient=False)
    change = projection(guess.detach() + a, f.detach()) - projection(guess.detach(), f.detach())
    forward = COMM.allreduce(float(torch.dot(change, b)))
    backward = COMM.allreduce(float(torch.dot(a, gradient_guess)))
    assert forward == pytest.approx(backward, rel=1e-9, abs=1e-10)
    # A change of the source that adds up to nothing.
    bump = torch.tensor(owned(zero_mean(projection.source_space)))
    change = projection(guess.detach(), f.detach() + bump) - projection(guess.detach(), f.detach())
    forward = COMM.allreduce(float(torch.dot(change, b)))
    backward = COMM.allreduce(float(torch.dot(bump, gradient_f)))
    assert forward == pytest.approx(backward, rel=1e-9, abs=1e-10)
    projection.destroy()


def zero_mean(space):
    bump = fem.Function(space)
    bump.interpolate(lambda x: np.sin(5 * x[0]) + x[1])
    mean = integrate(bump * ufl.dx) / integrate(fem.Constant(space.mesh, 1.0) * ufl.dx)
    bump.x.array[:] -= mean
    return bump


@pytest.mark.parallel([1, 2])
def test_layer_takes_batches_and_single_precision():
    space = make_space("triangle", "RT", 1, 4)
    projection = conserve.FluxProjection(space, source=source(space))
    layer = projection.layer()
    assert list(layer.parameters()) == []
    size = owned(smooth(space)).size
    batch = torch.stack([random_tensor(size, seed, gradient=False) for seed in (1, 2)]).requires_grad_()
    result = layer(batch)
    assert torch.equal(result[1], layer(batch[1]))
    flux = fem.Function(space)
    flux.x.array[:size] = result[0].detach().numpy()
    flux.x.scatter_forward()
    assert projection.defect(flux).absolute < 1e-13
    (gradient,) = torch.autograd.grad((result**2).sum(), batch)
    (one,) = torch.autograd.grad((layer(batch[0]) ** 2).sum(), batch)
    assert torch.allclose(gradient[0], one[0])
    single = batch.detach()[0].to(torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad((layer(single) ** 2).sum(), single)
    assert gradient.dtype == torch.float32
    assert layer(single).dtype == torch.float64
    projection.destroy()


@pytest.mark.parallel([1, 2])
def test_training_through_the_projection_reaches_a_conserving_target():
    """Gradient descent on the guess: the projected flux becomes the nearest conserving flux to a target."""
    space = make_space("triangle", "RT", 1, 4)
    projection = conserve.divergence_free(space)
    target = projection.project(smooth(space, 2))
    wanted = torch.tensor(owned(target))
    guess = torch.zeros_like(wanted, requires_grad=True)
    losses = []
    for _ in range(30):
        loss = ((projection(guess) - wanted) ** 2).sum()
        (gradient,) = torch.autograd.grad(loss, guess)
        losses.append(COMM.allreduce(float(loss.detach())))
        with torch.no_grad():
            guess -= 0.5 * gradient
    assert losses[-1] < 1e-3 * losses[0]
    projection.destroy()
