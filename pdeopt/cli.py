"""The command line: ``pdeopt info``, ``pdeopt demo|bench|train NAME``, ``pdeopt run|tune -- SCRIPT``."""

import contextlib
import difflib
import importlib.util
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, NamedTuple, cast

import cyclopts
import rich.markup
import rich.table

import pdeopt
from pdeopt import _cli_scripts
from pdeopt._launchers import clean_environment
from pdeopt.bench import BENCHES, harness, machine, record, table
from pdeopt.bench.case import launch_command
from pdeopt.parallel import launcher_beside_interpreter, on_root
from pdeopt.report import InputError, PdeoptError


class UsageError(InputError):
    """The command line asks for something that does not exist; every rank finds the same."""


TRAINED = {"neural-multigrid": "pdeopt.conjugate_directions.training"}
"""What ``pdeopt train`` knows, and the modules that have a function ``train(folder, seed, comm)``."""


class OptionalPackage(NamedTuple):
    """A package that pdeopt runs without: its module, its distribution, what it gives, how to get it."""

    module: str
    distribution: str
    purpose: str
    pip: str
    conda: str


_WITHOUT_DEPENDENCIES = "pip install --no-deps {} (requirements-nodeps.txt)"
OPTIONAL_PACKAGES = (
    OptionalPackage("torch", "torch", "learned solvers", "pip install 'pdeopt[learn]'", "pytorch"),
    OptionalPackage("pytorch_optimizer", "pytorch_optimizer", "optimisers by name", "pip install 'pdeopt[learn]'",
                    "pytorch_optimizer"),
    OptionalPackage("safetensors", "safetensors", "files of weights", "pip install safetensors", "safetensors"),
    OptionalPackage("gmsh", "gmsh", "mesh generation", "pip install gmsh", "python-gmsh"),
    OptionalPackage("meshio", "meshio", "mesh formats", "pip install meshio", "meshio"),
    OptionalPackage("pyvista", "pyvista", "3D pictures", "pip install pyvista", "pyvista"),
    OptionalPackage("matplotlib", "matplotlib", "plots", "pip install matplotlib", "matplotlib"),
    OptionalPackage("dolfinx_adjoint", "dolfinx-adjoint", "taped gradients",
                    _WITHOUT_DEPENDENCIES.format("dolfinx-adjoint"), "dolfinx-adjoint"),
    OptionalPackage("io4dolfinx", "io4dolfinx", "checkpoints", _WITHOUT_DEPENDENCIES.format("io4dolfinx"),
                    "io4dolfinx"),
    OptionalPackage("cyipopt", "cyipopt-wheels", "IPOPT as a rival", "pip install 'pdeopt[rivals]'", "cyipopt"),
    OptionalPackage("scipy", "scipy", "rivals on one rank", "pip install 'pdeopt[rivals]'", "scipy"),
)  # fmt: skip

