"""The example of the page on checkpoints: a heat equation with random sources that stops, and goes on elsewhere."""

import pathlib
import shutil
import tempfile

from mpi4py import MPI

import dolfinx
import dolfinx.fem.petsc
import numpy as np
import ufl

from pdeopt.fem.checkpoint import load_state, save_state
from pdeopt.parallel import on_root, print_root, random_stream

comm = MPI.COMM_WORLD
folder = on_root(comm, lambda: pathlib.Path(tempfile.mkdtemp()))
dt = 0.01


# [run]
def run(folder: pathlib.Path, last_step: int) -> dolfinx.fem.Function:
    mesh = dolfinx.mesh.create_unit_square(comm, 16, 16)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 2))
    temperature = dolfinx.fem.Function(space)
    strength = dolfinx.fem.Constant(mesh, 0.0)
    noise = random_stream("sources", seed=1)
    step = 0

    state = load_state(folder, comm)  # None if there is nothing to go on from
    if state is not None:
        state.restore({"temperature": temperature}, {"noise": noise})
        step = state.values["step"]
        print_root(comm, f"goes on from step {step}, t = {state.values['time']:.2f}, saved by {state.ranks} ranks")

    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
    equation = (u - temperature) / dt * v * ufl.dx + ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    equation -= strength * v * ufl.dx
    problem = dolfinx.fem.petsc.LinearProblem(
        *ufl.system(equation),
        petsc_options_prefix="heat_",
        petsc_options={"ksp_type": "cg", "pc_type": "jacobi", "ksp_rtol": 1e-10},  # the same bits in every run
    )
    while step < last_step:
        strength.value[...] = noise.standard_normal()
        temperature.x.array[:] = problem.solve().x.array
        step += 1
        if step % 10 == 0:
            save_state(
                folder,
                {"temperature": temperature},
                values={"step": step, "time": step * dt},
                streams={"noise": noise},
            )
    print_root(comm, f"step {step}: converged (reason {problem.solver.getConvergedReason()})")
    return temperature
    # [end]


run(folder / "stopped", 25)
temperature = run(folder / "stopped", 40)
uninterrupted = run(folder / "through", 40)
same = comm.allreduce(np.array_equal(temperature.x.array, uninterrupted.x.array), op=MPI.LAND)
print_root(comm, f"the same to the last bit as without the stop: {same}")

# [read]
state = load_state(folder / "stopped", comm)
mesh = state.read_mesh().mesh
temperature = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("Lagrange", 2)))
state.restore({"temperature": temperature})
largest = comm.allreduce(temperature.x.array.max(), op=MPI.MAX)
print_root(comm, f"{state.path.name}: step {state.values['step']}, largest value {largest:.6f}")
# [end]

if comm.rank == 0:
    for path in sorted((folder / "stopped").iterdir()):
        print(path.name, "with", ", ".join(sorted(item.name for item in path.iterdir())), flush=True)
    shutil.rmtree(folder)
assert same
