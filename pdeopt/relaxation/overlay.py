"""PETSc options laid over those of a script that does not know of it, and calls around each of its solves.

`pdeopt run` starts this in the script's processes (``hooks/sitecustomize.py``) when petsc4py is loaded. It wraps
methods of KSP, PC, SNES, TS and TAO:

- after the script's ``setFromOptions``, and before the first solve (whatever the script has set by then), the object's
  ``setFromOptions`` is called with a database in which there is nothing but the overlay;
- during a solve, options that are read only then (those of sub-solvers, of MUMPS) stand in the script's database;
- types that this PETSc lacks are replaced by the nearest one.

What goes wrong in here costs one line on stderr and the overlay, never the script. Its files import nothing of pdeopt
but each other, through `sys.modules`: importing pdeopt would load MPI and set thread limits in the script, and the
interpreter may be one that does not have it.
"""

import atexit
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdeopt.relaxation import overlay_options, overlay_watch
else:
    overlay_options = importlib.import_module("pdeopt.relaxation.overlay_options")
    overlay_watch = importlib.import_module("pdeopt.relaxation.overlay_watch")

_SOLVES = {
    "KSP": ("solve", "solveTranspose", "matSolve", "matSolveTranspose"),
    "SNES": ("solve",),
    "TS": ("solve", "step"),
    "TAO": ("solve",),
}
# A solve called from inside these belongs to a preconditioner. The callbacks of TS and TAO call solvers that are the
# script's own, such as the state equation in a reduced objective.
_HOLD_INNER_SOLVERS = ("KSP", "PC", "SNES")
_GETTERS_OF_INNER_SOLVERS = {
    "PC": (
        "getASMSubKSP", "getBJacobiSubKSP", "getCompositePC", "getDeflationCoarseKSP", "getDeflationPC",
        "getFieldSplitSchurGetSubKSP", "getFieldSplitSubKSP", "getKSP", "getMGCoarseSolve", "getMGSmoother",
        "getMGSmootherDown", "getMGSmootherUp", "getPatchSubKSP",
    ),
    "SNES": (
        "getCompositeSNES", "getFASCoarseSolve", "getFASCycleSNES", "getFASSmoother", "getFASSmootherDown",
        "getFASSmootherUp", "getNASMSNES", "getNPC",
    ),
}  # fmt: skip
# PETSc reads these once, when it is initialised.
_READ_BY_PETSC_ITSELF = (
    "log_", "info", "malloc", "memory_", "options_left", "options_view", "on_error_", "fp_trap", "citations",
)  # fmt: skip


class Overlay:
    """What stands between a script and PETSc.

    Parameters
    ----------
    PETSc
        The module ``petsc4py.PETSc``, which need not be initialised yet.
    options
        Names without the leading hyphen, and values.
    """

    def __init__(self, PETSc: ModuleType, options: Mapping[str, str]) -> None:
        self.PETSc = PETSc
        self.set_from_options: dict[str, Callable[[Any], object]] = {}
        self.layer = overlay_options.OptionLayer(PETSc, options, self.set_from_options, self.warn)
        self.watchers = overlay_watch.Watchers(PETSc, self.layer.record_of, self.guarded, self.warn)
        self.off = False
        self._busy = False  # our own code is running: what it calls is nobody's solve
        self._said: set[str] = set()

    def is_ready(self, solver: Any) -> bool:
        """Whether a solve can start at once: most do."""
        if self.off or self._busy or not solver:  # an object that was never created: PETSc will say so
            return True
        return not self.watchers.pairs and self.layer.is_ready(solver)

    def enter(self, kind: str, method: str, solver: Any, arguments: tuple[Any, ...]) -> Any:
        """Prepare a solve or set-up of the script; what it returns goes to `leave`. Collective: yes."""
        layer = self.layer
        record = layer.record_of(solver)
        if not record.laid:
            layer.replace_absent_types(solver)
            layer.lay(kind, solver, record)
        call = None
        if self.watchers.pairs and method in _SOLVES.get(kind, ()):
            call = self.watchers.before(kind, method, solver, arguments, layer.depth > 0)
        names = layer.insert(record) if record.late else []
        layer.depth += kind in _HOLD_INNER_SOLVERS
        return kind, record, names, call, method == "setUp", overlay_watch.Stopwatch()

    def leave(self, entered: Any, failed: bool) -> None:
        """Undo what `enter` did, after the script's call. Collective: as far as a watcher is."""
        kind, record, names, call, sets_up, watch = entered
        seconds = watch.seconds()
        self.layer.depth -= kind in _HOLD_INNER_SOLVERS
        if names:
            self.layer.remove(names, record)
        if call is not None:
            self.watchers.after(call, seconds, failed)
        elif sets_up:
            record.set_up += seconds

    def guarded(self, function: Callable[..., Any], *arguments: Any, always: bool = False) -> Any:
        """Call a function of ours; if it raises, say so once and leave the script alone from then on."""
        if self._busy or (self.off and not always):
            return None
        self._busy = True
        try:
            return function(*arguments)
        except Exception as error:
            self.off = True
            self.warn(f"the overlay failed and is off from here: {type(error).__name__}: {error}")
            return None
        finally:
            self._busy = False

    def warn(self, text: str) -> None:
        """Print one line on stderr of rank 0, the same line only once. Collective: no."""
        line = f"pdeopt run: {' '.join(text.split())}\n"
        if line not in self._said:
            self._said.add(line)
            if self.PETSc.COMM_WORLD.getRank() == 0 and sys.stderr is not None:
                sys.stderr.write(line)


