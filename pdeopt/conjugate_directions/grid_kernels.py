"""The kernels of multigrid on a lattice, compiled when first used by the C compiler that DOLFINx needs anyway."""

import functools
import pathlib
from typing import Any, NamedTuple

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from pdeopt.conjugate_directions.compiled import build, load_module

__all__ = ["Kernels", "load_kernels"]

_SOURCE = pathlib.Path(__file__).with_name("grid_kernels.c")
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
def _load(path_and_name: tuple[str, str], dtype: np.dtype[Any]) -> Kernels:
    module = load_module(*path_and_name)
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
        Ranks that will use them, see `pdeopt.conjugate_directions.compiled.build`.
    dtype
        ``float32`` or ``float64``.

    Raises
    ------
    PdeoptError
        If the compiler fails.
    """
    kind = np.dtype(dtype)
    real, modulus = ("float", "fabsf") if kind == np.float32 else ("double", "fabs")
    macros = f"#define REAL {real}\n#define FABS {modulus}\n"
    return _load(build(comm, _SOURCE, _DECLARATIONS.replace("REAL", real), macros), kind)
