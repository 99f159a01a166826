"""Hidden folders in which files are written before they get their names."""

import pathlib
import secrets

from pdeopt.report import InputError


def staging_folder(target: pathlib.Path) -> pathlib.Path:
    """Make a target's folder and, in it, a hidden folder on the same file system in which to write first.

    Parameters
    ----------
    target
        What is to appear.

    Raises
    ------
    InputError
        If a folder cannot be made.

    Collective: no; call it on rank 0 through `pdeopt.parallel.on_root`.
    """
    staging = target.parent / f".{target.stem}-{secrets.token_hex(4)}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
    except OSError as error:
        raise InputError(
            f"cannot write to the folder '{target.parent}': {error.strerror}; choose one that you may write to"
        ) from error
    return staging