_overlay: Overlay | None = None


def watch(before: "overlay_watch.Watcher | None" = None, after: "overlay_watch.Watcher | None" = None) -> None:
    """Have functions called before and after each solve of the script, in this process.

    Covered are ``KSP.solve``, ``solveTranspose``, ``matSolve``, ``SNES.solve`` with the linear solves inside,
    ``TS.solve``, ``TS.step`` and ``TAO.solve``. Solves that a watcher makes itself are neither watched nor laid over. A
    watcher that raises is dropped with one line on stderr; the script goes on.

    Parameters
    ----------
    before, after
        Called with the `overlay_watch.Call`; the return value is ignored. Both run on every rank of the solver's
        communicator.

    Raises
    ------
    RuntimeError
        If no overlay is running in this process.

    Collective: no.
    """
    if _overlay is None:
        raise RuntimeError("no overlay runs in this process: start the script with `pdeopt run`")
    _overlay.watchers.pairs.append((before, after))


def start(loader: ModuleType) -> None:
    """Wait for ``petsc4py.lib``, just imported, to load PETSc. Collective: no."""
    original = loader.ImportPETSc

    @functools.wraps(original)
    def import_petsc(arch: str | None = None) -> ModuleType:
        PETSc = original(arch)
        if _overlay is None:
            try:
                _install(PETSc, json.loads(os.environ["PDEOPT_RUN_SETTINGS"]))
            except Exception as error:
                sys.stderr.write(f"pdeopt run: no overlay: {type(error).__name__}: {' '.join(str(error).split())}\n")
        return PETSc

    _hide_frames_from_tracebacks()
    loader.ImportPETSc = import_petsc  # type: ignore[attr-defined]


def _install(PETSc: ModuleType, settings: Mapping[str, Any]) -> None:
    """Wrap the solvers' methods, and the initialisation of PETSc, which reads some options itself."""
    global _overlay
    everything: Mapping[str, str] = settings["options"]
    own = {name: value for name, value in everything.items() if not name.startswith(_READ_BY_PETSC_ITSELF)}
    overlay = Overlay(PETSc, own)
    for kind in overlay_options.FAMILIES:
        overlay.set_from_options[kind] = getattr(PETSc, kind).setFromOptions
        for method in (*_SOLVES.get(kind, ()), "setUp"):
            _wrap(overlay, kind, method, _solve_wrapper)
        _wrap(overlay, kind, "setFromOptions", _set_from_options_wrapper)
        _wrap(overlay, kind, "setType", _set_type_wrapper)
        for method in _GETTERS_OF_INNER_SOLVERS.get(kind, ()):
            _wrap(overlay, kind, method, _getter_wrapper)
    _wrap(overlay, "PC", "apply", _solve_wrapper)
    _wrap(overlay, "PC", "setFactorSolverType", _set_type_wrapper)
    _wrap(overlay, "Options", "prefixPush", _prefix_wrapper)
    _wrap(overlay, "Options", "prefixPop", _prefix_wrapper)
    initialise = PETSc._initialize
    words = [f"-{name} {everything[name]}" for name in everything.keys() - own.keys()]

    def initialise_with_options(*arguments: Any) -> None:
        with _petsc_options(words):
            initialise(*arguments)
        overlay.guarded(_after_initialisation, overlay, settings)

    PETSc._initialize = initialise_with_options  # type: ignore[attr-defined]
    _overlay = overlay


