"""What is laid over which solver, and how: the part of the overlay that knows PETSc's option database.

Like its neighbours (see `pdeopt.relaxation.overlay`) this file imports nothing of pdeopt but through `sys.modules`.
"""

import contextlib
import ctypes
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdeopt.relaxation import substitutes
else:
    substitutes = importlib.import_module("pdeopt.relaxation.substitutes")

FAMILIES = {"KSP": "ksp", "PC": "pc", "SNES": "snes", "TS": "ts", "TAO": "tao"}
# Name of our record in petsc4py's dictionary of an object, which lives as long as the PETSc object does.
ATTRIBUTE = "pdeopt_overlay"
# What ``KSPSetFromOptions`` forgets when it is called once more.
_VIEWERS = ("_view", "_converged_reason", "_converged_rate")


class Record:
    """What the overlay knows of one PETSc object."""

    __slots__ = ("fixed", "inner", "laid", "late", "outer", "set_up", "viewers", "watched")

    def __init__(self, inner: bool) -> None:
        self.inner = inner  # part of another solver, whose prefix is `outer` (None: not known)
        self.outer: str | None = None
        self.laid = False
        self.fixed: frozenset[str] = frozenset()  # the families of types that the overlay has chosen
        # Options for sub-solvers, which a set-up reads: full name -> (value, name as the user gave it).
        self.late: dict[str, tuple[str, str]] = {}
        self.viewers: dict[str, str] = {}  # the script's own, to be set again
        self.watched = False
        self.set_up = 0.0  # seconds that the script's own calls of setUp took since the last solve


