"""Which other solvers `pdeopt tune` tries on a system of a script, when, and what came out: seconds against a budget.

Loaded by `pdeopt.relaxation.tune_watch` once there is a solve to look at.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from pdeopt.relaxation import overlay_watch
from pdeopt.relaxation import tune_replay as replay
from pdeopt.relaxation.features import FeatureReader
from pdeopt.relaxation.reuse import ValueWatch
from pdeopt.relaxation.rule import Choice

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


class Solver:
    """One KSP of the script: its entry, the values of its matrix, the arms that are still in the race."""

    def __init__(self, entry: Entry, watch: Any, reader: Any) -> None:
        self.entry, self.watch, self.reader = entry, watch, reader
        self.features: Any = None
        self.arms: dict[str, Any] = {}
        self.streak = self.values = 0  # solves with the present values; how often these were new
        self.start: Any = None
        self.b: Any = None
        self.off = False  # looking at it has failed


class TuningRace:
    """Has systems of the script solved again by others, and keeps what they took.

    Parameters
    ----------
    entries
        The ledger, by name and number of ranks.
    seconds
        Seconds of this rank; ``"trying"`` is counted here.
    budget
        Seconds that trying may take, over those of the script's own solves.
    read
        Lays options while something is done, as `pdeopt.relaxation.overlay` does.
    """

    def __init__(
        self, entries: dict[tuple[str, int], Entry], seconds: dict[str, float], budget: float, read: Callable[..., Any]
    ) -> None:
        self._entries, self._seconds, self._budget, self._read = entries, seconds, budget, read

    def solver(self, name: tuple[str, int], key: str, prefix: str, site: str, inside: str) -> Solver:
        """Return a record for a KSP of the script; its entry may be that of others. Collective: no."""
        entry = self._entries.setdefault(name, Entry(key, prefix, site, inside))
        return Solver(entry, ValueWatch(), FeatureReader())

    def consider(self, call: overlay_watch.Call, solver: Solver, fresh: bool) -> bool:
        """Try others on the system that was solved last if it is time to; return whether it was.

        Parameters
        ----------
        call
            The solve.
        solver
            Who solved it, with its counts up to date.
        fresh
            Whether the values of the matrix were new.

        Collective: yes.
        """
        entry = solver.entry
        matrix, _ = call.solver.getOperators()
        new_values = not entry.samples or (fresh and _is_power_of_two(entry.values))
        new_right_side = _is_power_of_two(entry.solves) or self._leader_is_new(entry)
        often = solver.streak in (_OFTEN, 4 * _OFTEN, 16 * _OFTEN)
        wanted = not entry.kept and entry.seconds >= _FEWEST_SECONDS and (new_values or new_right_side or often)
        # The first rank decides: another may know solvers of the same name that only it has.
        wanted, new_values, often = matrix.getComm().tompi4py().bcast((wanted, new_values, often))
        if wanted:
            self._round(call, solver, new_values, often)
        return bool(wanted)

    def _round(self, call: overlay_watch.Call, solver: Solver, new_values: bool, often: bool) -> None:
        """Solve a system again by what is in the race. Collective: yes."""
        entry = solver.entry
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

    def _racers(self, solver: Solver, new_values: bool, often: bool) -> list[Choice]:
        """Return what to try now.

        With new values all arms first, later those that were as accurate and those not tried yet; with another
        right-hand side the former, since one may happen to be easy; where the same values come often factorisations.
        """
        entry = solver.entry
        leading = self._leading(entry)
        choices = {choice.name: choice for choice in replay.arms(solver.features)}
        for name in [name for name in entry.arms if name not in choices]:
            entry.arms[name]["state"] = entry.arms[name]["state"].replace("equal", "not for a later matrix")
        untried = [name for name in choices if entry.arms.get(name, _UNTRIED)["state"] == "skipped"]
        if not new_values:
            untried = [name for name in untried if often and choices[name].kind == "factor"]
        return [choices[name] for name in (*leading[:_SURVIVORS], *untried) if name in choices]

    def _leave_out_indefinite(self, entry: Entry) -> None:
        """Take arms for definite matrices out of the race once one was not: another right-hand side would tell."""
        for record in entry.arms.values():
            if not entry.definite and record["state"] == "equal" and replay.needs_definiteness(record["options"]):
                record.update(state="wrong", why="the matrix has negative eigenvalues: not for each right-hand side")

    def _confirm(self, solver: Solver, system: replay.System) -> None:
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

    def _attempt(self, solver: Solver, choice: Choice, system: replay.System, limit: float) -> replay.Trial:
        """Try an arm and enter the result. Collective: yes."""
        entry = solver.entry
        if choice.name not in solver.arms:
            options = entry.arms.get(choice.name, {}).get("options") or replay.options_for(choice, system)
            solver.arms[choice.name] = replay.Arm(choice, dict(options))
        arm = solver.arms[choice.name]
        values = arm.values
        trial = arm.attempt(system, limit, self._read)
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

    def _record(self, entry: Entry, choice: Choice) -> dict[str, Any]:
        """Return the record of an arm."""
        symmetric = replay.needs_symmetry(choice.options)
        fresh: dict[str, Any] = {
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

    def _allowance(self) -> float:
        """Return the seconds that trying may have taken by now, on this rank."""
        own = sum(entry.seconds for entry in self._entries.values())
        floor = sum(_FLOOR_SECONDS + _FLOOR_SOLVES * entry.first for entry in self._entries.values() if entry.samples)
        return self._budget * (own + floor)


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0
