"""`pdeopt tune`: a script gets its own answers, and the report what would have been faster at equal accuracy."""

import json
import re
import subprocess
import sys
from pathlib import Path

from petsc4py import PETSc

import numpy as np
import pytest
import tune_scripts

from pdeopt import _cli_scripts
from pdeopt.relaxation import tune, tune_report
from pdeopt.report import InputError

pytestmark = pytest.mark.alone

# One script with many solvers: each launch costs a second.
MANY = (
    tune_scripts.HEAD
    + """
lu = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "petsc"}

# PETSc's own factorisation with the natural ordering: anything is faster.
A = from_coo(70**2, *five_point(70))
b, x = load(A)
ksp = solver("slow_", A, **lu, pc_factor_mat_ordering_type="natural")
ksp.solve(b, x)
done("slow_", ksp, x)

# Without a prefix, by a place in the script; assembled again at every solve with the same values.
C = from_coo(60**2, *five_point(60))
b, x = load(C)
ksp = solver(None, C, **lu, pc_factor_mat_ordering_type="natural")
for name in lu:
    PETSc.Options().delValue(name)
PETSc.Options().delValue("pc_factor_mat_ordering_type")
for step in range(3):
    C.setValuesCOO(five_point(60)[2])
    ksp.solve(b, x)
done("place", ksp, x)

# An error in the middle of a Newton method does not confuse what comes after it.
snes = PETSc.SNES().create()
snes.setOptionsPrefix("newton_")
snes.setFunction(lambda snes, x, f: (C.mult(x, f), f.axpy(-1.0, b)), b.duplicate())
snes.setJacobian(lambda snes, x, J, P: None, C)
snes.getKSP().setType("cg")
snes.getKSP().setTolerances(max_it=1)
snes.getKSP().setErrorIfNotConverged(True)
x.set(0.0)
try:
    snes.solve(None, x)
except PETSc.Error as error:
    print("newton", error.ierr, flush=True)

# Nothing is faster than a division where the matrix is nearly diagonal.
D = from_coo(300**2, *five_point(300, shift=1e8))
b, x = load(D)
ksp = solver("best_", D, ksp_type="preonly", pc_type="jacobi")
solve_for_a_while(ksp, b, x)
done("best_", ksp, x)

# Symmetric at first, and then not: conjugate gradients pass the first time.
N = from_coo(70**2, *five_point(70))
b, x = load(N)
ksp = solver("later_", N, **lu, pc_factor_mat_ordering_type="natural")
for convection in (0.0, 0.8, 0.5):
    N.setValuesCOO(five_point(70, convection)[2])
    ksp.solve(b, x)
done("later_", ksp, x)

# Matrices without entries.
N = PETSc.Mat().createNest([[A]])
ksp = solver("nest_", N, ksp_type="cg", pc_type="none", ksp_rtol=1e-6)
b, x = N.createVecs()
b.set(1.0)
solve_for_a_while(ksp, b, x)
done("nest_", ksp, x)
"""
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # pdeopt itself need not be there
    return tmp_path


def norms(text):
    return {name: float(norm) for name, norm in map(str.split, text.splitlines())}


def types(text):
    return {words[0]: tuple(words[1:]) for words in map(str.split, text.splitlines()) if len(words) == 4}


def test_script_of_many_solvers(folder, capfd):
    (folder / "many.py").write_text(MANY)
    command = [sys.executable, "many.py"]
    alone = subprocess.run(command, capture_output=True, text=True, env=tune_scripts.environment(), check=True)
    status = tune.tune_script(command, None, 3.0, folder / "tuned.json", folder / "report", tune_scripts.environment())
    captured = capfd.readouterr()
    assert (status, captured.out, captured.err) == (0, alone.stdout, alone.stderr)
    report = (folder / "report").read_text()
    parts = tune_scripts.parts(report)
    slow = parts["prefix slow_"]
    assert "petsc_options = {" in slow
    assert '"ksp_type": "cg"' in slow
    assert "your solver is already the best" in parts["prefix best_"]
    assert "no entries to look at" in parts["prefix nest_"]
    (place,) = [part for name, part in parts.items() if name.startswith("no prefix")]
    assert "many.py:" in place
    assert '"ksp_reuse_preconditioner": 1' in place
    solvers = {solver["prefix"]: solver for solver in tune_report.load(folder / "tuned.json")}
    assert {"slow_", ""} <= set(solvers) <= {"slow_", "", "later_"}

    # A tuned solver that fails on a later matrix costs a factorisation, not the script.
    weak = {"ksp_type": "cg", "pc_type": "none", "ksp_max_it": "3"}
    solvers["later_"] = {"prefix": "later_", "site": "", "options": weak}
    (folder / "tuned.json").write_text(json.dumps({"format": tune_report.FORMAT, "solvers": list(solvers.values())}))
    status = tune.run_tuned(command, folder / "tuned.json", {}, environment=tune_scripts.environment())
    captured = capfd.readouterr()
    assert status == 0
    before, after = norms(alone.stdout), norms(captured.out)
    assert after == {name: pytest.approx(norm, rel=1e-6) for name, norm in before.items()}
    used = types(captured.err)
    for name, prefix in ("slow_", "slow_"), ("place", ""):
        options = solvers[prefix]["options"]
        assert used[name][:2] == (options["ksp_type"], options["pc_type"])
        assert used[name] != types(alone.stderr)[name]
    for name in ("best_", "nest_"):
        assert used[name] == types(alone.stderr)[name]
    (line,) = [line for line in captured.err.splitlines() if "pdeopt" in line]
    assert line == "pdeopt run: the tuned solver of later_ failed with reason -3, LU by MUMPS instead"
    assert used["later_"][:2] == ("fgmres", "lu")


DOLFINX = """
from mpi4py import MPI
from petsc4py import PETSc
import ufl
from dolfinx import default_scalar_type, fem, mesh
from dolfinx.fem.petsc import LinearProblem

domain = mesh.create_unit_square(MPI.COMM_WORLD, 64, 64)
space = fem.functionspace(domain, ("Lagrange", 1))
domain.topology.create_connectivity(1, 2)
facets = mesh.exterior_facet_indices(domain.topology)
zero = fem.dirichletbc(default_scalar_type(0), fem.locate_dofs_topological(space, 1, facets), space)
u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
a = ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
L = ufl.inner(fem.Constant(domain, default_scalar_type(1)), v) * ufl.dx
options = {"ksp_type": "gmres", "pc_type": "none", "ksp_rtol": 1e-8}
problem = LinearProblem(a, L, bcs=[zero], petsc_options_prefix="poisson_", petsc_options=options)
for _ in range(2):
    problem.solve()
norm = problem.x.norm()
if domain.comm.rank == 0:
    print(f"{norm:.12e}", problem.solver.getType(), problem.solver.getPC().getType())
raise SystemExit(3)
"""


def test_dolfinx_script_that_fails_on_two_ranks(folder, capfd):
    (folder / "poisson.py").write_text(DOLFINX)

    def status_of(*words):
        with pytest.raises(SystemExit) as stop:
            _cli_scripts.main([*words, "-n", "2", "--", sys.executable, "poisson.py"])
        return stop.value.code, capfd.readouterr()

    status, captured = status_of("tune", "--save", "tuned.json")
    assert status == 3
    norm, *own = captured.out.split()
    assert own == ["gmres", "none"]
    assert "the script ended with status 3" in captured.err
    assert "  2 solves, " in captured.err
    # LinearProblem assembles at each solve; the values are the same.
    assert "assembled 2 times, with new values 1 times" in captured.err
    (solver,) = json.loads((folder / "tuned.json").read_text())["solvers"]
    assert (solver["prefix"], solver["ranks"]) == ("poisson_", 2)
    status, captured = status_of("run", "--tuned", "tuned.json")
    assert (status, captured.err) == (3, "")
    tuned_norm, *used = captured.out.split()
    assert used == [solver["options"]["ksp_type"], solver["options"]["pc_type"]]
    assert used != own
    assert float(tuned_norm) == pytest.approx(float(norm), rel=1e-6)


KILLED = (
    tune_scripts.HEAD
    + """
import os
import signal
A = from_coo(70**2, *five_point(70))
b, x = load(A)
ksp = solver("slow_", A, ksp_type="preonly", pc_type="lu", pc_factor_mat_solver_type="petsc",
             pc_factor_mat_ordering_type="natural")
# Solved again by others is the 2^k-th, and the end comes just before.
times = [time.perf_counter()]
while times[-1] < times[0] + 1.0 or len(times) & (len(times) - 1):
    A.setValuesCOO(five_point(70)[2])
    ksp.solve(b, x)
    times.append(time.perf_counter())
print(sum(end < times[-1] - 0.4 for end in times[1:]), len(times) // 2, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
)


def test_script_that_is_killed_is_reported_as_far_as_it_came(folder, capfd):
    (folder / "killed.py").write_text(KILLED)
    command = [sys.executable, "killed.py"]
    status = tune.tune_script(
        command, save=folder / "tuned.json", report=folder / "report", environment=tune_scripts.environment()
    )
    assert status == 128 + 9
    report = (folder / "report").read_text()
    assert "the script ended with status 137: what it did until then is all that was seen" in report
    solves = int(re.search(r"(\d+) solves", tune_scripts.parts(report)["prefix slow_"]).group(1))
    until_shortly_before, until_others_were_tried = map(int, capfd.readouterr().out.split())
    assert solves >= until_shortly_before > until_others_were_tried
    assert [solver["prefix"] for solver in tune_report.load(folder / "tuned.json")] == ["slow_"]


ALONE = """
import sys
import time
from mpi4py import MPI
from petsc4py import PETSc
from pdeopt.relaxation import overlay_watch, rule, tune_replay
from pdeopt.relaxation.features import FeatureReader
from pdeopt.relaxation.reuse import ValueWatch

overlay_watch.ALONE = 0.5
A = PETSc.Mat().createAIJ((10, 10), nnz=1)
for i in range(*A.getOwnershipRange()):
    A[i, i] = 1.0 + i
A.assemble()
x, b = A.createVecs()
x.set(1.0)
A.mult(x, b)
ksp = PETSc.KSP().create()
ksp.setOperators(A)
watch = ValueWatch()
watch.compare(A)
system = tune_replay.System(ksp, A, b, x, None, 1.0, FeatureReader().read(A, watch.vector, watch.image))
arm = tune_replay.Arm(rule.jacobi(system.features), {"ksp_type": "cg", "pc_type": "jacobi"})
for ranks in (0, 1), (1,):
    def isolated(entries, function):
        if MPI.COMM_WORLD.rank in ranks:
            raise MemoryError("no room")
        function()

    trial = arm.attempt(system, 1.0, isolated)
    if MPI.COMM_WORLD.rank == 0:
        print(trial.state, trial.why, flush=True)
"""


def test_error_on_one_rank_alone_ends_all_ranks(folder):
    (folder / "alone.py").write_text(ALONE)
    root = Path(tune.__file__).parents[2]
    launcher = Path(sys.executable).with_name("mpiexec")
    environment = tune_scripts.environment() | {"PYTHONPATH": str(root)}
    job = subprocess.run(
        [launcher, "-n", "2", sys.executable, "alone.py"], env=environment, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert job.stdout.splitlines() == ["failed no room"]
    assert job.returncode != 0
    assert "pdeopt tune: rank 1 failed alone while trying CG with Jacobi: no room" in job.stderr


def test_answers_are_compared_without_the_null_space():
    n = 40
    neumann = 2.0 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    neumann[0, 0] = neumann[-1, -1] = 1.0
    A = tune_scripts.dense(neumann)
    system = tune_scripts.system_of(A, np.sin(np.arange(n)))
    other = system.x.copy()
    other.shift(3.0)
    assert system.relative_residual(other) < 1e-12
    assert system.difference(other) > 1.0
    A.setNullSpace(PETSc.NullSpace().create(constant=True, comm=PETSc.COMM_SELF))
    assert system.difference(other) < 1e-12
    other.setValue(0, 5.0)
    assert system.difference(other) > 1e-2


def entry(**changes):
    arm = {
        "options": {"ksp_type": "cg", "pc_type": "jacobi"},
        "kind": "incomplete", "setups": [0.1, 0.1], "updates": [], "solves": [0.01, 0.01], "symmetric": True,
        "systems": 2, "state": "equal", "why": "", "iterations": 5,
    }  # fmt: skip
    base = {
        "key": "p_", "prefix": "p_", "site": "s.py:1", "inside": "", "own": "preonly + lu (petsc)", "size": 10,
        "ranks": 1, "features": "", "solves": 200, "iterations": 200, "failed": 0, "values": 1, "assemblies": 1,
        "seconds": 4.0, "first": 0.02, "symmetric": True, "kept": "", "samples": [0.02], "arms": {"arm": arm},
    }  # fmt: skip
    return base | changes


def test_verdicts():
    # Set up once for 200 solves: 0.1 + 200 * 0.01.
    verdict = tune_report.judge(entry())
    assert verdict.arm == "arm"
    assert verdict.seconds == pytest.approx(2.1)
    assert verdict.options[tune_report.REUSE] == "1"
    # Set up for each new matrix: 200 * 0.11 is more than the script's own 4 s.
    assert not tune_report.judge(entry(values=200, assemblies=200)).arm
    assert not tune_report.judge(entry(symmetric=False)).arm
    assert tune_report.judge(entry(seconds=2.3)).why == "your solver is already the best"  # 1.095 times
    assert tune_report.judge(entry(seconds=2.4)).arm
    assert tune_report.judge(entry(seconds=2.4), script=20.0).why.startswith(
        "your solver is good enough: arm would save 0.3"
    )
    assert tune_report.judge(entry(kept="singular")).why == "kept: singular"
    # A gain that is within the spread of its own timings is none.
    noisy = entry(seconds=2.6)
    noisy["arms"]["arm"].update(setups=[0.1, 0.1], solves=[0.005, 0.095])
    assert not tune_report.judge(noisy).arm


def test_what_cannot_be_tuned_or_read_says_so(folder, capfd):
    command = [sys.executable, "-c", "print(1)"]
    assert tune.tune_script(command, environment=tune_scripts.environment()) == 0
    assert capfd.readouterr() == ("1\n", "pdeopt tune: no linear solve was seen\n")
    for wrong in ({"budget": 0.0}, {"save": folder / "nowhere" / "file"}):
        with pytest.raises(InputError):
            tune.tune_script(command, environment=tune_scripts.environment(), **wrong)
    path = folder / "tuned.json"
    for content in (None, "{", "[]", '{"format": "pdeopt tuned solvers 1", "solvers": [{"options": {"a": 1}}]}'):
        if content is not None:
            path.write_text(content)
        with pytest.raises(InputError, match="pdeopt tune --save"):
            tune.run_tuned(command, path, {})


def test_script_with_nothing_to_gain_runs_as_if_pdeopt_were_not_there(folder, capfd):
    saved = folder / "tuned.json"
    names = [sys.executable, "-c", "import os; print(sorted(name for name in os.environ if 'PDEOPT' in name))"]
    tune_report.save(saved, [], 1.0, {"looking": 0.0, "trying": 0.0}, plain=True)
    assert tune.run_tuned(names, saved, {}, environment=tune_scripts.environment()) == 0
    assert capfd.readouterr() == ("[]\n", "")
    # A script whose types this PETSc lacks cannot do without.
    tune_report.save(saved, [], 1.0, {"looking": 0.0, "trying": 0.0}, plain=False)
    assert tune.run_tuned(names, saved, {}, environment=tune_scripts.environment()) == 0
    assert "PDEOPT_RUN_FOLDER" in capfd.readouterr().out
    tune_report.save(saved, [], 1.0, {"looking": 0.0, "trying": 0.0}, plain=True)
    assert tune.run_tuned(names, saved, {"ksp_rtol": "1e-3"}, environment=tune_scripts.environment()) == 0
    assert "PDEOPT_RUN_FOLDER" in capfd.readouterr().out
