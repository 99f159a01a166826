"""Python imports this file at start-up where `pdeopt run` has put its folder first on PYTHONPATH.

It does nothing in a process that never imports petsc4py, except that the user's own sitecustomize still runs. It
imports nothing of pdeopt: the interpreter may be another one than pdeopt's.
"""

import os
import sys

TYPE_CHECKING = False  # importing typing takes longer than all that is done here
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_FILES = ("substitutes", "overlay_options", "overlay_watch", "overlay")


class _PetscFinder:
    """Finder that waits for petsc4py's loader module, and starts the overlay when it is imported."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        if name != "petsc4py.lib":
            return None
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _PetscFinder]
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: "ModuleType") -> None:
                execute(module)
                _guarded(_start_overlay, module)

            loader.exec_module = exec_module
        return spec


def _start_overlay(petsc4py_lib: "ModuleType") -> None:
    """Load the overlay by its files, since importing pdeopt would load MPI and set thread limits in the script."""
    for name in _FILES:
        module: Any = _load("pdeopt.relaxation." + name, os.path.join(os.path.dirname(_FOLDER), name + ".py"))
    module.start(petsc4py_lib)


def _load(name: str, path: str) -> "ModuleType":
    from importlib.util import module_from_spec, spec_from_file_location

    spec: Any = spec_from_file_location(name, path)
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _guarded(function: "Callable[..., object]", *arguments: object) -> None:
    """Call a function of ours; the script goes on as if we were not there, whatever it raises."""
    try:
        function(*arguments)
    except Exception as error:
        from_launcher = (os.environ.get(name) for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"))
        if next(filter(None, from_launcher), "0") == "0":
            text = " ".join(str(error).split())
            sys.stderr.write(f"pdeopt run: no overlay in {sys.executable}: {type(error).__name__}: {text}\n")
        _leave_note("failed")


def _install() -> None:
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _FOLDER]
    finders: list[Any] = sys.meta_path
    finders.insert(0, _PetscFinder)
    _leave_note("started")


def _leave_note(name: str) -> None:
    """Tell the process that launched the script what happened here."""
    folder = os.environ["PDEOPT_RUN_FOLDER"]
    if os.path.isdir(folder):  # not on another machine
        open(os.path.join(folder, name), "w").close()


def _run_next_sitecustomize() -> None:
    """Run the sitecustomize that Python would have found without ours."""
    from importlib.machinery import PathFinder

    elsewhere = [entry for entry in sys.path if os.path.abspath(entry) != _FOLDER]
    spec = PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.origin is not None:
        _load("sitecustomize", spec.origin)


if __name__ == "sitecustomize":
    if "PDEOPT_RUN_FOLDER" in os.environ:
        _guarded(_install)
    _run_next_sitecustomize()
