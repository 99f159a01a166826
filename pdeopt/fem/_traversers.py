"""UFL's traversers let go of the forms that they have seen, on every Python.

In Python 3.13.0 and 3.13.1 `functools.singledispatchmethod` keeps what it was called on alive (CPython issue 127750).
UFL's traversers hold forms, forms hold meshes and each mesh holds MPI communicators, of which there are 2,000: some 300
problems later MPI aborts.
"""

import functools
from collections.abc import Iterator

from ufl.corealg.dag_traverser import DAGTraverser


def forget_traversers() -> None:
    """Turn the leaking caches off; without them a method is looked up anew in every call. Collective: no."""
    for kind in _kinds(DAGTraverser):
        for attribute in vars(kind).values():
            if isinstance(attribute, functools.singledispatchmethod) and hasattr(attribute, "_method_cache"):
                attribute._method_cache = None


def _kinds(kind: type) -> Iterator[type]:
    yield kind
    derived: type
    for derived in kind.__subclasses__():
        yield from _kinds(derived)
