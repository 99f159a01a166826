"""Start a script as a child with options laid over its own, and hand back its exit status."""

import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from pdeopt._startup import _THREAD_VARIABLES
from pdeopt.report import InputError, LauncherError, OptionError

_SOLVER_TYPE = "pc_factor_mat_solver_type"
# Packages that order the unknowns themselves unless PETSc does it for them.
_ORDERING_PACKAGES = ("mumps", "superlu_dist", "superlu", "umfpack", "cholmod", "klu", "strumpack", "pastix")
_HOOKS = pathlib.Path(__file__).with_name("hooks")


def parse_options(text: str) -> dict[str, str]:
    """Return option name (without hyphen) -> value, as PETSc reads them from a command line; the last of two wins.

    Raises
    ------
    OptionError
        If the text does not begin with an option, a value stands where an option should, or quotes are not closed.

    Collective: no.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise OptionError(f"--options {text!r} cannot be read: {error}") from error
    options: dict[str, str] = {}
    name = None
    for word in words:
        if _is_option(word):
            name = word.lstrip("-")
            options[name] = ""
        elif name is None:
            raise OptionError(f"--options: {word!r} belongs to no option: write it as '-name value'")
        else:
            options[name] = word
            name = None
    return options


def _is_option(word: str) -> bool:
    """Whether PETSc takes the word for an option's name: a hyphen, then no digit."""
    return len(word) > 1 and word[0] == "-" and (word[1].isalpha() or word[1] in "-_")


def run_script(
    command: Sequence[str],
    options: Mapping[str, str],
    ranks: int | None = None,
    watcher: str = "",
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a command in whose Python processes PETSc options are laid over those of the script.

    Standard streams and working directory are those of this process.

    Parameters
    ----------
    command
        The words to run, for instance ``["python", "script.py"]`` or ``["mpirun", "-n", "2", "python", "script.py"]``.
    options
        Option name without hyphen -> value.
    ranks
        Number of MPI ranks, >= 1, started by the mpiexec beside the interpreter that the command names. None runs the
        command as it is.
    watcher
        ``"module:function"`` that is called in every process of the script when its PETSc is there; it may call
        `overlay.watch`.
    environment
        The script's environment, by default that of this process. It gets PYTHONPATH and PDEOPT_RUN_* in addition, and
        loses the thread limits that importing pdeopt has set here.

    Returns
    -------
    int
        The exit status, 128 + n where signal n ended the command.

    Raises
    ------
    InputError
        If there is no command, or it cannot be found, or ``ranks`` is less than 1.
    LauncherError
        If ``ranks`` is given and there is no mpiexec.

    Collective: no.
    """
    if not command:
        raise InputError("no command: write it after --, as in `pdeopt run -- python script.py`")
    words = list(command) if ranks is None else [*_launcher(command[0], ranks), *command]
    with tempfile.TemporaryDirectory(prefix="pdeopt-run-") as folder:
        settings = {"options": _with_orderings(options), "folder": folder, "watcher": watcher}
        status = _wait(words, _environment(os.environ if environment is None else environment, settings))
        for line in _remarks(pathlib.Path(folder), options, status):
            sys.stderr.write(f"pdeopt run: {line}\n")
    return status


def run_plain(command: Sequence[str], ranks: int | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Run a command as `run_script` does, without anything laid over it: as if pdeopt were not there.

    Collective: no.
    """
    if not command:
        raise InputError("no command: write it after --, as in `pdeopt run -- python script.py`")
    words = list(command) if ranks is None else [*_launcher(command[0], ranks), *command]
    return _wait(words, _without_our_limits(os.environ if environment is None else environment))


def _with_orderings(options: Mapping[str, str]) -> dict[str, str]:
    """Return the options, and for each package that factors, that it orders the unknowns itself.

    A preconditioner that the script has set to PETSc's own factorisation keeps its ordering when the package changes;
    then MUMPS takes that one, without a look at the values, and may need fifty times as long.
    """
    result = dict(options)
    for name, package in options.items():
        ordering = name.removesuffix(_SOLVER_TYPE) + "pc_factor_mat_ordering_type"
        if name.endswith(_SOLVER_TYPE) and package in _ORDERING_PACKAGES:
            result.setdefault(ordering, "external")
    return result


def _launcher(program: str, ranks: int) -> list[str]:
    """Return the launcher's words: the mpiexec beside the program, or else the one of this interpreter."""
    if ranks < 1:
        raise InputError(f"the number of ranks is {ranks}: it must be at least 1")
    found = shutil.which(program)
    folders = [] if found is None else [pathlib.Path(found).parent]
    for folder in [*folders, pathlib.Path(sys.prefix, "bin")]:
        for name in ("mpiexec", "mpirun"):
            if (folder / name).exists():
                return [str(folder / name), "-n", str(ranks)]
    raise LauncherError(f"no mpiexec beside {program} or in {sys.prefix}/bin: install MPI beside mpi4py (pip: mpich)")


def _environment(base: Mapping[str, str], settings: Mapping[str, object]) -> dict[str, str]:
    """Return the environment of the child."""
    environment = _without_our_limits(base)
    return environment | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_HOOKS), environment.get("PYTHONPATH")])),
        "PDEOPT_RUN_FOLDER": str(settings["folder"]),
        "PDEOPT_RUN_SETTINGS": json.dumps(settings),
    }


def _without_our_limits(base: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the thread limits that importing pdeopt has set here."""
    environment = dict(base)
    with contextlib.suppress(OSError):  # not Linux: the limits stay
        at_start = pathlib.Path("/proc/self/environ").read_bytes().split(b"\0")
        for name in _THREAD_VARIABLES:
            if environment.get(name) == "1" and f"{name}=1".encode() not in at_start:
                del environment[name]
    return environment


def _wait(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the command to its end; signals that are sent to this process reach it."""
    try:
        with _signals_forwarded() as children:
            child = subprocess.Popen(words, env=environment)
            children.append(child)
            status = child.wait()
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"{words[0]!r} cannot be run: {error.strerror}") from error
    return 128 - status if status < 0 else status


@contextlib.contextmanager
def _signals_forwarded() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Leave Ctrl-C to the child, which the terminal sends it to as well, and pass on what asks for an end."""
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _frame: object) -> None:
        for child in children:
            child.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield children
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _remarks(folder: pathlib.Path, options: Mapping[str, str], status: int) -> Iterator[str]:
    """Yield what the user should know once the script has ended: options that had no effect, and why."""
    if not options or (folder / "failed").exists():
        return
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    if records:
        unused = set.intersection(*(set(record["unused"]) for record in records))
        if unused:
            yield "no solver used " + ", ".join(f"-{name}" for name in options if name in unused)
    elif not (folder / "started").exists():
        yield "the options had no effect: no Python of this command reads PYTHONPATH"
    elif status == 0:
        yield "the options had no effect: the script has not used petsc4py"
