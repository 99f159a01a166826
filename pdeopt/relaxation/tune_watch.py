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
    from pdeopt.relaxation import overlay_watch

SETTINGS = "PDEOPT_TUNE_SETTINGS"
# Name of our record in petsc4py's dictionary of a KSP, which lives as long as the PETSc object does.
_ATTRIBUTE = "pdeopt_tune"
# Seconds that a solver has taken in all below which nothing is tried: clocks would decide.
_FEWEST_SECONDS = 0.01
# With budget 1, exploring may take as long as the script's own solves so far and, so that a script with one solve can
# be tuned, this many seconds and first solves more.
_FLOOR_SECONDS, _FLOOR_SOLVES = 1.0, 3.0
# A factorisation is tried if it is predicted to take less than this multiple of what the solver has taken in all: the
# prediction is rough, and as many solves may follow. More than that once the same values have come often.
_ROUGH, _OFTEN, _ROUGHER = 2.0, 8, 5.0
_UNTRIED = {"state": "skipped"}
# Arms that stay in the race after the first round.
_SURVIVORS = 3
# Seconds from one ledger to the next: what a script that is killed leaves.
_LEDGER_SECONDS = 0.25
# Nonlinear solvers that set up the preconditioner before they call the KSP: its seconds are not those of a solve.
_SET_UP_BEFORE = ("vinewtonrsls",)


class Entry:
    """What is known of one solver of the script, or of several with one prefix; plain data, for JSON.

    Attributes
    ----------
    key, prefix, site
        Its name: the prefix, or where the script first solves with it; and both of these.
    inside
        "" if the script calls it, else the kind of solver that does ("SNES", "TS", "TAO").
    """

    def __init__(self, key: str, prefix: str, site: str, inside: str) -> None:
        self.key, self.prefix, self.site, self.inside = key, prefix, site, inside
        self.own = ""
        self.size = self.ranks = 0
        self.features = ""
        self.solves = self.iterations = self.failed = 0
        self.values = 0  # how often the values of the matrix were new, the first time included
        self.assemblies = 0  # how often PETSc counts them as new
        self.seconds = 0.0
        self.first = 0.0  # seconds of the first solve that was replayed
        self.symmetric = True
        self.definite = True  # as far as a symmetric factorisation has told
        self.kept = ""  # why the script's solver stays
        self.samples: list[float] = []  # seconds of the script's solves that were replayed
        self.arms: dict[str, dict[str, Any]] = {}


