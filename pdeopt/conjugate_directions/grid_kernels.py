"""The kernels of multigrid on a lattice, compiled when first used by the C compiler that DOLFINx needs anyway."""

import functools
import hashlib
import importlib.util
import os
import pathlib
import platform
import sys
import tempfile
from typing import Any, NamedTuple

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
from cffi import FFI

from pdeopt.parallel import on_root
from pdeopt.report import PdeoptError

__all__ = ["Kernels", "load_kernels"]

_SOURCE = pathlib.Path(__file__).with_name("grid_kernels.c")
# Not -ffast-math: a NaN in a matrix has to stay one.
_FLAGS = ["-std=c11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"]
_DECLARATIONS = """
typedef struct { int nz, ny, nx, hz, used; } Lattice;
void residual(Lattice g, int first, int last, const REAL *A, const REAL *sums, const REAL *b, const REAL *x,
              REAL *r);
void forward(Lattice g, int first, int last, const REAL *U, const REAL *inverse, const REAL *r, REAL *y);
void backward(Lattice g, int first, int last, const REAL *U, const REAL *inverse, const REAL *y, REAL *z,
              REAL *x);
void hand_on(Lattice g, const REAL *U, const REAL *y, REAL *out);
long factorise(Lattice g, int first, int last, const REAL *A, const REAL *diagonal, const REAL *keep, REAL *U,
               REAL *inverse);
void predict(Lattice g, int units, const REAL *A, const REAL *W, const REAL *b, const REAL *v, REAL c,
             REAL *keep);
void sort_by_parity(Lattice g, Lattice coarse, const REAL *A, REAL *sorted);
void weigh(Lattice g, Lattice coarse, const REAL *sorted, REAL *W);
void project(Lattice g, Lattice coarse, const REAL *sorted, const REAL *W, REAL *Ac);
void restrict_to(Lattice g, Lattice coarse, int first, int last, const REAL *W, const REAL *r, REAL *rc);
void interpolate(Lattice g, Lattice coarse, int first, int last, const REAL *W, const REAL *xc, REAL *x);
typedef struct {
    Lattice lattice;
    const REAL *stencils, *sums, *factors, *inverse, *weights;
    REAL *right, *solution, *rest, *before;
    int visits;
    const REAL *lengths;
} Level;
void cycle(const Level *levels, int count, const REAL *dense, int again);
int find_used(Lattice g, const REAL *A, REAL least);
long find_entries(long rows, const int *indptr, const long *from, const long *to, long span, const int *half,
                  const long *start, const long *size, int *entries, long *places, int *used);
void gather(long count, const int *sources, const int *places, const double *values, REAL *out);
void scatter(long count, const int *sources, const int *places, const REAL *values, double *out);
"""


class Kernels(NamedTuple):
    """Compiled kernels of one floating-point type.

    Parameters
    ----------
    library
        Functions of ``grid_kernels.c``.
    pointer
        Makes a pointer from a contiguous array, which it keeps alive.
    new
        Makes a C array of structures from a list of dictionaries; what they point to must be kept alive.
    null
        The pointer to nothing.
    dtype
        ``float32`` or ``float64``.
    """

    library: Any
    pointer: Any
    new: Any
    null: Any
    dtype: npt.DTypeLike


@functools.cache
def _name(dtype: np.dtype[Any]) -> str:
    """Name a build by all that it depends on: a folder of builds may be shared by unlike machines."""
    made_of = [_SOURCE.read_text(), _DECLARATIONS, *_FLAGS, dtype.name, sys.version, platform.machine()]
    processor = pathlib.Path("/proc/cpuinfo")
    if processor.exists():
        made_of += [line for line in processor.read_text().splitlines() if line.startswith(("flags", "Features"))][:1]
    return f"pdeopt_grid_{hashlib.sha256(''.join(made_of).encode()).hexdigest()[:16]}"


@functools.cache
def _build(name: str, dtype: np.dtype[Any], folder: pathlib.Path) -> str:
    """Compile unless a build of that name is there, and return its path."""
    found = sorted(folder.glob(f"{name}.*.so"))
    if found:
        return str(found[0])
    folder.mkdir(parents=True, exist_ok=True)
    real, modulus = ("float", "fabsf") if dtype == np.float32 else ("double", "fabs")
    builder = FFI()
    builder.cdef(_DECLARATIONS.replace("REAL", real))
    builder.set_source(
        name, f"#define REAL {real}\n#define FABS {modulus}\n{_SOURCE.read_text()}", extra_compile_args=_FLAGS
    )
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = pathlib.Path(builder.compile(tmpdir=scratch))
            return str(built.rename(folder / built.name))  # at once, for whoever looks meanwhile
    except Exception as error:
        raise PdeoptError(f"multigrid on grids: the C compiler failed ({error}); set CC to one that works") from error


@functools.cache
def _load(name: str, path: str, dtype: np.dtype[Any]) -> Kernels:
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    kind = f"{'float' if dtype == np.float32 else 'double'}[]"
    kinds = {dtype: kind, np.dtype(np.float64): "double[]", np.dtype(np.int32): "int[]", np.dtype(np.int64): "long[]"}
    return Kernels(
        module.lib,
        lambda array: module.ffi.from_buffer(kinds[array.dtype], array),
        module.ffi.new,
        module.ffi.NULL,
        dtype,
    )


def load_kernels(comm: MPI.Comm, dtype: npt.DTypeLike) -> Kernels:
    """Compile the kernels if need be, and load them. Collective: yes.

    Parameters
    ----------
    comm
        Ranks that will use them; the first one compiles, into the folder of
        ``XDG_CACHE_HOME`` where FFCx keeps its own.
    dtype
        ``float32`` or ``float64``.

    Raises
    ------
    PdeoptError
        If the compiler fails.
    """
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "fenics"
    kind = np.dtype(dtype)
    name = _name(kind)
    return _load(name, on_root(comm, lambda: _build(name, kind, folder)), kind)
