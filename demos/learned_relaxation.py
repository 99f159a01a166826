# # Relaxation that learns
#
# Every time step of a diffusion problem is a linear system, and here no two are alike: the diffusivity swings between
# nothing and 10, so that now the mass matrix rules and now the stiffness matrix. Conjugate gradients with SSOR solve
# them all, but the relaxation parameter $\omega$ that needs the fewest iterations moves from 1 to almost 2 and back.
#
# Nobody wants to find that out by hand for each step. Three learners choose $\omega$ before each solve and learn from
# its iterations alone:
#
# - Tsallis-INF, which knows nothing else, and can hope to become as good as the best fixed $\omega$;
# - ChebCB, which fits iterations as polynomials of a context, here the logarithm of the diffusivity, and can become
#   better than any fixed $\omega$;
# - ChebCB with a context that `BanditSOR` draws from the matrix itself, for scripts that know nothing about theirs.
#
# What they do not know beforehand they pay for: the regret is the number of iterations above those of the best fixed
# $\omega$ in hindsight. The method is that of Khodak, Chow, Balcan and Talwalkar, "Learning to relax" (ICLR 2024).
#
# Run it with `mpirun -n 2 python demos/learned_relaxation.py`.

import math
import pathlib

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import matplotlib.figure
import numpy as np

from pdeopt.fem import output
from pdeopt.parallel import on_root, print_root
from pdeopt.plot import plot_fields
from pdeopt.problems import UnsteadyDiffusion
from pdeopt.relaxation.petsc import BanditSettings, BanditSOR

comm = MPI.COMM_WORLD
folder = pathlib.Path(__file__).resolve().parent.parent / "out_learned_relaxation"

# ## The sequence of systems
#
# One period of the diffusivity in 1000 steps of Crank-Nicolson.

heat = UnsteadyDiffusion(comm, 40)
steps = 1000


def log_kappa():
    """Return the context: the logarithm of the diffusivity, bounded from below."""
    return math.log10(max(heat.kappa, 1e-3))


# ## The arms
#
# `BanditSOR` can be chosen by options, `-pc_type python -pc_python_type pdeopt.BanditSOR`. Attached to a solver it
# works before and after each solve only. The residual's own norm decides when a solve is done: the preconditioned one
# would depend on $\omega$.

fixed = {f"omega = {omega:.2f}": omega for omega in (1.0, 1.2, 1.4, 1.5, 1.6, 1.8)}
interval = {"context_low": -3.0, "context_high": 1.0}
arms = {name: BanditSettings("fixed", omega=omega) for name, omega in fixed.items()} | {
    "Tsallis-INF": BanditSettings("tsallis"),
    "ChebCB, diffusivity": BanditSettings("chebyshev", context=log_kappa, **interval),
    "ChebCB, matrix": BanditSettings("chebyshev"),
}
solvers, bandits = {}, {}
for name, settings in arms.items():
    solvers[name], bandits[name] = PETSc.KSP().create(comm), BanditSOR(settings)
    solvers[name].setType("cg")
    solvers[name].setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    solvers[name].setTolerances(rtol=1e-8)
    solvers[name].setInitialGuessNonzero(True)
    solvers[name].setOperators(heat.matrix)
    bandits[name].attach(solvers[name])

# ## March
#
# All arms solve every system from the same start.

iterations = {name: [] for name in arms}
kappa = []
start = heat.solution.duplicate()
for _ in range(steps):
    heat.assemble_step()
    kappa.append(heat.kappa)
    heat.solution.copy(start)
    for name, ksp in solvers.items():
        start.copy(heat.solution)
        ksp.solve(heat.right_hand_side, heat.solution)
        iterations[name].append(ksp.getIterationNumber())
    heat.advance()

totals = {name: sum(counts) for name, counts in iterations.items()}
best = min(fixed, key=totals.get)
for name, total in totals.items():
    print_root(comm, f"{name:20} {total:6} iterations, {total / totals[best]:.3f} of the best fixed omega's")
print_root(comm, bandits["ChebCB, diffusivity"].report)

# ## Pictures, and a file for ParaView

temperature = dolfinx.fem.Function(heat.space, name="temperature")
temperature.x.petsc_vec.array[:] = heat.solution.array_r
temperature.x.scatter_forward()
output.write_fields(folder / "fields", {"temperature": temperature})
plot_fields({"temperature": temperature}, folder / "heat.png")


def draw_curves():
    """Draw what each learner paid and what it chose, on rank 0."""
    time = np.arange(1, steps + 1) * 1e-3
    figure = matplotlib.figure.Figure((9.0, 3.4), dpi=150, layout="constrained")
    paid, choices = figure.subplots(1, 2)
    for name in [name for name in arms if name not in fixed]:
        regret = np.cumsum(np.subtract(iterations[name], iterations[best], dtype=float))
        paid.plot(time, regret, label=name)
    paid.axhline(0.0, color="black", linewidth=0.8)
    paid.set(xlabel="time", ylabel="regret (iterations)", title=f"against the best fixed omega ({best[-4:]})")
    paid.legend(frameon=False)
    bandit = bandits["ChebCB, diffusivity"]
    choices.plot(time, bandit.omegas[np.array(bandit.chosen)], ".", markersize=2, label="omega chosen")
    choices.set(xlabel="time", ylabel="omega", title="ChebCB, diffusivity", ylim=(0.98, 2.0))
    diffusivity = choices.twinx()
    diffusivity.semilogy(time, np.maximum(kappa, 1e-3), color="tab:red", linewidth=1.0)
    diffusivity.set_ylabel("diffusivity", color="tab:red")
    figure.savefig(folder / "regret.png")


on_root(comm, draw_curves)
print_root(comm, f"wrote {folder.name}/: fields for ParaView, heat.png, regret.png")

# ## What must hold

assert all(bandit.report.converged for bandit in bandits.values())
assert totals["ChebCB, diffusivity"] < totals[best]
assert totals["Tsallis-INF"] < 1.1 * totals[best]
