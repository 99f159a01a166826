"""What `pdeopt tune` does inside the script: a ledger of its linear solves, and when to try other solvers on one.

The overlay (`pdeopt.relaxation.overlay`) loads this file by its path and calls `start`. Like the overlay it imports
nothing of pdeopt, which would load MPI and set thread limits in the script, until there is a solve to look at; then
in a way that leaves `sys.modules` as it was. What goes wrong in here costs one line on stderr, never the script.
"""

import atexit
import importlib
import json
import math
import os
import sys
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdeopt.relaxation import overlay_watch, tune_race

SETTINGS = "PDEOPT_TUNE_SETTINGS"
# Name of our record in petsc4py's dictionary of a KSP, which lives as long as the PETSc object does.
_ATTRIBUTE = "pdeopt_tune"
# Seconds from one ledger to the next: what a script that is killed leaves.
_LEDGER_SECONDS = 0.25
# Nonlinear solvers that set up the preconditioner before they call the KSP: its seconds are not those of a solve.
_SET_UP_BEFORE = ("vinewtonrsls",)


class Tuner:
    """Watches each solve, and has some of them solved again.

    Parameters
    ----------
    overlay
        The overlay that calls.
    settings
        ``"folder"``: where the ledger goes; ``"budget"``: seconds that trying may take, over those of the script's own
        solves.
    """

    def __init__(self, overlay: Any, settings: dict[str, Any]) -> None:
        self.PETSc = overlay.PETSc
        self._overlay = overlay
        self._budget = float(settings["budget"])
        self._folder = settings["folder"]
        self._entries: dict[tuple[str, int], tune_race.Entry] = {}  # by name and number of ranks
        # Kinds of the solvers that run, these, and what went wrong in here before they began.
        self._callers: list[tuple[str, Any, list[Exception]]] = []
        self._said: set[str] = set()
        self._written = -math.inf
        self._seconds = {"looking": 0.0, "trying": 0.0}
        self._unreached: set[str] = set()
        self._race: tune_race.TuningRace | None = None

    # --- called by the overlay ---

    def before(self, call: "overlay_watch.Call") -> None:
        """Note who calls whom, and what the solve would overwrite. Collective: as the solver is."""
        inside, caller, _ = self._callers[-1] if self._callers else ("", None, [])
        errors: list[Exception] = []
        self._callers.append((call.kind, call.solver, errors))
        if call.kind != "KSP" or inside == "KSP":
            return
        if call.method != "solve":
            self._unreached.add(f"{call.kind}.{call.method}")
            return
        began = time.perf_counter()
        try:
            self._prepare(call, inside, caller)
        except Exception as error:
            errors.append(error)
        self._seconds["looking"] += time.perf_counter() - began

    def after(self, call: "overlay_watch.Call") -> None:
        """Note what the solve took, and try others on it. Collective: as the solver is."""
        errors: list[Exception] = []
        while self._callers:
            _, ended, errors = self._callers.pop()
            if ended.handle == call.solver.handle:
                break  # the end of a solve that failed inside a SNES, TS or TAO was not told
        if call.kind != "KSP" or (self._callers and self._callers[-1][0] == "KSP") or call.method != "solve":
            return
        solver = call.solver.getAttr(_ATTRIBUTE)
        if call.failed:  # perhaps on this rank alone
            if solver is not None:
                solver.entry.solves += 1
                solver.entry.failed += 1
                solver.entry.seconds += call.seconds
            return
        if solver is not None and solver.off:
            return
        began, trying = time.perf_counter(), self._seconds["trying"]
        if not errors:
            try:
                self._note(call, solver)
            except Exception as error:
                errors.append(error)
        self._agree(call, solver, errors)
        elapsed = time.perf_counter() - began
        self._seconds["looking"] += elapsed - (self._seconds["trying"] - trying)

    def write(self) -> None:
        """Leave the ledger for the process that launched the script. Collective: no."""
        self._written = time.perf_counter()
        if self.PETSc.COMM_WORLD.getRank() != 0:
            return
        record = {
            "entries": [vars(entry) for entry in self._entries.values()],
            "seconds": self._seconds,
            "unreached": sorted(self._unreached),
            "replaced": self._overlay.layer.replaced,
        }
        path = os.path.join(self._folder, f"{os.uname().nodename}-{os.getpid()}.json")  # of the child, after a fork
        temporary = path + ".part"
        try:
            with open(temporary, "w") as file:
                json.dump(record, file)
            os.replace(temporary, path)
        except OSError as error:
            self._warn(f"the ledger cannot be written: {error}")

    # --- one solve ---

    def _prepare(self, call: "overlay_watch.Call", inside: str, caller: Any) -> None:
        self._load()
        ksp = call.solver
        solver = ksp.getAttr(_ATTRIBUTE)
        if solver is None:
            prefix = ksp.getOptionsPrefix() or ""
            key = prefix or call.site
            name = key, ksp.getComm().getSize()
            assert self._race is not None
            solver = self._race.solver(name, key, prefix, call.site, inside)
            ksp.setAttr(_ATTRIBUTE, solver)
        if solver.off:
            return
        snes = caller.getSNES() if inside == "TS" else caller
        if inside in ("SNES", "TS") and snes.getType() in _SET_UP_BEFORE:
            solver.entry.kept = f"{snes.getType()} sets it up before the solve, so how long it takes cannot be told"
        b, x = call.arguments[:2]
        if ksp.getInitialGuessNonzero():
            solver.start = x.copy()
        if b.handle == x.handle:
            solver.b = b.copy()

    def _note(self, call: "overlay_watch.Call", solver: "tune_race.Solver") -> None:
        assert self._race is not None
        entry, ksp = solver.entry, call.solver
        entry.solves += 1
        entry.seconds += call.seconds
        if ksp.getConvergedReason() < 0:
            entry.failed += 1
            return
        matrix, _ = ksp.getOperators()
        entry.iterations += ksp.getIterationNumber()
        entry.size, entry.ranks = matrix.getSize()[0], matrix.getComm().getSize()
        entry.own = self._describe(ksp)
        change = solver.watch.compare(matrix)
        fresh = change is not None and change.fresh
        entry.assemblies += change is not None
        entry.values += fresh
        solver.values += fresh
        solver.streak = 1 if fresh else solver.streak + 1
        if solver.features is None or (fresh and change.kind != "scaled"):
            if change is not None and change.kind == "pattern":
                solver.reader.forget_pattern()
            solver.features = solver.reader.read(matrix, solver.watch.vector, solver.watch.image)
            entry.features = str(solver.features)
            entry.symmetric &= solver.features.symmetric
        if self._race.consider(call, solver, fresh) or time.perf_counter() - self._written > _LEDGER_SECONDS:
            self.write()

    # --- small things ---

    def _describe(self, ksp: Any) -> str:
        pc = ksp.getPC()
        text = f"{ksp.getType()} + {pc.getType()}"
        return f"{text} ({pc.getFactorSolverType()})" if pc.getType() in ("lu", "cholesky") else text

    def _agree(self, call: "overlay_watch.Call", solver: "tune_race.Solver | None", errors: list[Exception]) -> None:
        """Leave a solver alone from now on if looking at it has failed on any rank. Collective: yes."""
        name = solver.entry.key if solver is not None else call.site
        text = "".join(f"{type(error).__name__}: {' '.join(str(error).split())}" for error in errors)
        comm = call.solver.getComm().tompi4py()
        if comm.size > 1:
            sys.modules["pdeopt.relaxation.overlay_watch"].meet(comm, f"looking at {name}", text)
            text = next(filter(None, comm.allgather(text)), "")
        if solver is not None:
            solver.start = solver.b = None
        if not text:
            return
        if solver is not None:
            solver.off, solver.arms = True, {}
            solver.entry.kept = f"looking at it failed: {text}"
        self._warn(f"{name} is not tuned: {text}")

    def _warn(self, text: str) -> None:
        if text not in self._said and self.PETSc.COMM_WORLD.getRank() == 0 and sys.stderr is not None:
            self._said.add(text)
            sys.stderr.write(f"pdeopt tune: {text}\n")

    def _load(self) -> None:
        """Import what looks at matrices, once PETSc is ready."""
        if self._race is None:
            folder = os.path.dirname(os.path.abspath(__file__))
            (module,) = import_beside(folder, "tune_race")
            self._race = module.TuningRace(self._entries, self._seconds, self._budget, self._overlay.layer._read)


def import_beside(folder: str, *names: str) -> list[ModuleType]:
    """Return modules of this folder without running the package's start-up, which would change the process.

    Collective: no.
    """
    package = "pdeopt" in sys.modules
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "pdeopt"}
    if not package:
        for name, path in ("pdeopt", os.path.dirname(folder)), ("pdeopt.relaxation", folder):
            stand_in = ModuleType(name)
            stand_in.__path__ = [path]
            sys.modules[name] = stand_in
    try:
        return [importlib.import_module(f"pdeopt.relaxation.{name}") for name in names]
    finally:
        if not package:
            for name in [name for name in sys.modules if name.partition(".")[0] == "pdeopt"]:
                if name not in before:
                    del sys.modules[name]


def start() -> None:
    """Begin to watch; called in each process of the script. Collective: no."""
    overlay = sys.modules["pdeopt.relaxation.overlay"]
    tuner = Tuner(overlay._overlay, json.loads(os.environ[SETTINGS]))
    overlay.watch(tuner.before, tuner.after)
    atexit.register(tuner.write)
