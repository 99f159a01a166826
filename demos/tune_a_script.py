# # A script as it is, made faster from outside
#
# `demos/scripts/cantilever.py` is an ordinary DOLFINx script: a beam of linear elasticity, clamped at one end, under
# its weight in three positions, solved with the two options that most tutorials show, `preonly` and `lu`. It has never
# heard of pdeopt, and nothing in it is changed here.
#
# `pdeopt tune` runs it and watches its linear solves. Some of the systems are solved again by other solvers, to the
# same accuracy, and what would have been faster is reported with the options to paste. `pdeopt run --tuned` runs the
# script with them. Either way the script prints what it always printed.
#
# Run it with `python demos/tune_a_script.py`, or with `mpirun -n 2` to tune the script on two ranks.

import os
import pathlib
import re
import subprocess
import sys
import time

from mpi4py import MPI

import matplotlib.figure

from pdeopt.bench.case import clean_environment, launch_command
from pdeopt.parallel import print_root

comm = MPI.COMM_WORLD
folder = pathlib.Path(__file__).resolve().parent.parent / "out_tune_a_script"
script = pathlib.Path(__file__).resolve().parent / "scripts" / "cantilever.py"
arguments = [str(script), "10"]

# ## Three runs
#
# On the command line these are
#
# ```console
# $ python cantilever.py 10
# $ pdeopt tune --save tuned.json --report report.txt -- python cantilever.py 10
# $ pdeopt run --tuned tuned.json -- python cantilever.py 10
# ```
#
# with `-n 2` behind `tune` and `run` for two ranks. A process that MPI has started must not start another one under
# its own name, so `clean_environment` takes away what the launcher has left.

ranks = [] if comm.size == 1 else ["-n", str(comm.size)]
python = [sys.executable, *arguments]
pdeopt = [sys.executable, "-m", "pdeopt"]
own = [*launch_command(comm.size), *arguments] if ranks else python
tune = [*pdeopt, "tune", *ranks, "--save", "tuned.json", "--report", "report.txt", "--", *python]
tuned = [*pdeopt, "run", *ranks, "--tuned", "tuned.json", "--", *python]


def run(words):
    """Run a command in the folder of the pictures; return its seconds and what it prints."""
    began = time.perf_counter()
    environment = clean_environment(os.environ) | {"OMP_NUM_THREADS": "1"}
    job = subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began, job.stdout


results = None
if comm.rank == 0:
    folder.mkdir(exist_ok=True)
    run(own)  # compiles the forms
    results = run(own), run(tune), run(tuned), (folder / "report.txt").read_text()
request = comm.Ibarrier()
while not request.Test():  # without the processor, which the script needs
    time.sleep(0.05)
(seconds, printed), (tuning, printed_meanwhile), (tuned_seconds, tuned_printed), report = comm.bcast(results)
assert printed_meanwhile == printed
print_root(comm, printed.rstrip())

# ## The report

print_root(comm, report.rstrip().replace(sys.executable, "python").replace(str(script), script.name))

# ## The answers
#
# The largest entries of the displacement, in digits that the script prints.


def numbers(text):
    """Return the deflections that the script has printed."""
    return [float(word) for word in re.findall(r"deflection (\S+)", text)]


difference = max(abs(a - b) / abs(a) for a, b in zip(numbers(printed), numbers(tuned_printed), strict=True))
state = "converged (reason: equal answers)" if difference < 1e-6 else "NOT converged"
print_root(
    comm,
    f"{state}; alone {seconds:.2f} s, tuned {tuned_seconds:.2f} s, tuning itself {tuning:.2f} s; "
    f"largest relative difference of a deflection {difference:.1e}",
)

# ## Pictures
#
# The seconds that each solver would have taken for all solves of the script, set-up included, and the whole script.

if comm.rank == 0:
    arms = {name: float(value) for name, value in re.findall(r"^ {4}(\S.*?) +([\d.]+) s", report, re.MULTILINE)}
    figure = matplotlib.figure.Figure(figsize=(7.5, 2.2 + 0.3 * len(arms)), layout="constrained")
    axes = figure.subplots()
    order = sorted(arms, key=arms.get, reverse=True)
    colours = ["tab:orange" if name == "own" else "tab:blue" for name in order]
    bars = axes.barh(order, [arms[name] for name in order], color=colours)
    axes.bar_label(bars, fmt="%.3f s", padding=3)
    axes.set_xlim(0.0, 1.18 * max(arms.values()))
    axes.set_xlabel("seconds of all linear solves, at equal accuracy")
    axes.set_title(f"{script.name}: its own solver and what was tried")
    figure.savefig(folder / "tuned_arms.png", dpi=150)

    figure = matplotlib.figure.Figure(figsize=(7.5, 2.4), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(["tuned", "as it is"], [tuned_seconds, seconds], color=["tab:blue", "tab:orange"])
    axes.bar_label(bars, fmt="%.2f s", padding=3)
    axes.set_xlim(0.0, 1.15 * max(seconds, tuned_seconds))
    axes.set_xlabel("seconds of the whole script, from start to end")
    axes.set_title(f"{script.name} on {comm.size} rank(s)")
    figure.savefig(folder / "script.png", dpi=150)
