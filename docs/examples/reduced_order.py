"""The examples of the page on reduced-order models: a hyper-reduced model, its SNES, local bases, a control problem."""

from mpi4py import MPI

import dolfinx

from pdeopt.fem import forms
from pdeopt.parallel import print_root
from pdeopt.problems import BratuControl, MovingSource
from pdeopt.reduced_order import (
    Certificate,
    CoordinateInterpolation,
    FullResidual,
    HyperReducedSystem,
    InnerProduct,
    ReducedControl,
    ReducedModel,
    ReducedNewton,
    ReducedSettings,
    Snapshots,
    empirical_cubature,
    minimise_by_model,
    predicted_gain,
    proper_orthogonal_decomposition,
    sampled_stability,
)

comm = MPI.COMM_WORLD

# [snapshots]
case = MovingSource(dolfinx.mesh.create_unit_square(comm, 32, 32))  # u, residual, bcs, and a solver
solver = case.solver()
snapshots = Snapshots(InnerProduct(case.space, "h1_seminorm", case.bcs), parameter_size=3)
for parameter in case.parameters(40, "guide.training"):
    case.set_parameter(parameter)
    solver.solve()
    snapshots.append(case.u, parameter)
basis = proper_orthogonal_decomposition(snapshots, modes=20)
# [end]


# [model]
def training_states():
    """Set the parameters and the state of each snapshot in turn."""
    for column, parameter in zip(snapshots.columns.T, snapshots.parameters, strict=True):
        case.set_parameter(parameter)
        forms.set_function(case.u, column)
        yield


cubature = empirical_cubature(case.residual, case.u, basis, training_states(), tolerance=1e-4)
stability = sampled_stability(case.residual, case.u, basis.inner_product, training_states(), case.bcs)
interpolation = CoordinateInterpolation(snapshots.parameters, basis.coordinates(snapshots.columns))
model = ReducedModel(
    case.u,
    basis,
    HyperReducedSystem(case.residual, case.u, basis, cubature, bcs=case.bcs),
    start=lambda: interpolation(case.parameter()),
    certificate=Certificate(FullResidual(case.residual, case.u, basis, case.bcs), stability),
)
case.set_parameter(case.parameters(1, "guide.unseen")[0])
report = model.solve()  # sets u
print_root(comm, f"{cubature.size} cells of {2 * 32 * 32}, {basis.size} modes\n{report}\n")
# [end]

# [snes]
reduced = ReducedNewton(ReducedSettings(model, tolerance=0.02))
solver.solver.setType("python")
solver.solver.setPythonContext(reduced)
for parameter in case.parameters(10, "guide.unseen"):
    case.set_parameter(parameter)
    solver.solve()
print_root(comm, f"accepted {reduced.counts.accepted} of {reduced.counts.proposals}; {reduced.counts.fallbacks}\n")
# [end]

# [gain]
gain = predicted_gain(snapshots.gram(), clusters=4, modes=5)
print_root(comm, f"local over global error at {gain.modes} modes: {gain.ratio:.2f}, worthwhile: {gain.worthwhile}\n")
# [end]

# [control]
problem = BratuControl(dolfinx.mesh.create_unit_square(comm, 32, 32), alpha=1e-3).problem
control_model = ReducedControl(problem)
report = minimise_by_model(control_model, rtol=1e-6)  # sets state, control and adjoint
print_root(comm, f"{report}\n")
# [end]

# [error]
control = control_model.create_vector()
control_model.get_control(control)
control.scale(1.1)
answer = control_model(control)
error = answer.error
print_root(comm, f"gradient wrong by at most {error.bound:.2e}, and at least {error.computed - error.remainder:.2e}")
print_root(comm, f"value {answer.value:.6e}, wrong by at most {error.value_bound:.1e}")
# [end]
