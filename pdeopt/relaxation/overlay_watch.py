"""Calls around each solve of a script, for those who want to know what it solves and how long that takes."""

import functools
import importlib
import os
import sys
import time
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdeopt.relaxation import overlay_options
else:
    overlay_options = importlib.import_module("pdeopt.relaxation.overlay_options")


# An error that not all ranks have met after as many seconds is one rank's alone: the others wait for it in PETSc.
ALONE = 10.0


class Stopwatch:
    """Seconds since it was made: the lesser of wall and processor time.

    A process that waits for its turn on a busy machine, or sleeps in a callback of the script, does no solver's work.
    With threads processor time is the greater one. Ranks that wait for each other in MPI poll, which counts.
    """

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        """Return the seconds so far. Collective: no."""
        return min(time.perf_counter() - self._wall, time.process_time() - self._processor)


def meet(comm: Any, deed: str, error: str) -> None:
    """Wait for the other ranks; end all if an error has hit this one alone, since they would wait forever.

    Nearly all errors hit all ranks: MUMPS and PETSc agree on what goes wrong in the numbers. An allocation may fail on
    one. Collective: yes.
    """
    everybody = comm.Ibarrier()
    if not error:
        everybody.Wait()
        return
    end = time.perf_counter() + ALONE
    while not everybody.Test():
        if time.perf_counter() > end:
            os.write(2, f"pdeopt tune: rank {comm.rank} failed alone while {deed}: {error}\n".encode())
            comm.Abort(1)
        time.sleep(0.01)


class Call:
    """One solve of the script, as watchers see it.

    Attributes
    ----------
    kind, method
        PETSc's class and the method called: "KSP" and "solve".
    solver
        The petsc4py object. A watcher that keeps it keeps the PETSc object alive.
    arguments
        What the method was called with, or (right-hand side, solution) of a KSP inside a SNES, TS or TAO.
    site
        ``file:line`` of the innermost call outside installed packages, "" if there is none.
    inner
        Whether another solve calls this one: the KSP of a SNES, a solve in a Python preconditioner.
    seconds
        What the method took (`Stopwatch`), watchers excluded, and what the script's own ``setUp`` of this KSP or its PC
        took since the last solve; NaN before it. For a KSP inside a SNES, TS or TAO the time between PETSc's own hooks:
        a set-up made before (vinewtonrsls does) is not in it.
    failed
        Whether the method raised.
    """

    __slots__ = ("arguments", "failed", "inner", "kind", "method", "seconds", "site", "solver")

    def __init__(self, kind: str, method: str, solver: Any, arguments: tuple[Any, ...], site: str, inner: bool) -> None:
        self.kind, self.method, self.solver, self.arguments = kind, method, solver, arguments
        self.site, self.inner, self.seconds, self.failed = site, inner, float("nan"), False


Watcher = Callable[[Call], object]


class Watchers:
    """Those who are called before and after each solve.

    Parameters
    ----------
    PETSc
        The module ``petsc4py.PETSc``.
    record_of
        Gives a solver's record.
    guarded
        Calls a function such that its errors do not reach the script.
    warn
        Prints one line.
    """

    def __init__(
        self, PETSc: ModuleType, record_of: Callable[[Any], "overlay_options.Record"], guarded: Callable[..., Any],
        warn: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.pairs: list[tuple[Watcher | None, Watcher | None]] = []
        self._PETSc = PETSc
        self._record_of = record_of
        self._guarded = guarded
        self._warn = warn
        self._called: list[int] = []  # handles of the solvers whose methods the script has called
        self._installed: dict[str, bool] = {}

    def before(self, kind: str, method: str, solver: Any, arguments: tuple[Any, ...], inner: bool) -> Call:
        """Tell the watchers that the script calls a solver. Collective: as far as a watcher is."""
        if kind != "KSP":
            self._watch_parts(solver)
        call = Call(kind, method, solver, arguments, self._site(), inner)
        self._tell(0, call)
        self._called.append(solver.handle)
        return call

    def after(self, call: Call, seconds: float, failed: bool) -> None:
        """Tell the watchers that the call has ended. Collective: as far as a watcher is."""
        self._called.pop()
        if call.kind == "KSP":
            for part in call.solver, call.solver.getPC():
                record = part.getAttr(overlay_options.ATTRIBUTE)
                if record is not None:
                    seconds, record.set_up = seconds + record.set_up, 0.0
        call.seconds, call.failed = seconds, failed
        self._tell(1, call)

    def _tell(self, which: int, call: Call) -> None:
        """Call the watchers; one that raises is dropped, and the script does not notice."""
        for pair in list(self.pairs):
            try:
                watcher = pair[which]
                if watcher is not None:
                    watcher(call)
            except Exception as error:
                self.pairs.remove(pair)
                self._warn(f"a watcher failed and is dropped: {type(error).__name__}: {error}")

    def _watch_parts(self, solver: Any) -> None:
        """Put PETSc's own hooks around the linear solves inside a SNES, TS or TAO, unless the script uses them."""
        for kind, part in overlay_options.parts_of(self._PETSc, solver):
            record = self._record_of(part)
            if kind != "KSP" or record.watched:
                continue
            record.watched = True
            if part.getAttr("__presolve__") is None and part.getAttr("__postsolve__") is None:
                running: list[tuple[Call, Stopwatch]] = []
                part.setPreSolve(functools.partial(self._guarded, self._before_part, running))
                part.setPostSolve(functools.partial(self._guarded, self._after_part, running))

    def _before_part(self, running: list[tuple[Call, Stopwatch]], ksp: Any, b: Any, x: Any) -> None:
        if self.pairs and ksp.handle not in self._called[-1:]:  # where the script calls it, it is watched already
            call = Call("KSP", "solve", ksp, (b, x), self._site(), True)
            self._tell(0, call)
            running[:] = [(call, Stopwatch())]

    def _after_part(self, running: list[tuple[Call, Stopwatch]], ksp: Any, b: Any, x: Any) -> None:
        if running:
            call, watch = running.pop()
            call.seconds = watch.seconds()
            self._tell(1, call)

    def _site(self) -> str:
        """Return ``file:line`` of the innermost frame that belongs to no installed package and not to the overlay."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            file = frame.f_code.co_filename
            installed = self._installed.get(file)
            if installed is None:
                marks = ("site-packages", "dist-packages", "<frozen", sys.base_prefix, "pdeopt/relaxation/overlay")
                installed = self._installed[file] = any(mark in file for mark in marks)
            if not installed:
                return f"{file}:{frame.f_lineno}"
            frame = frame.f_back
        return ""