app = cyclopts.App(
    name="pdeopt",
    help="PDE-constrained optimisation on DOLFINx and PETSc.",
    version=pdeopt.__version__,
    result_action="return_value",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit status; errors are one line, without traceback.

    Parameters
    ----------
    arguments
        The words after ``pdeopt``; by default those of the process. PETSc sees only what stands after ``--``.

    Collective: yes.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    rank, size = _rank_and_size()
    try:
        status = app(words, console=table.make_console(rank, width=100), exit_on_error=False, print_error=False)
    except (cyclopts.CycloptsError, UsageError) as error:
        if rank == 0:
            sys.stderr.write(f"pdeopt: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except PdeoptError as error:
        if size > 1:
            raise  # perhaps on this rank alone: the hook of pdeopt._startup must end the others
        sys.stderr.write(f"pdeopt: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status)


@app.command
def info() -> int:
    """Show what is installed, what is missing and how to get it, and solve a small Poisson problem as a check.

    The exit status is 0 if the check succeeds.
    """
    rank, size = _rank_and_size()
    console = table.make_console(rank)
    rows = rich.table.Table.grid(padding=(0, 2))
    for label, value in _installation():
        rows.add_row(label, rich.markup.escape(value))
    console.print(rows)
    packages = rich.table.Table("optional", "version", "for", "how to get it", box=None, padding=(0, 2, 0, 0))
    for package in OPTIONAL_PACKAGES:
        if importlib.util.find_spec(package.module) is not None:
            version, remedy = machine.distribution_version(package.distribution) or "found", ""
        else:
            version, remedy = "missing", f"{package.pip}; conda: {package.conda}"
        packages.add_row(package.module, version, package.purpose, rich.markup.escape(remedy))
    console.print("", packages, "", sep="\n")
    for problem in _problems():
        console.print(f"[yellow]warning[/yellow]  {rich.markup.escape(problem)}")
    try:
        seconds, error = _solve_poisson()
    except Exception as caught:  # whatever is wrong with the installation, this is where the user wants to read it
        if size > 1:
            raise
        console.print(f"[red]check FAILED[/red]  {type(caught).__name__}: {rich.markup.escape(str(caught))}")
        return 1
    good = error < 1e-10
    verdict = "[green]check ok[/green]" if good else "[red]check FAILED[/red]"
    console.print(f"{verdict}  Poisson problem on {size} rank(s), error {error:.1e}, {seconds:.2f} s")
    return 0 if good else 1


@app.command
def demo(
    name: str | None = None,
    /,
    *arguments: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True, show=False)],
    ranks: Annotated[int, cyclopts.Parameter(name=["-n", "--ranks"])] = 1,
) -> int:
    """Run a demo of the source checkout, or list the demos.

    Words that are not options of this command go to the demo; so does everything after ``--``.

    Parameters
    ----------
    name
        The demo, as the list shows it; without a name the demos are listed.
    ranks
        Number of MPI ranks; they are started by the mpiexec that belongs to this Python.
    """
    rank, size = _rank_and_size()
    demos = _demos()
    if name is None:
        rows = rich.table.Table.grid(padding=(0, 2))
        for known, script in demos.items():
            rows.add_row(known, rich.markup.escape(_title(script)))
        table.make_console(rank).print(rows)
        return 0
    if size > 1:
        raise UsageError(f"this command starts MPI itself: pdeopt demo {name} -n {size}")
    script = demos[_known("demo", name, demos)]
    # One rank needs no launcher, so that a demo also runs where only Python is installed.
    command = [sys.executable] if ranks == 1 else launch_command(ranks)
    command += [str(script), *arguments]
    return subprocess.run(command, env=clean_environment(os.environ), check=False).returncode


# For the list of commands: `pdeopt.__main__` hands these two on before this file is loaded.
@app.command(help_flags=[])
def run(*words: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True, show=False)]) -> None:
    """Run a script that stays as it is, with PETSc options laid over its own: pdeopt run --options "..." -- COMMAND."""
    _cli_scripts.main(["run", *words])


@app.command(help_flags=[])
def tune(*words: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True, show=False)]) -> None:
    """Run a script as it is, and find faster solvers for its linear systems: pdeopt tune -- COMMAND."""
    _cli_scripts.main(["tune", *words])


