"""The folder of run states, on rank 0: hidden names, manifests, the atomic rename, the newest complete state."""

import contextlib
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

from pdeopt.fem._checkpoint_store import damage, push_folder_to_disk, push_to_disk
from pdeopt.report import InputError

_FORMAT = 1
_MANIFEST, _DIGEST = "manifest.json", "manifest.sha256"


def publish(staging: pathlib.Path, content: Mapping[str, Any], keep: int) -> pathlib.Path:
    """Write the manifest, give the state its name, and remove the oldest states and what killed runs left.

    Returns
    -------
    pathlib.Path
        The state's folder, of a number one above all others.
    """
    manifest = json.dumps({"format": _FORMAT, **content}, indent=1).encode()
    for name, text in ((_MANIFEST, manifest), (_DIGEST, _digest_line(manifest))):
        with open(staging / name, "wb") as stream:
            stream.write(text)
            push_to_disk(stream)
    push_folder_to_disk(staging)
    folder = staging.parent
    older = numbered_states(folder)
    target = folder / f"state-{max(older, default=0) + 1:06d}"
    staging.rename(target)
    push_folder_to_disk(folder)
    for number in sorted(older)[: max(0, len(older) + 1 - keep)]:
        # Hidden first: a kill in the middle must not leave a half under a state's name.
        with contextlib.suppress(OSError):
            older[number].rename(folder / f".{older[number].name}.partial")
    for remains in folder.glob(".state-*.partial"):
        shutil.rmtree(remains, ignore_errors=True)
    return target


def newest_state(folder: pathlib.Path, strict: bool) -> tuple[pathlib.Path, dict[str, Any], list[str]] | None:
    """Find the newest state whose files are all what was written.

    Returns
    -------
    (path, content, damaged) or None
        The state, its manifest, and what is wrong with each newer one; None if there is no state at all.

    Raises
    ------
    InputError
        If no state is complete, or the newest is not and ``strict`` asks for it.
    """
    states = numbered_states(folder)
    damaged: list[str] = []
    for number in sorted(states, reverse=True):
        try:
            content = _verified_manifest(states[number])
        except InputError as error:
            damaged.append(str(error))
        except OSError as error:
            damaged.append(f"{states[number]}: {error.strerror or error}")
        else:
            return states[number], content, damaged
        if strict:
            break
    if not damaged:
        return None
    raise InputError("; ".join(damaged) + ": there is no state to go on from; restore these files, or start anew")


def numbered_states(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Return the folders of states by number."""
    if not folder.is_dir():
        return {}
    matches = ((re.fullmatch(r"state-(\d{6,})", path.name), path) for path in folder.iterdir() if path.is_dir())
    return {int(match[1]): path for match, path in matches if match}


def _verified_manifest(state: pathlib.Path) -> dict[str, Any]:
    """Return the manifest after all files were compared with their digests."""
    for name in (_MANIFEST, _DIGEST):
        if not (state / name).is_file():
            raise InputError(f"{state}: the file '{name}' is missing")
    manifest = (state / _MANIFEST).read_bytes()
    if (state / _DIGEST).read_bytes() != _digest_line(manifest):
        raise InputError(f"{state}: the manifest is not what was written (wrong SHA-256)")
    content: dict[str, Any] = json.loads(manifest)
    if content["format"] > _FORMAT:
        raise InputError(
            f"{state}: it has format {content['format']}, written by pdeopt {content['versions']['pdeopt']}, and this "
            f"one reads formats up to {_FORMAT}: update pdeopt"
        )
    wrong = damage(state, content["files"])
    if wrong:
        raise InputError(f"{state}: {wrong}")
    return content


def _digest_line(manifest: bytes) -> bytes:
    """Return the line that `sha256sum --check` reads."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {_MANIFEST}\n".encode()
