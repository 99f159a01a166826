# # Seepage under a dam, in soil that nobody knows exactly
#
# A dam stands on silt with lenses of gravel, which conducts water a thousand times better. The hydraulic head $h$ obeys
#
# $$ -\nabla\cdot(k\,\nabla h) = 0, \qquad h = 10\,\mathrm{m} \text{ under the reservoir}, \quad h = 0 \text{ behind the
# dam}, $$
#
# and nothing flows through the dam's base, the rock below and the far sides. Borings tell where the lenses are, but not
# what they conduct: each lens has a conductivity of its own, log-normal, and the silt varies from place to place. How
# much water seeps through? 16 samples of the soil answer that, and each is a linear system with another matrix.
#
# PETSc's algebraic multigrid (GAMG) solves them. Two things do better here, each by a line of options: neural multigrid
# in its place, by aggregates or on the lattice of the mesh; and, around it, conjugate directions that keep the slow
# modes of one sample, which are those of the lenses, for the next one.
#
# Run it with `mpirun -n 2 python demos/seepage_under_a_dam.py`.

import pathlib
import time

from mpi4py import MPI

import dolfinx
import numpy as np
import petsctools
import ufl
from dolfinx import fem
from dolfinx.fem.petsc import LinearProblem

from pdeopt.fem import output
from pdeopt.parallel import print_root, random_stream
from pdeopt.plot import plot_convergence, plot_fields

comm = MPI.COMM_WORLD
folder = pathlib.Path(__file__).resolve().parent.parent / "out_seepage_under_a_dam"

# ## The soil
#
# 80 m wide and 30 m deep, conductivities in metres a day. All ranks draw the same numbers and evaluate them where their
# cells are.

mesh = dolfinx.mesh.create_rectangle(comm, [[-40.0, -30.0], [40.0, 0.0]], [288, 108])
heads, cellwise = fem.functionspace(mesh, ("Lagrange", 1)), fem.functionspace(mesh, ("DG", 0))
x, y = cellwise.tabulate_dof_coordinates()[:, :2].T
geology = random_stream("demo.geology", 0)
middles = geology.uniform([-36.0, -27.0], [36.0, -3.0], (16, 2))
half_axes = geology.uniform([3.0, 0.6], [8.0, 1.6], (16, 2))
lenses = [((x - a) / c) ** 2 + ((y - b) / d) ** 2 < 1.0 for (a, b), (c, d) in zip(middles, half_axes, strict=True)]
k = fem.Function(cellwise)


def draw_soil(stream):
    """Set the conductivity to a sample: 0.1 m/day in the silt, 100 m/day in the gravel, both log-normal around that."""
    waves = zip(stream.normal(0.0, [0.15, 0.4], (8, 2)), stream.uniform(0.0, 2.0 * np.pi, 8), strict=True)
    k.x.array[:] = 0.1 * np.exp(sum(0.4 * np.cos(p * x + q * y + phase) for (p, q), phase in waves))
    for lens in lenses:
        k.x.array[lens] = 100.0 * np.exp(0.7 * stream.standard_normal())


# ## One equation, five solvers
#
# GAMG with its defaults interpolates across the rims of the lenses; a threshold, if one knows that, keeps it from doing
# so. Neural multigrid needs no constant. Where it is told the function space, it finds out that the unknowns lie on a
# lattice. `ksp_dcd_price` 0 keeps seconds out of the decision to give up and hand over to a classical solver, so that
# every run takes the same iterations.

