# # Goal-oriented adaptivity on an L-shape
#
# At the inner corner of an L-shaped domain the gradient of a solution is infinite. A uniform mesh pays for that
# everywhere: whatever the degree of its elements, the error of any functional J falls like $h^{4/3}$ only. Here the
# mesh follows the question instead. With the residual F of the equation and the adjoint solution z,
#
# $$ J(u) - J(u_h) \approx -F(u_h; z - i_h z), $$
#
# which says how large the error is, with its sign, and which cells it comes from. We ask for the mean of the harmonic
# function $r^{2/3} \sin(2 \theta / 3)$ over a small box at the corner. Its exact value is known, so we see what the
# estimate is worth. Then the same is done for an optimal control problem, where the error of the least objective is
# estimated from the residuals of state equation, gradient and adjoint equation together.
#
# Run it with `mpirun -n 2 python demos/l_shape.py`. With mmgpy installed (`pip install 'pdeopt[remesh]'`) a third
# family of meshes appears: those that Mmg makes anew from a metric, instead of dividing cells.

import importlib.util
import pathlib

from mpi4py import MPI

import dolfinx
import dolfinx.fem.petsc
import numpy as np
import ufl

from pdeopt.control.goal import estimate_objective_error
from pdeopt.fem import output
from pdeopt.fem.adapt import mark_doerfler, refine_mesh
from pdeopt.fem.goal import estimate_goal_error
from pdeopt.fem.metric import goal_metric
from pdeopt.fem.remesh import remesh
from pdeopt.parallel import on_root, print_root
from pdeopt.plot import plot_fields
from pdeopt.problems.l_shape import REFERENCE_OBJECTIVE, LShapeControl, LShapePoisson, l_shape_mesh, singular_function

# ## The problem in UFL
#
# The mesh comes with tags: the box at the corner, the two edges that meet there, and the rest of the boundary. They
# survive refinement and remeshing.

comm = MPI.COMM_WORLD
exact_mean = LShapePoisson(l_shape_mesh(comm)).exact_goals["box mean"]


def solve_and_estimate(data):
    """Return the solution with quadratic elements, and the estimate of the error of its mean over the box."""
    mesh, space = data.mesh, dolfinx.fem.functionspace(data.mesh, ("Lagrange", 2))
    dx = ufl.Measure("dx", mesh, subdomain_data=data.cell_tags)
    ds = ufl.Measure("ds", mesh, subdomain_data=data.facet_tags, metadata={"quadrature_degree": 10})
    u, v = dolfinx.fem.Function(space, name="solution"), ufl.TestFunction(space)
    flux = ufl.inner(ufl.grad(singular_function(ufl.SpatialCoordinate(mesh))), ufl.FacetNormal(mesh))
    residual = ufl.inner(ufl.grad(u), ufl.grad(v)) * dx - flux * v * ds(data.tag("outer"))
    edges = np.concatenate([data.facet_tags.find(data.tag(name)) for name in ("right edge", "lower edge")])
    bcs = [dolfinx.fem.dirichletbc(0.0, dolfinx.fem.locate_dofs_topological(space, 1, edges), space)]
    options = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}
    a, L = ufl.system(ufl.replace(residual, {u: ufl.TrialFunction(space)}))
    dolfinx.fem.petsc.LinearProblem(a, L, bcs=bcs, u=u, petsc_options_prefix="demo_", petsc_options=options).solve()
    return u, estimate_goal_error(16.0 * u * dx(data.tag("box")), residual, u, bcs)


# ## Three families of meshes

families = {
    "uniform": lambda data, u, estimate: refine_mesh(data),
    "refined where the estimate says": lambda data, u, estimate: refine_mesh(
        data, mark_doerfler(estimate.indicators, 0.5)
    ),
}
if importlib.util.find_spec("mmgpy"):
    families["remeshed by Mmg from a metric"] = lambda data, u, estimate: remesh(
        data, goal_metric(estimate.indicators, u, 2 * data.mesh.topology.index_map(2).size_global)
    )
curves = {}
for family, next_mesh in families.items():
    data, curve = l_shape_mesh(comm), []
    while True:
        solution, estimate = solve_and_estimate(data)
        error = exact_mean - estimate.value
        curve.append((solution.function_space.dofmap.index_map.size_global, abs(error), estimate.error / error))
        if curve[-1][0] > 1500:
            break
        data = next_mesh(data, solution, estimate)
    curves[family] = np.array(curve)
    print_root(comm, f"{family}: {len(curve)} meshes, {curve[-1][0]} unknowns, error {curve[-1][1]:.2e}, "
                     f"estimate / error {curve[-1][2]:.2f}")  # fmt: skip
    if family.startswith("refined"):
        adapted = solution

# ## The same for an optimum
#
# Minimise $\tfrac12 \int (y - 1)^2 + \tfrac{\alpha}{2} \int u^2$ subject to $-\Delta y = u$, $y = 0$ on the boundary.

data = l_shape_mesh(comm)
for _ in range(4):
    case = LShapeControl(data)
    report = case.problem.solve(method="direct")
    optimum = estimate_objective_error(case.problem)
    error = REFERENCE_OBJECTIVE - optimum.value
    ratio = optimum.error / error
    print_root(comm, f"least objective {optimum.value:.6f}, error {error:.1e}, estimate / error {ratio:.3f}")
    data = refine_mesh(data, mark_doerfler(optimum.indicators, 0.5))
print_root(comm, report)

# ## Pictures, and files for ParaView

folder = pathlib.Path(__file__).resolve().parent.parent / "out_l_shape"
output.write_fields(folder / "fields", {"solution": adapted, "state": case.problem.state, "control": case.control})
plot_fields(
    {"solution (mesh for its mean at the corner)": adapted, "control, mesh for the objective": case.control},
    folder / "l_shape.png",
    title="Meshes that follow a question",
    show_edges=True,
)


def draw():
    """Draw the errors over the unknowns."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    for (family, curve), marker in zip(curves.items(), "osv", strict=False):
        axes.loglog(curve[:, 0], curve[:, 1], marker=marker, markersize=4, label=family)
    axes.set(xlabel="unknowns", ylabel="error of the mean over the box")
    axes.xaxis.set_minor_formatter("")
    axes.grid(True, color="0.85")
    axes.legend(frameon=False)
    figure.savefig(folder / "convergence.png", dpi=200)


on_root(comm, draw)
print_root(comm, f"wrote {folder.name}/: fields for ParaView, l_shape.png, convergence.png")

uniform, refined = curves["uniform"], curves["refined where the estimate says"]
assert 0.5 <= refined[-3:, 2].min() <= refined[-3:, 2].max() <= 2.0
assert refined[-1, 1] < 0.02 * uniform[-1, 1]
assert 0.9 <= ratio <= 1.1