class _Solver:
    """One KSP of the script: its entry, the values of its matrix, the arms that are still in the race."""

    def __init__(self, entry: Entry, watch: Any, reader: Any) -> None:
        self.entry, self.watch, self.reader = entry, watch, reader
        self.features: Any = None
        self.arms: dict[str, Any] = {}
        self.streak = self.values = 0  # solves with the present values; how often these were new
        self.start: Any = None
        self.b: Any = None
        self.off = False  # looking at it has failed


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
        self._entries: dict[tuple[str, int], Entry] = {}  # by name and number of ranks
        # Kinds of the solvers that run, these, and what went wrong in here before they began.
        self._callers: list[tuple[str, Any, list[Exception]]] = []
        self._said: set[str] = set()
        self._written = -math.inf
        self._seconds = {"looking": 0.0, "trying": 0.0}
        self._unreached: set[str] = set()
        self._replay: ModuleType | None = None
        self._reuse: ModuleType | None = None
        self._features: ModuleType | None = None

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
            entry = self._entries.setdefault(name, Entry(key, prefix, call.site, inside))
            assert self._reuse is not None
            assert self._features is not None
            solver = _Solver(entry, self._reuse.ValueWatch(), self._features.FeatureReader())
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

    def _note(self, call: "overlay_watch.Call", solver: _Solver) -> None:
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
        new_values = not entry.samples or (fresh and _is_power_of_two(entry.values))
        new_right_side = _is_power_of_two(entry.solves) or self._leader_is_new(entry)
        often = solver.streak in (_OFTEN, 4 * _OFTEN, 16 * _OFTEN)
        wanted = not entry.kept and entry.seconds >= _FEWEST_SECONDS and (new_values or new_right_side or often)
        # The first rank decides: another may know solvers of the same name that only it has.
        wanted, new_values, often = matrix.getComm().tompi4py().bcast((wanted, new_values, often))
        if wanted:
            self._round(call, solver, new_values, often)
            self.write()
        elif time.perf_counter() - self._written > _LEDGER_SECONDS:
            self.write()

    def _round(self, call: "overlay_watch.Call", solver: _Solver, new_values: bool, often: bool) -> None:
        """Solve a system again by what is in the race. Collective: yes."""
        replay, entry = self._replay, solver.entry
        assert replay is not None
        matrix, _ = call.solver.getOperators()
        comm = matrix.getComm().tompi4py()
        b, x = call.arguments[:2]
        seconds, mean = comm.bcast((call.seconds, entry.seconds / entry.solves))
        right_side = solver.b or b
        system = replay.System(
            call.solver, matrix, right_side, x, solver.start, seconds, solver.features, solver.values
        )
        if system.norm == 0.0:
            return
        entry.kept = replay.reason_to_keep(system)
        if entry.kept:
            return
        entry.first = entry.first or seconds
        entry.samples.append(seconds)
        best = max(seconds, mean)  # its solves share a set-up
        for choice in self._racers(solver, new_values, often):
            spent = comm.bcast((self._seconds["trying"], self._allowance(), entry.seconds, solver.watch.product))
            if spent[0] >= spent[1]:
                break
            limit = replay.PATIENCE * max(best, replay.SHORTEST)
            if choice.kind == "factor":
                limit = math.inf  # it cannot be cut short, and its second solve costs next to nothing
                available = (_ROUGH if solver.streak < _OFTEN else _ROUGHER) * max(spent[2], replay.SHORTEST)
                known = system.direct or entry.arms.get(choice.name, _UNTRIED)["state"] == "equal"
                if not (known or replay.worth_a_factorisation(solver.features, spent[3], available)):
                    self._record(entry, choice).update(state="skipped", why=f"predicted to take over {available:.2g} s")
                    continue
            began = time.perf_counter()
            trial = self._attempt(solver, choice, system, limit)
            self._seconds["trying"] += time.perf_counter() - began
            if trial.state == "equal" and new_values:
                best = min(best, trial.setup + trial.solve)
        self._leave_out_indefinite(entry)
        if new_values or often:
            self._confirm(solver, system)
        leading = self._leading(entry)[:_SURVIVORS]
        for name, arm in solver.arms.items():
            if name not in leading:
                arm.release()

    def _racers(self, solver: _Solver, new_values: bool, often: bool) -> list[Any]:
        """Return what to try now.

        With new values all arms first, later those that were as accurate and those not tried yet; with another
        right-hand side the former, since one may happen to be easy; where the same values come often factorisations.
        """
        assert self._replay is not None
        entry = solver.entry
        leading = self._leading(entry)
        choices = {choice.name: choice for choice in self._replay.arms(solver.features)}
        for name in [name for name in entry.arms if name not in choices]:
            entry.arms[name]["state"] = entry.arms[name]["state"].replace("equal", "not for a later matrix")
        untried = [name for name in choices if entry.arms.get(name, _UNTRIED)["state"] == "skipped"]
        if not new_values:
            untried = [name for name in untried if often and choices[name].kind == "factor"]
        return [choices[name] for name in (*leading[:_SURVIVORS], *untried) if name in choices]

    def _leave_out_indefinite(self, entry: Entry) -> None:
        """Take arms for definite matrices out of the race once one was not: another right-hand side would tell."""
        assert self._replay is not None
        for record in entry.arms.values():
            if not entry.definite and record["state"] == "equal" and self._replay.needs_definiteness(record["options"]):
                record.update(state="wrong", why="the matrix has negative eigenvalues: not for each right-hand side")

    def _confirm(self, solver: _Solver, system: Any) -> None:
        """Time the best arm once more: the least of many noisy timings is too good. Collective: yes."""
        leading = self._leading(solver.entry)
        if not leading:
            return
        record = solver.entry.arms[leading[0]]
        spent, allowed = system.comm.bcast((self._seconds["trying"], self._allowance()))
        cost = record["setups"][0] + record["solves"][0]
        for _ in range(2):
            if spent + cost > allowed or leading[0] not in solver.arms:
                return
            began = time.perf_counter()
            arm = solver.arms[leading[0]]
            arm.release()  # with the whole set-up
            self._attempt(solver, arm.choice, system, 10.0 * cost)
            self._seconds["trying"] += time.perf_counter() - began
            spent += cost

    def _attempt(self, solver: _Solver, choice: Any, system: Any, limit: float) -> Any:
        """Try an arm and enter the result. Collective: yes."""
        assert self._replay is not None
        entry = solver.entry
        if choice.name not in solver.arms:
            options = entry.arms.get(choice.name, {}).get("options") or self._replay.options_for(choice, system)
            solver.arms[choice.name] = self._replay.Arm(choice, dict(options))
        arm = solver.arms[choice.name]
        values = arm.values
        trial = arm.attempt(system, limit, self._overlay.layer._read)
        record = self._record(entry, choice)
        record.update(options=arm.options, state=trial.state, why=trial.why, iterations=trial.iterations)
        entry.definite &= trial.negative == 0
        if trial.state == "equal":
            if trial.fresh or values != solver.values:
                record["setups" if trial.fresh else "updates"].append(trial.setup)
            record["solves"].append(trial.solve)
            if record["last"] != entry.solves:
                record.update(systems=record["systems"] + 1, last=entry.solves)
        return trial

    def _record(self, entry: Entry, choice: Any) -> dict[str, Any]:
        """Return the record of an arm."""
        assert self._replay is not None
        symmetric = self._replay.needs_symmetry(choice.options)
        fresh = {
            "kind": choice.kind, "symmetric": symmetric, "setups": [], "updates": [], "solves": [], "iterations": 0,
            "systems": 0, "last": 0,
        }  # fmt: skip
        return entry.arms.setdefault(choice.name, fresh)

    def _leading(self, entry: Entry) -> list[str]:
        """Return the names of the arms that were as accurate in every round, the cheapest so far first."""

        def total(record: dict[str, Any]) -> float:
            mean = sum(record["solves"]) / len(record["solves"])
            return float(min(record["setups"]) * entry.values + mean * entry.solves)

        good = [name for name, record in entry.arms.items() if record["state"] == "equal" and record["setups"]]
        return sorted(good, key=lambda name: total(entry.arms[name]))

    def _leader_is_new(self, entry: Entry) -> bool:
        """Whether the best arm has seen one system only, and may see another in the time that there is."""
        leading = self._leading(entry)
        return bool(leading and entry.arms[leading[0]]["systems"] < 2 and self._seconds["trying"] < self._allowance())

    # --- small things ---

    def _allowance(self) -> float:
        """Return the seconds that trying may have taken by now, on this rank."""
        own = sum(entry.seconds for entry in self._entries.values())
        floor = sum(_FLOOR_SECONDS + _FLOOR_SOLVES * entry.first for entry in self._entries.values() if entry.samples)
        return self._budget * (own + floor)

    def _describe(self, ksp: Any) -> str:
        pc = ksp.getPC()
        text = f"{ksp.getType()} + {pc.getType()}"
        return f"{text} ({pc.getFactorSolverType()})" if pc.getType() in ("lu", "cholesky") else text

    def _agree(self, call: "overlay_watch.Call", solver: "_Solver | None", errors: list[Exception]) -> None:
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
        if self._replay is None:
            folder = os.path.dirname(os.path.abspath(__file__))
            self._replay, self._reuse, self._features = import_beside(folder, "tune_replay", "reuse", "features")


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


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
