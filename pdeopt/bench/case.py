"""One case in fresh processes: memory, and times on different numbers of ranks, cannot be compared otherwise."""

import argparse
import importlib
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from pdeopt._launchers import clean_environment
from pdeopt.bench import harness
from pdeopt.bench.record import as_json
from pdeopt.parallel import launcher_beside_interpreter, on_root
from pdeopt.report import InputError, LauncherError, PdeoptError

_GRACE_SECONDS = 15.0


class CaseError(PdeoptError, RuntimeError):
    """A case that ran in its own processes failed, or took too long."""


def launch_command(ranks: int) -> list[str]:
    """Return the start of a command line that runs this interpreter on ``ranks`` ranks.

    Raises
    ------
    InputError
        If ``ranks`` is less than 1.
    LauncherError
        If neither this interpreter's environment nor the PATH has an mpiexec.

    Collective: no.
    """
    if ranks < 1:
        raise InputError(f"the number of ranks is {ranks}: it must be at least 1")
    launcher = launcher_beside_interpreter() or shutil.which("mpiexec")
    if launcher is None:
        raise LauncherError(f"no mpiexec in {sys.prefix}/bin or on the PATH: install MPI beside mpi4py (pip: mpich)")
    return [str(launcher), "-n", str(ranks), sys.executable]


def run_case(module: str, arguments: Mapping[str, Any], ranks: int = 1, timeout: float = 600.0) -> harness.Row:
    """Run one function in fresh processes and return what it found, with its own record of time and memory.

    Parameters
    ----------
    module
        ``"package.module:function"``; the function is called on every rank as ``function(comm, **arguments)`` and
        returns a flat dictionary, of which that of rank 0 counts. The module must be importable in the child.
    arguments
        Keyword arguments, of types that JSON knows.
    ranks
        Number of ranks, >= 1.
    timeout
        Seconds after which the case is ended.

    Returns
    -------
    dict
        The function's dictionary, and ``ranks``, ``case seconds`` (wall time of the call on its slowest rank),
        ``job seconds`` (wall time with launch and imports) and ``peak memory [MiB]`` (summed over the ranks).

    Raises
    ------
    CaseError
        If the case fails or does not end in time; the message has the last lines of what it printed on stderr.

    Collective: no. A benchmark on several ranks calls it by `parallel.on_root`; the ranks that wait in the broadcast
    spin meanwhile, so timings need a benchmark started on one rank.
    """
    with tempfile.TemporaryDirectory(prefix="pdeopt-case-") as folder:
        output = pathlib.Path(folder, "result.json")
        command = [*launch_command(ranks), "-m", "pdeopt.bench.case", module, json.dumps(dict(arguments)), str(output)]
        # The launcher ends its ranks itself, on every node; the time limit of the pipe is only the second line.
        environment = clean_environment(os.environ) | {"MPIEXEC_TIMEOUT": str(math.ceil(timeout))}
        start = time.perf_counter()
        try:
            job = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=timeout + _GRACE_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise CaseError(f"{module} on {ranks} ranks did not end within {timeout:g} s") from error
        seconds = time.perf_counter() - start
        if job.returncode != 0 or not output.exists():
            late = f"did not end within {timeout:g} s" if seconds >= timeout else f"failed (status {job.returncode})"
            raise CaseError(f"{module} on {ranks} ranks {late}:\n" + "\n".join(job.stderr.splitlines()[-20:]))
        return {**json.loads(output.read_text()), "job seconds": seconds}


def _run_in_child(module: str, arguments: Mapping[str, Any], output: pathlib.Path) -> None:
    """Call the case on all ranks and write its record on rank 0. Collective: yes."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    module_name, _, function_name = module.partition(":")
    function = getattr(importlib.import_module(module_name), function_name)
    comm.Barrier()
    start = time.perf_counter()
    result = function(comm, **arguments)
    seconds = float(comm.allreduce(time.perf_counter() - start, op=MPI.MAX))
    measured = {"ranks": comm.size, "case seconds": seconds, "peak memory [MiB]": harness.peak_memory(comm)}
    on_root(comm, lambda: output.write_text(as_json({**result, **measured})))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", help="package.module:function")
    parser.add_argument("arguments", type=json.loads, help="keyword arguments, as a JSON object")
    parser.add_argument("output", type=pathlib.Path, help="file that receives the JSON record")
    options = parser.parse_args()
    _run_in_child(options.case, options.arguments, options.output)
