"""Kernels in C, compiled when first used by the compiler that DOLFINx needs anyway."""

import functools
import hashlib
import importlib.util
import os
import pathlib
import platform
import sys
import tempfile
from types import ModuleType

from mpi4py import MPI

from cffi import FFI

from pdeopt.parallel import on_root
from pdeopt.report import PdeoptError

__all__ = ["build", "load_module"]

# Not -ffast-math: a NaN in a matrix has to stay one.
_FLAGS = ["-std=c11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"]


def build(comm: MPI.Comm, source: pathlib.Path, declarations: str, macros: str = "") -> tuple[str, str]:
    """Compile a file unless a build of it is there, and return the name and the path of the module. Collective: yes.

    Parameters
    ----------
    comm
        Ranks that will use it; the first one compiles, into the folder of ``XDG_CACHE_HOME`` where FFCx keeps its own.
    source
        The file.
    declarations
        Of the types and functions that Python sees.
    macros
        Lines of C before the file.

    Raises
    ------
    PdeoptError
        If the compiler fails.
    """
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "fenics"

    def make() -> tuple[str, str]:
        name = _name(source, declarations, macros)
        return name, _compile(name, source, declarations, macros, folder)

    return on_root(comm, make)


@functools.cache
def load_module(name: str, path: str) -> ModuleType:
    """Import what `build` has made, with its ``ffi`` and ``lib``. Collective: no."""
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@functools.cache
def _name(source: pathlib.Path, declarations: str, macros: str) -> str:
    """Name a build by all that it depends on: a folder of builds may be shared by unlike machines."""
    made_of = [source.read_text(), declarations, macros, *_FLAGS, sys.version, platform.machine()]
    processor = pathlib.Path("/proc/cpuinfo")
    if processor.exists():
        made_of += [line for line in processor.read_text().splitlines() if line.startswith(("flags", "Features"))][:1]
    return f"pdeopt_{source.stem}_{hashlib.sha256(''.join(made_of).encode()).hexdigest()[:16]}"


@functools.cache
def _compile(name: str, source: pathlib.Path, declarations: str, macros: str, folder: pathlib.Path) -> str:
    found = sorted(folder.glob(f"{name}.*.so"))
    if found:
        return str(found[0])
    folder.mkdir(parents=True, exist_ok=True)
    builder = FFI()
    builder.cdef(declarations)
    builder.set_source(name, macros + source.read_text(), extra_compile_args=_FLAGS)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = pathlib.Path(builder.compile(tmpdir=scratch))
            return str(built.rename(folder / built.name))  # at once, for whoever looks meanwhile
    except Exception as error:
        raise PdeoptError(f"{source.name}: the C compiler failed ({error}); set CC to one that works") from error