h, v = ufl.TrialFunction(heads), ufl.TestFunction(heads)
a = k * ufl.inner(ufl.grad(h), ufl.grad(v)) * ufl.dx
sides = {10.0: lambda x: np.isclose(x[1], 0.0) & (x[0] <= -8.0), 0.0: lambda x: np.isclose(x[1], 0.0) & (x[0] >= 8.0)}
bcs = [fem.dirichletbc(level, fem.locate_dofs_geometrical(heads, side), heads) for level, side in sides.items()]
gamg = {"pc_type": "gamg"}
multigrid = {"pc_type": "python", "pc_python_type": "pdeopt.NeuralMultigrid"}
directions = {"ksp_type": "python", "ksp_python_type": "pdeopt.DeepConjugateDirections", "ksp_dcd_price": 0}
arms = {
    "GAMG": gamg,
    "GAMG, threshold 0.02": gamg | {"pc_gamg_threshold": 0.02},
    "GAMG, recycling": gamg | directions | {"ksp_dcd_recycle": 20},
    "multigrid, aggregates": multigrid,
    "multigrid, lattice": multigrid | {"pc_nmg_coordinates": heads},
}
common = {"ksp_type": "cg", "ksp_rtol": 1e-8, "ksp_norm_type": "unpreconditioned", "ksp_error_if_not_converged": True}
right, problems = fem.Constant(mesh, 0.0) * v * ufl.dx, {}
for number, (name, options) in enumerate(arms.items()):
    prefix = f"seepage_{number}_"
    problems[name] = LinearProblem(a, right, bcs=bcs, petsc_options_prefix=prefix, petsc_options={})
    petsctools.set_from_options(problems[name].solver, parameters=common | options, options_prefix=prefix)

# ## 16 samples
#
# The water that seeps through, for each metre of the dam, is $\int k |\nabla h|^2 / (10\,\mathrm{m})$.

iterations, seconds, residuals = ({name: [] for name in arms} for _ in range(3))
head = problems["GAMG"].u
discharge = fem.form(k * ufl.inner(ufl.grad(head), ufl.grad(head)) / 10.0 * ufl.dx)
seepage = []
samples = random_stream("demo.samples", 0)
for _ in range(16):
    draw_soil(samples)
    for name, problem in problems.items():
        comm.Barrier()
        started = time.perf_counter()
        problem.solve()
        seconds[name].append(time.perf_counter() - started)
        iterations[name].append(problem.solver.getIterationNumber())
        rest = problem.b - problem.A * problem.x
        residuals[name].append(rest.norm() / problem.b.norm())
    seepage.append(comm.allreduce(fem.assemble_scalar(discharge), op=MPI.SUM))
print_root(comm, f"{heads.dofmap.index_map.size_global} unknowns; iterations of samples 1, 2, 4, 8, 16:")
for name, counts in iterations.items():
    shown = " ".join(f"{counts[number]:4}" for number in (0, 1, 3, 7, 15))
    median, worst = float(np.median(seconds[name])), max(residuals[name])
    print_root(comm, f"{name:22}{shown}   median {median:.3f} s with assembly   true residual <= {worst:.1e}")
print_root(comm, problems["multigrid, lattice"].solver.getPC().getPythonContext().report)
print_root(comm, problems["GAMG, recycling"].solver.getPythonContext().report)
low, middle, high = np.quantile(seepage, [0.1, 0.5, 0.9])
print_root(comm, f"seepage: {middle:.2f} m^2/day in the median, {low:.2f} to {high:.2f} in 8 cases of 10")

# ## Pictures, and files for ParaView

logarithm = fem.Function(cellwise)
logarithm.x.array[:] = np.log10(k.x.array)
output.write_fields(folder / "fields", {"head": head, "log10_conductivity": logarithm})
plot_fields({"log10 of conductivity (m/day)": logarithm, "head (m)": head}, folder / "fields.png", length_unit="m")
totals = {name: np.cumsum(counts) for name, counts in iterations.items()}
plot_convergence(totals, folder / "convergence.png", xlabel="sample", ylabel="iterations so far", comm=comm)
print_root(comm, f"wrote {folder.name}/: fields for ParaView, fields.png, convergence.png")

# ## What must hold

assert all(residual <= 1.1e-8 for values in residuals.values() for residual in values)
assert 2 * sum(iterations["multigrid, aggregates"]) < sum(iterations["GAMG"])
assert 2 * sum(iterations["multigrid, lattice"]) < sum(iterations["GAMG"])
assert 2 * sum(iterations["GAMG, recycling"][4:]) < sum(iterations["GAMG"][4:])
