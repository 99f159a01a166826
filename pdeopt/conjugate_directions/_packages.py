"""The optional packages of the extra ``multigrid``, imported where they are first used."""

import importlib
from types import ModuleType

from pdeopt.report import MissingPackageError


def require_package(name: str) -> ModuleType:
    """Import a package, or raise `MissingPackageError` that names the extra with it. Collective: no."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"this needs {error.name}: run `python -m pip install 'pdeopt[multigrid]'`"
        ) from error
