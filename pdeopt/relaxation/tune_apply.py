"""What `pdeopt run --tuned` does inside the script beyond laying options by prefix.

Solvers without a prefix are recognised by the place where they first solve; a preconditioner is kept while the values
of its matrix are the same; a tuned solver that fails is replaced by a factorisation within the same solve. Loaded by
the overlay like `pdeopt.relaxation.tune_watch`.
"""

import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdeopt.relaxation import overlay_watch

SETTINGS = "PDEOPT_TUNED_SETTINGS"
_ATTRIBUTE = "pdeopt_tuned"
_PREFIX = "pdeopt_rescue_"
# What solves if the tuned solver does not.
_RESCUE = {
    "ksp_type": "fgmres", "ksp_pc_side": "right", "ksp_norm_type": "unpreconditioned", "ksp_rtol": "1e-10",
    "ksp_max_it": "50", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps", "mat_mumps_icntl_14": "50",
    "pc_factor_mat_ordering_type": "external",
}  # fmt: skip


class _Solver:
    """One KSP of the script for which there is something to do."""

    def __init__(self, name: str, tuned: bool, options: dict[str, str] | None, watch: Any) -> None:
        self.name, self.tuned = name, tuned
        self.options, self.watch = options, watch  # None: nothing to lay; nothing to compare
        self.types: tuple[str, str] | None = None  # as laid
        self.strict = False  # whether the script wants an error where a solve does not converge


class Applier:
    """Prepares each KSP before it solves.

    Parameters
    ----------
    overlay
        The overlay that calls.
    sites
        Options of the solvers without prefix, by the place of their first solve.
    tuned, kept
        Prefixes and places of all tuned solvers, and of those whose preconditioner is kept while the values are.
    """

    def __init__(self, overlay: Any, sites: dict[str, dict[str, str]], tuned: set[str], kept: set[str]) -> None:
        self._overlay = overlay
        self._sites, self._tuned, self._kept = sites, tuned, kept
        self._reuse: Any = None

    def before(self, call: "overlay_watch.Call") -> None:
        """Lay what belongs to the place, and say whether the preconditioner stays. Collective: as the solver is."""
        if call.kind == "KSP":
            if call.method == "solve":
                self._prepare(call.solver, call.site, True)
            return
        parts = sys.modules["pdeopt.relaxation.overlay_options"].parts_of(self._overlay.PETSc, call.solver)
        for kind, part in parts:
            if kind == "KSP":
                self._prepare(part, call.site, False)

    def _prepare(self, ksp: Any, site: str, solves_now: bool) -> None:
        solver = ksp.getAttr(_ATTRIBUTE)
        if solver is None:
            prefix = ksp.getOptionsPrefix() or ""
            key = prefix or site
            watch = self._new_watch() if key in self._kept else None
            solver = _Solver(key, key in self._tuned, None if prefix else self._sites.get(key), watch)
            ksp.setAttr(_ATTRIBUTE, solver)
        if solver.options and solver.types != (ksp.getType(), ksp.getPC().getType()):
            self._lay(ksp, solver.options)
            solver.types = ksp.getType(), ksp.getPC().getType()
        if solver.watch is not None and solves_now:
            change = solver.watch.compare(ksp.getOperators()[0])
            if change is not None:
                ksp.getPC().setReusePreconditioner(change.kind == "none")
                solver.watch.accept()
        if solver.tuned and solves_now:
            solver.strict = ksp.getErrorIfNotConverged()
            ksp.setErrorIfNotConverged(False)

    def after(self, call: "overlay_watch.Call") -> None:
        """See to it that a tuned solver has solved. Collective: as the solver is."""
        solver = call.solver.getAttr(_ATTRIBUTE) if call.kind == "KSP" and call.method == "solve" else None
        if solver is None or not solver.tuned:
            return
        ksp = call.solver
        ksp.setErrorIfNotConverged(solver.strict)
        if not call.failed and ksp.getConvergedReason() < 0:
            self._rescue(ksp, solver, *call.arguments[:2])

    def _rescue(self, ksp: Any, solver: _Solver, b: Any, x: Any) -> None:
        """Solve by a factorisation, now and from now on. Collective: yes."""
        layer, failure = self._overlay.layer, ksp.getConvergedReason()
        other = self._overlay.PETSc.KSP().create(ksp.getComm())
        other.setOptionsPrefix(_PREFIX)

        def solve() -> None:
            other.setOperators(ksp.getOperators()[0])
            other.setFromOptions()
            other.solve(b, x)

        try:
            layer._read({_PREFIX + name: value for name, value in _RESCUE.items()}, solve)
            reason = other.getConvergedReason()
        finally:
            other.destroy()
        solver.options, solver.types = dict(_RESCUE), None
        outcome = "LU by MUMPS instead" if reason > 0 else "and so did LU by MUMPS"
        self._overlay.warn(f"the tuned solver of {solver.name} failed with reason {failure}, {outcome}")
        if reason > 0:
            ksp.setConvergedReason(reason)

    def _lay(self, ksp: Any, options: dict[str, str]) -> None:
        """Do what the overlay does for options given by prefix. Collective: yes."""
        layer = self._overlay.layer
        record = layer.record_of(ksp)
        prefix = ksp.getOptionsPrefix() or ""
        entries = {prefix + name: value for name, value in options.items()}
        read = layer._set("KSP", ksp, prefix, entries, record.viewers)
        record.late = {**record.late, **{name: (value, name) for name, value in entries.items() if name not in read}}

    def _new_watch(self) -> Any:
        if self._reuse is None:
            tune_watch = self._overlay_module("tune_watch")
            folder = os.path.dirname(os.path.abspath(__file__))
            (self._reuse,) = tune_watch.import_beside(folder, "reuse")
        return self._reuse.ValueWatch()

    @staticmethod
    def _overlay_module(name: str) -> Any:
        return sys.modules["pdeopt.relaxation.overlay"]._watcher_module(f"pdeopt.relaxation.{name}")


def start() -> None:
    """Begin to prepare solvers; called in each process of the script. Collective: no."""
    overlay = importlib.import_module("pdeopt.relaxation.overlay")
    settings = json.loads(os.environ[SETTINGS])
    applier = Applier(overlay._overlay, settings["sites"], set(settings["tuned"]), set(settings["kept"]))
    overlay.watch(applier.before, applier.after)
