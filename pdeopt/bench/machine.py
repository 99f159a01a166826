"""The machine that a benchmark ran on: what its numbers depend on, and nothing that names a person or a path."""

import contextlib
import datetime
import importlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess

import pdeopt
from pdeopt.bench.harness import Row


def machine_record() -> Row:
    """Return cores, memory, versions, commit and date of a run; what cannot be found is None. Collective: no."""
    return {
        "cores": cores(),
        "cpu": cpu_model(),
        "memory [GiB]": memory(),
        "system": platform.system(),
        "python": platform.python_version(),
        "pdeopt": pdeopt.__version__,
        "dolfinx": module_version("dolfinx"),
        "petsc": petsc_version(),
        "mpi": mpi_library(),
        "commit": git_commit(),
        "modified": git_modified(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Return the name of the processor."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory() -> float | None:
    """Return the machine's main memory [GiB]."""
    with contextlib.suppress(ValueError, OSError):
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    return None


def module_version(module: str) -> str | None:
    """Import a module and return its ``__version__``; None if it cannot be imported."""
    try:
        return str(getattr(importlib.import_module(module), "__version__", "version unknown"))
    except (ImportError, OSError, RuntimeError):  # a wheel whose shared libraries do not load raises the last two
        return None


def distribution_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, without importing it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def petsc_version() -> str | None:
    """Return PETSc's version with the scalar type it was built for ("3.25.5 real float64")."""
    if module_version("petsc4py.PETSc") is None:
        return None
    from petsc4py import PETSc

    import numpy as np

    kind = "complex" if np.issubdtype(PETSc.ScalarType, np.complexfloating) else "real"
    version = ".".join(str(part) for part in PETSc.Sys.getVersion())
    return f"{version} {kind} {np.dtype(PETSc.ScalarType).name}"


def petsc_packages() -> dict[str, bool]:
    """Return which of the solvers' packages PETSc was built with; empty without PETSc."""
    if module_version("petsc4py.PETSc") is None:
        return {}
    from petsc4py import PETSc

    names = ("mumps", "superlu_dist", "hypre", "ml", "hpddm", "ptscotch", "parmetis", "cuda")
    return {name: PETSc.Sys.hasExternalPackage(name) for name in names}


def mpi_library() -> str | None:
    """Return the first line of what the MPI library says of itself ("MPICH Version: 5.0.2")."""
    if module_version("mpi4py.MPI") is None:
        return None
    from mpi4py import MPI

    return " ".join(MPI.Get_library_version().splitlines()[0].split())


def git_commit() -> str | None:
    """Return the commit of pdeopt's source checkout; None when it is installed elsewhere, or git is missing."""
    return _git("rev-parse", "HEAD")


def git_modified() -> bool | None:
    """Return whether tracked files differ from the commit; None outside a checkout."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return None if changes is None else changes != ""


def _git(*arguments: str) -> str | None:
    checkout = pathlib.Path(pdeopt.__file__).resolve().parent.parent
    if not (checkout / ".git").exists():  # site-packages may lie inside somebody else's checkout
        return None
    try:
        job = subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return job.stdout.strip() if job.returncode == 0 else None