@app.command
def bench(
    name: str | None = None,
    /,
    *petsc_options: Annotated[str, cyclopts.Parameter(show=False)],
    quick: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    json: pathlib.Path | None = None,
    repeat: int | None = None,
    markdown: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Run a method beside its strongest rivals and print what each needs, or list the benchmarks.

    What stands after ``--`` goes to PETSc as its options. The exit status does not depend on the targets.

    Parameters
    ----------
    name
        The benchmark; without a name they are listed.
    quick
        Small sizes, for a first look: not a result.
    json
        File that keeps the record. A full run with it draws the sealed test seed and counts one more look; every
        other run uses validation seed 0.
    repeat
        Timed repeats of every arm; by default 5, or 2 with --quick.
    markdown
        Print the tables as Markdown.
    """
    rank, _ = _rank_and_size()
    if name is None:
        table.make_console(rank).print("\n".join(BENCHES))
        return 0
    module = BENCHES[_known("benchmark", name, BENCHES)]
    if petsc_options and not petsc_options[0].startswith("-"):
        raise UsageError(f"unexpected word {petsc_options[0]!r}: options for PETSc stand after --")
    repeat = (2 if quick else 5) if repeat is None else repeat
    _run_bench(module, name, petsc_options, quick, repeat, json, markdown)
    return 0


@app.command
def train(name: str | None = None, /, *, output: pathlib.Path = pathlib.Path(), seed: int = 0) -> int:
    """Train the networks of a method anew, on all ranks, or list what can be trained.

    Parameters
    ----------
    name
        The method; without a name they are listed.
    output
        Folder for the weights, each file with a model card in its header.
    seed
        Of the training data and of the first weights.
    """
    rank, _ = _rank_and_size()
    if name is None:
        table.make_console(rank).print("\n".join(TRAINED))
        return 0
    module = TRAINED[_known("training", name, TRAINED)]
    from mpi4py import MPI

    for path, report in importlib.import_module(module).train(output, seed, MPI.COMM_WORLD):
        table.make_console(rank).print(f"{path}\n{report}\n", markup=False, highlight=False)
    return 0


def _run_bench(
    module: str, name: str, petsc_options: Sequence[str], quick: bool, repeat: int, path: pathlib.Path | None,
    as_markdown: bool,
) -> None:  # fmt: skip
    """Run, keep and print a benchmark. Collective: yes."""
    import petsc4py
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    petsc4py.init(["pdeopt", *petsc_options])  # PETSc reads options only once, before its first import
    sealed = path is not None and not quick
    commit = on_root(comm, machine.git_commit)
    seed = record.sealed_seed(name, pdeopt.__version__, commit) if sealed else 0
    looks = on_root(comm, lambda: 0 if path is None else record.previous_looks(path)) + sealed
    settings = harness.BenchSettings(quick=quick, repeat=repeat, seed=seed)
    result = cast(harness.Bench, importlib.import_module(module)).run(settings, comm)

    def publish() -> None:
        entry = record.make_record(result, settings, machine.machine_record(), looks)
        if path is not None:
            record.write_record(path, entry)
        if as_markdown:
            sys.stdout.write(table.markdown(entry))
        else:
            table.print_tables(entry, table.make_console())

    on_root(comm, publish)


def _installation() -> Iterator[tuple[str, str]]:
    """Yield the lines of ``pdeopt info`` on what a solve depends on."""
    yield "pdeopt", pdeopt.__version__
    yield "python", f"{sys.version.split()[0]} ({sys.executable})"
    yield "dolfinx", machine.module_version("dolfinx") or "missing"
    yield "petsc", machine.petsc_version() or "missing"
    packages = machine.petsc_packages()
    yield "  with", ", ".join(name for name, present in packages.items() if present) or "-"
    yield "  without", ", ".join(name for name, present in packages.items() if not present) or "-"
    yield "mpi", machine.mpi_library() or "missing"
    yield "launcher", str(launcher_beside_interpreter() or shutil.which("mpiexec") or "missing")
    yield "threads per rank", f"{os.environ.get('OMP_NUM_THREADS', 'unset')} on {machine.cores()} cores"
    yield "device", _device()
    yield "C compiler", _compiler() or "missing"


def _problems() -> Iterator[str]:
    """Yield what will go wrong later, each with its remedy."""
    for module, pip, conda in (
        ("mpi4py", "mpi4py", "mpi4py mpich"),
        ("petsc4py", "dolfinx-solver-real", "petsc4py"),
        ("dolfinx", "dolfinx-solver-real", "fenics-dolfinx"),
    ):
        if importlib.util.find_spec(module) is None:
            yield f"{module} is missing: pip install {pip}, or conda install -c conda-forge {conda}"
    ours, on_path = launcher_beside_interpreter(), shutil.which("mpirun")
    if ours is None:
        yield f"no mpiexec beside {sys.executable}: use the one of the MPI that mpi4py was built with"
    elif on_path is not None and pathlib.Path(on_path).resolve().parent != ours.resolve().parent:
        yield f"mpirun on the PATH is {on_path}, of another MPI perhaps: use {ours}"
    if _compiler() is None:
        remedy = "apt install gcc, or conda install -c conda-forge c-compiler"
        yield f"no C compiler, and DOLFINx compiles its forms: {remedy}"


def _device() -> str:
    """Return where networks can run; torch is imported only if it is installed."""
    if importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    return f"cuda ({torch.cuda.get_device_name()}), cpu" if torch.cuda.is_available() else "cpu"


def _compiler() -> str | None:
    """Return the path of the C compiler that cffi will call for FFCx."""
    words = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    return shutil.which(words[0])


def _solve_poisson() -> tuple[float, float]:
    """Solve a Poisson problem whose solution the elements contain; return seconds and error. Collective: yes."""
    from mpi4py import MPI
    from petsc4py import PETSc

    import numpy as np
    import ufl
    from dolfinx import default_scalar_type, fem, mesh
    from dolfinx.fem.petsc import LinearProblem

    start = time.perf_counter()
    domain = mesh.create_unit_square(MPI.COMM_WORLD, 8, 8)
    space = fem.functionspace(domain, ("Lagrange", 1))
    exact = fem.Function(space)
    exact.interpolate(lambda x: 1 + x[0] + 2 * x[1])
    domain.topology.create_connectivity(1, 2)
    facets = mesh.exterior_facet_indices(domain.topology)
    boundary = fem.dirichletbc(exact, fem.locate_dofs_topological(space, 1, facets))
    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
    load = fem.Constant(domain, default_scalar_type(0))
    problem = LinearProblem(
        ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx, ufl.inner(load, v) * ufl.dx, bcs=[boundary],
        petsc_options_prefix="pdeopt_info_", petsc_options={"ksp_type": "preonly", "pc_type": "lu"},
    )  # fmt: skip
    solution: Any = problem.solve()
    options = PETSc.Options()
    for name in ("ksp_type", "pc_type", "ksp_error_if_not_converged"):  # DOLFINx leaves its options behind
        options.delValue(f"pdeopt_info_{name}")
    error = np.max(np.abs(solution.x.array - exact.x.array), initial=0.0)
    return time.perf_counter() - start, float(domain.comm.allreduce(error, op=MPI.MAX))


def _demos() -> dict[str, pathlib.Path]:
    """Return the demos of the source checkout that this package, or else the working directory, belongs to."""
    for root in (pathlib.Path(pdeopt.__file__).resolve().parent.parent, pathlib.Path.cwd()):
        scripts = {path.stem: path for path in sorted((root / "demos").glob("*.py")) if not path.stem.startswith("_")}
        if scripts:
            return scripts
    raise UsageError("no demos here: they are in the folder demos/ of a source checkout of pdeopt")


def _title(script: pathlib.Path) -> str:
    """Return the title of a demo: its first line of prose (jupytext comment or docstring)."""
    for line in script.read_text().splitlines():
        words = line.strip("#\"' ")
        if words and not line.startswith("#!") and set(words) - set("-=+% "):
            return words
    return ""


def _known(kind: str, name: str, names: Collection[str]) -> str:
    """Return ``name`` if it is one of ``names``; otherwise raise a `UsageError` that names the nearest."""
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    advice = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
    raise UsageError(f"no {kind} {name!r}: {advice}")


def _rank_and_size() -> tuple[int, int]:
    """Return this process's place in the job; a single process where mpi4py is missing. Collective: no."""
    with contextlib.suppress(ImportError):
        from mpi4py import MPI

        return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    return 0, 1
