"""``pdeopt run`` and ``pdeopt tune``: commands that only start a script.

Their seconds are added to those of every run of the script, so this process loads neither MPI nor numpy, nor what
draws the other commands' tables. MPI must not be initialised here in any case, since the script may call a launcher.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from pdeopt._launchers import announced_sizes, clean_environment
from pdeopt.report import InputError, PdeoptError

COMMANDS = ("run", "tune")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the two commands and leave the process with its exit status; errors are one line.

    Parameters
    ----------
    arguments
        The words after ``pdeopt``; by default those of the process.

    Collective: no.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, command = _split(words)
    try:
        parsed = _parser().parse_args(own)
        _refuse_ranks(parsed.name)
        status = (_run if parsed.name == "run" else _tune)(parsed, [*parsed.command, *command])
    except PdeoptError as error:
        sys.stderr.write(f"pdeopt: {error}\n")
        sys.exit(2 if isinstance(error, InputError) else 1)
    sys.exit(status)


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of ours, up to ``--``, and those of the script's command."""
    end = words.index("--") if "--" in words else len(words)
    own = list(words[:end])
    if "--options" in own[:-1]:  # its value begins with a hyphen
        place = own.index("--options")
        own[place : place + 2] = [f"--options={own[place + 1]}"]
    return own, list(words[end + 1 :])


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are exceptions."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pdeopt", allow_abbrev=False)
    commands = parser.add_subparsers(dest="name")
    run = commands.add_parser(
        "run",
        allow_abbrev=False,
        usage="pdeopt run [-n RANKS] [--options OPTIONS] [--tuned FILE] -- COMMAND ...",
        description=(
            "Run a script that stays as it is, with PETSc options laid over its own. What stands after -- is run as it "
            "is; the exit status is that of the script. A solver type that this PETSc lacks is replaced by the nearest "
            "one."
        ),
    )
    run.add_argument(
        "--options",
        default="",
        help="PETSc options in one word. An option with a solver's prefix is for that solver; one without is for each.",
    )
    run.add_argument(
        "--tuned",
        type=pathlib.Path,
        metavar="FILE",
        help="file of `pdeopt tune --save`, whose solvers replace those of the script",
    )
    tune = commands.add_parser(
        "tune",
        allow_abbrev=False,
        usage="pdeopt tune [-n RANKS] [--budget BUDGET] [--save FILE] [--report FILE] -- COMMAND ...",
        description=(
            "Run a script as it is, and find faster solvers for its linear systems. The script gets the answers of its "
            "own solvers; the exit status is that of the script. The report goes to stderr."
        ),
    )
    tune.add_argument(
        "--budget",
        type=float,
        default=1.0,
        help="seconds that trying may take, over those of the script's own solves (%(default)s)",
    )
    tune.add_argument("--save", type=pathlib.Path, metavar="FILE", help="file for `pdeopt run --tuned`")
    tune.add_argument("--report", type=pathlib.Path, metavar="FILE", help="file for the report")
    for command in (run, tune):
        command.add_argument(
            "-n",
            "--ranks",
            type=int,
            metavar="RANKS",
            help="number of MPI ranks, started by the mpiexec that belongs to the script's Python; without it the "
            "command may call a launcher itself",
        )
        command.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run, after --")
    return parser


def _refuse_ranks(name: str) -> None:
    sizes = announced_sizes(os.environ).values()
    if sizes and 1 not in sizes:
        raise InputError(f"this command starts MPI itself: pdeopt {name} -n {max(sizes)} -- ...")


def _run(parsed: argparse.Namespace, command: Sequence[str]) -> int:
    from pdeopt.relaxation import launch

    options, environment = launch.parse_options(parsed.options), clean_environment(os.environ)
    if parsed.tuned is None:
        return launch.run_script(command, options, parsed.ranks, environment=environment)
    from pdeopt.relaxation import tune

    return tune.run_tuned(command, parsed.tuned, options, parsed.ranks, environment)


def _tune(parsed: argparse.Namespace, command: Sequence[str]) -> int:
    from pdeopt.relaxation import tune

    environment = clean_environment(os.environ)
    return tune.tune_script(command, parsed.ranks, parsed.budget, parsed.save, parsed.report, environment)
