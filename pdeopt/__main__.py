"""``python -m pdeopt`` is the same as ``pdeopt``."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Hand the words after ``pdeopt``, by default those of the process, to the command line that knows the command.

    Collective: as the command is.
    """
    from pdeopt import _cli_scripts

    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] and words[0] in _cli_scripts.COMMANDS:
        _cli_scripts.main(words)
    from pdeopt.cli import main as main_of_all

    main_of_all(words)


if __name__ == "__main__":
    main()