class OptionLayer:
    """The overlay's options and what became of them.

    Parameters
    ----------
    PETSc
        The module ``petsc4py.PETSc``, which need not be initialised yet.
    options
        Names without the leading hyphen, and values.
    set_from_options
        The original ``setFromOptions`` by class ("KSP", ...), to be filled before the first use.
    warn
        Prints one line.
    """

    def __init__(
        self, PETSc: ModuleType, options: Mapping[str, str], set_from_options: Mapping[str, Callable[[Any], object]],
        warn: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.PETSc = PETSc
        self.options = dict(options)
        self.used: set[str] = set()
        self.replaced = False  # whether a type of the script's own was one that this PETSc lacks
        self.depth = 0  # solves that run now and in which another one would belong to a preconditioner
        self.prefixes_pushed = 0
        self._set_from_options = set_from_options
        self._warn = warn
        self._library = ctypes.CDLL(PETSc.__file__)  # petsc4py does not wrap the stack of databases
        self._checked = False
        self._inserted: dict[str, tuple[str | None, bool]] = {}

    # --- over one solver ---

    def record_of(self, solver: Any) -> Record:
        """Return what is known of a solver; one first seen in another one's solve is taken for a part of it."""
        record = solver.getAttr(ATTRIBUTE)
        if record is None:
            record = Record(inner=self.depth > 0)
            solver.setAttr(ATTRIBUTE, record)
        return record

    def is_ready(self, solver: Any) -> bool:
        """Whether there is nothing to lay, or to insert, before a solve."""
        record = solver.getAttr(ATTRIBUTE)
        return record is not None and record.laid and not record.late

    def lay(self, kind: str, solver: Any, record: Record) -> None:
        """Call the object's setFromOptions with the overlay alone, and note what was read. Collective: yes."""
        if not self._checked:
            self._check_types()
        record.laid = True
        prefix = solver.getOptionsPrefix() or ""
        names = self._names(record.outer if record.inner else prefix, prefix)
        if not names:
            return
        entries = {name: value for name, (value, _) in names.items()}
        read = self._set(kind, solver, prefix, entries, record.viewers)
        self.used.update(names[name][1] for name in read)
        record.late = {name: names[name] for name in entries if name not in read}
        families = {substitutes.family_of(name.removeprefix(prefix)) for name in read}
        record.fixed = frozenset(family for family in families if family is not None)
        for part_kind, part in parts_of(self.PETSc, solver):
            inner = self.record_of(part)
            if (part.getOptionsPrefix() or "") == prefix:
                inner.inner, inner.outer, inner.laid, inner.fixed = record.inner, record.outer, True, record.fixed
                inner.late = record.late
            elif part_kind != "PC":  # the KSP of a TAO has a prefix of its own
                inner.inner = False
                self.lay(part_kind, part, inner)

    def after_script_options(self, kind: str, solver: Any) -> None:
        """Lay the overlay over what the script's own setFromOptions has just set. Collective: yes."""
        record = self.record_of(solver)
        own = self._script_options(solver.getOptionsPrefix() or "").items()
        record.viewers = {name: value for name, value in own if any(mark in name for mark in _VIEWERS)}
        self.lay(kind, solver, record)
        record.laid = False  # once more before the first solve: the script may set other things until then

    def type_to_set(self, family: str, solver: Any, name: Any) -> str | None:
        """Return the type to set where the script sets ``name``; None where the overlay has chosen one."""
        record = self.record_of(solver)
        if family in record.fixed:
            return None
        record.laid = False
        nearest = substitutes.nearest(family, name) if isinstance(name, str) else None
        if nearest is None:
            return name
        self.replaced = True
        prefix = solver.getOptionsPrefix()
        where = f" (solver {prefix})" if prefix else ""
        self._warn(f"this PETSc has no {family}_type {name}: {nearest} instead{where}")
        return nearest

    def mark_inner(self, parent: Any, found: Any) -> None:
        """Note that solvers which the script gets from another one are parts of it, and lay what is for them."""
        if isinstance(found, (list, tuple)):
            for part in found:
                self.mark_inner(parent, part)
            return
        kind = next((kind for kind in FAMILIES if isinstance(found, getattr(self.PETSc, kind))), None)
        if kind is None or not found:
            return
        above, record = self.record_of(parent), self.record_of(found)
        if not record.inner:
            record.inner, record.laid = True, False
            record.outer = above.outer if above.inner else parent.getOptionsPrefix() or ""
        if not record.laid:
            self.lay(kind, found, record)

    def _names(self, outer: str | None, prefix: str) -> dict[str, tuple[str, str]]:
        """Return full option name -> (value, name as the user gave it) for an object of the given prefix."""
        names = {}
        if outer is not None:
            names = {outer + name: (value, name) for name, value in self.options.items()}
        if prefix:
            names |= {name: (value, name) for name, value in self.options.items()}
        return {name: pair for name, pair in names.items() if name.startswith(prefix)}

    def _check_types(self) -> None:
        """Replace or drop types of the overlay that cannot be had; once, when PETSc is there to be asked."""
        self._checked = True
        for name in [name for name in self.options if name.endswith("_python_type")]:
            value = self.options[name]
            module, _, attribute = value.rpartition(".")
            try:
                getattr(importlib.import_module(module), attribute)
            except Exception as error:
                self._warn(f"-{name} {value} is left out: {type(error).__name__}: {error}")
                del self.options[name]
                bare = name.removesuffix("python_type") + "type"
                if self.options.get(bare) == "python":
                    del self.options[bare]
        for name, value in list(self.options.items()):
            family = substitutes.family_of(name)
            if family is None or substitutes.exists(family, value):
                continue
            nearest = substitutes.nearest(family, value)
            if nearest is not None:
                self.options[name] = nearest
                self._warn(f"this PETSc has no {family}_type {value}: -{name} is {nearest} instead")
            else:
                del self.options[name]
                similar = substitutes.similar(family, value)
                advice = f": did you mean {similar}?" if similar else ""
                self._warn(f"no {family}_type {value!r} in PETSc, -{name} is left out{advice}")

    # --- a database of our own ---

    def _set(
        self, kind: str, solver: Any, prefix: str, entries: dict[str, str], viewers: Mapping[str, str]
    ) -> set[str]:
        """Return the names that the object read; entries that PETSc refuses are dropped with a warning."""
        call = functools.partial(self._set_from_options[kind], solver)
        try:
            return self._read({**viewers, **entries}, call) & entries.keys()
        except self.PETSc.Error as error:
            reason = str(error).strip().splitlines()[-1].partition("]")[2].strip()
        for name in self._refused(kind, prefix, entries):
            self._warn(f"-{name} {entries.pop(name)} is left out: {reason}")
        return self._read({**viewers, **entries}, call) & entries.keys()

    def _refused(self, kind: str, prefix: str, entries: Mapping[str, str]) -> list[str]:
        """Return the entries that an empty object cannot be set from, found by adding one after another."""
        good: dict[str, str] = {}
        refused = []
        for name, value in entries.items():
            scratch = getattr(self.PETSc, kind)().create(self.PETSc.COMM_SELF)
            scratch.setOptionsPrefix(prefix or None)
            try:
                self._read({**good, name: value}, functools.partial(self._set_from_options[kind], scratch))
                good[name] = value
            except self.PETSc.Error:
                refused.append(name)
            finally:
                with contextlib.suppress(self.PETSc.Error):  # some types, as pipelcg, need a set-up before
                    scratch.destroy()
        return refused or list(entries)

    def _read(self, entries: Mapping[str, str], function: Callable[[], object]) -> set[str]:
        """Call a function while the option database has the given entries alone; return those that it read."""
        library, database = self._library, ctypes.c_void_p()
        library.PetscOptionsCreate(ctypes.byref(database))
        library.PetscOptionsPush(database)
        try:
            options = self.PETSc.Options()
            for name, value in entries.items():
                options.setValue(name, value)
            with substitutes.errors_as_exceptions():
                function()
            return {name for name in entries if options.used(name)}
        finally:
            library.PetscOptionsPop()
            library.PetscOptionsDestroy(ctypes.byref(database))

    # --- the script's database ---

    def replace_absent_types(self, solver: Any) -> None:
        """Replace, in the script's own options of a solver and its sub-solvers, the types that this PETSc lacks."""
        options = self.PETSc.Options()
        prefix = solver.getOptionsPrefix() or ""
        for name, value in self._script_options(prefix).items():
            family = substitutes.family_of(name.removeprefix(prefix))  # a prefix need not end in an underscore
            nearest = substitutes.nearest(family, value) if family else None
            pushed = self._pushed_prefix()
            if nearest is not None and name.startswith(pushed):
                self.replaced = True
                options.setValue(name.removeprefix(pushed), nearest)
                for other in self._script_options(name.removesuffix("type") + value):
                    options.hasName(other)  # counts as reading it: PETSc would print on stdout that nothing did
                self._warn(f"this PETSc has no {family}_type {value}: -{name} is {nearest} instead")

    def insert(self, record: Record) -> list[str]:
        """Put options that are read during a solve into the script's database; return those that were not there yet."""
        options, pushed = self.PETSc.Options(), self._pushed_prefix()
        names = [name for name in record.late if name not in self._inserted and name.startswith(pushed)]
        for name in names:
            was_read = options.used(name)
            value = options.getString(name) if options.hasName(name) else None
            if value is not None:
                options.delValue(name)  # so that it counts as unread
            self._inserted[name] = (value, was_read)
            options.setValue(name.removeprefix(pushed), record.late[name][0])
        return names

    def remove(self, names: list[str], record: Record) -> None:
        """Undo `insert`, and note which options were read."""
        options, pushed = self.PETSc.Options(), self._pushed_prefix()
        for name in names:
            read = options.used(name)
            if read:
                self.used.add(record.late[name][1])
            options.delValue(name)
            value, was_read = self._inserted.pop(name)
            if value is not None:
                options.setValue(name.removeprefix(pushed), value)
                if was_read or read:
                    options.hasName(name)  # counts as reading it

    def _script_options(self, prefix: str) -> dict[str, str]:
        """Return what stands in the script's database under a prefix."""
        return {name: value for name, value in self.PETSc.Options().getAll().items() if name.startswith(prefix)}

    def _pushed_prefix(self) -> str:
        """Return what PETSc puts before the names set from now on, because the script has pushed a prefix."""
        if not self.prefixes_pushed:
            return ""
        options = self.PETSc.Options()
        options.setValue("pdeopt_probe", "1")
        name = next(name for name in options.getAll() if name.endswith("pdeopt_probe"))
        options.delValue(name)
        return name.removesuffix("pdeopt_probe")


def parts_of(PETSc: ModuleType, solver: Any) -> Iterator[tuple[str, Any]]:
    """Yield the solvers that a solver is made of, outermost first; they share its prefix as a rule. Collective: no."""
    if isinstance(solver, PETSc.TS):
        solver = solver.getSNES()
        yield "SNES", solver
    if isinstance(solver, (PETSc.SNES, PETSc.TAO)):
        solver = solver.getKSP()
        if not solver:  # a TAO without linear solves
            return
        yield "KSP", solver
    if isinstance(solver, PETSc.KSP):
        yield "PC", solver.getPC()