@contextlib.contextmanager
def _petsc_options(words: list[str]) -> Any:
    """Add options to PETSC_OPTIONS for a while."""
    before = os.environ.get("PETSC_OPTIONS")
    if words:
        os.environ["PETSC_OPTIONS"] = " ".join([before or "", *words])
    try:
        yield
    finally:
        if words and before is None:
            del os.environ["PETSC_OPTIONS"]
        elif words:
            os.environ["PETSC_OPTIONS"] = before or ""


def _after_initialisation(overlay: Overlay, settings: Mapping[str, Any]) -> None:
    if overlay.PETSc.COMM_WORLD.getRank() == 0:
        path = os.path.join(settings["folder"], f"{os.uname().nodename}-{os.getpid()}.json")
        atexit.register(_write_record, overlay, path)
    if settings["watcher"]:
        module, _, function = settings["watcher"].partition(":")
        getattr(_watcher_module(module), function)()


def _watcher_module(name: str) -> ModuleType:
    """Return a module; a neighbour of this file by its path, since importing pdeopt would change the process."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name.rpartition(".")[2] + ".py")
    if name in sys.modules or not name.startswith("pdeopt.relaxation.") or not os.path.exists(path):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write_record(overlay: Overlay, path: str) -> None:
    """Tell the process that launched the script which options nothing has read."""
    unused = [] if overlay.off else sorted(overlay.layer.options.keys() - overlay.layer.used)
    with contextlib.suppress(OSError), open(path, "w") as file:
        json.dump({"unused": unused}, file)


# --- the wrapped methods ----------------------------------------------------------------------------------------------


def _wrap(overlay: Overlay, kind: str, method: str, wrapper: Callable[..., Any]) -> None:
    holder = getattr(overlay.PETSc, kind)
    original = getattr(holder, method, None)
    if original is not None:  # petsc4py of another version may lack some
        setattr(holder, method, functools.wraps(original)(wrapper(overlay, kind, method, original)))


def _solve_wrapper(overlay: Overlay, kind: str, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
    holds_inner_solvers = kind in _HOLD_INNER_SOLVERS
    layer = overlay.layer

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if overlay.is_ready(self):
            layer.depth += holds_inner_solvers
            try:
                return original(self, *args, **kwargs)
            finally:
                layer.depth -= holds_inner_solvers
        entered = overlay.guarded(overlay.enter, kind, method, self, (*args, *kwargs.values()))
        if entered is None:
            return original(self, *args, **kwargs)
        failed = True
        try:
            result = original(self, *args, **kwargs)
            failed = False
            return result
        finally:
            overlay.guarded(overlay.leave, entered, failed, always=True)

    return wrapper


def _set_from_options_wrapper(
    overlay: Overlay, kind: str, method: str, original: Callable[..., Any]
) -> Callable[..., Any]:
    def wrapper(self: Any) -> Any:
        overlay.guarded(overlay.layer.replace_absent_types, self)
        result = original(self)
        overlay.guarded(overlay.layer.after_script_options, kind, self)
        return result

    return wrapper


def _set_type_wrapper(overlay: Overlay, kind: str, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
    family = "pc_factor_mat_solver" if method == "setFactorSolverType" else overlay_options.FAMILIES[kind]

    def wrapper(self: Any, name: Any) -> Any:
        answer = overlay.guarded(lambda: (overlay.layer.type_to_set(family, self, name),))
        if answer is None:  # nobody was asked
            return original(self, name)
        return None if answer[0] is None else original(self, answer[0])

    return wrapper


def _getter_wrapper(overlay: Overlay, kind: str, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        overlay.guarded(overlay.layer.mark_inner, self, found)
        return found

    return wrapper


def _prefix_wrapper(overlay: Overlay, kind: str, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
    step = 1 if method == "prefixPush" else -1

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        overlay.layer.prefixes_pushed += step
        return result

    return wrapper


# --- tracebacks -------------------------------------------------------------------------------------------------------


def _hide_frames_from_tracebacks() -> None:
    """Show an uncaught exception as it would look without the overlay."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        seen: set[int] = set()
        links: list[BaseException | None] = [error]
        while links:
            link = links.pop()
            if link is not None and id(link) not in seen:
                seen.add(id(link))
                link.__traceback__ = _without_our_frames(link.__traceback__)
                links += [link.__cause__, link.__context__]
        previous(kind, error, _without_our_frames(trace))

    sys.excepthook = hook


def _without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    frames = []
    while trace is not None:
        if trace.tb_frame.f_code.co_filename != __file__:
            frames.append(trace)
        trace = trace.tb_next
    for above, below in zip(frames, [*frames[1:], None], strict=False):
        above.tb_next = below
    return frames[0] if frames else None
