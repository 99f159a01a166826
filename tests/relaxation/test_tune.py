"""`pdeopt tune`: a script gets its own answers, and the report what would have been faster at equal accuracy."""

import json
import os
import subprocess
import sys

from petsc4py import PETSc

import numpy as np
import pytest

from pdeopt import _cli_scripts
from pdeopt._launchers import clean_environment
from pdeopt.relaxation import tune, tune_replay, tune_report
from pdeopt.relaxation.features import FeatureReader
from pdeopt.relaxation.reuse import ValueWatch
from pdeopt.report import InputError

# Finite-difference matrices by their entries, fast to make and known to be what they are.
HEAD = """
import sys
import time
import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

def from_coo(n, rows, columns, values):
    A = PETSc.Mat().createAIJ((n, n))
    A.setPreallocationCOO(rows.astype(PETSc.IntType), columns.astype(PETSc.IntType))
    A.setValuesCOO(values)
    return A

def five_point(m, convection=0.0, shift=0.0):
    \"\"\"Return rows, columns, values of the five-point Laplacian on m x m points, unsymmetric with convection.\"\"\"
    i = np.arange(m * m).reshape(m, m)
    parts = [(i.ravel(), i.ravel(), np.full(m * m, 4.0 + shift))]
    for a, b in ((i[1:], i[:-1]), (i[:, 1:], i[:, :-1])):
        parts.append((a.ravel(), b.ravel(), np.full(a.size, -1.0 - convection)))
        parts.append((b.ravel(), a.ravel(), np.full(a.size, -1.0 + convection)))
    return [np.concatenate(arrays) for arrays in zip(*parts)]

def solver(prefix, A, **options):
    ksp = PETSc.KSP().create()
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(A)
    database = PETSc.Options(prefix)
    for name, value in options.items():
        database[name] = value
    ksp.setFromOptions()
    return ksp

def load(A):
    b, x = A.createVecs()
    b.array[:] = np.sin(np.arange(b.local_size) ** 1.5)
    return b, x

def solve_for_a_while(ksp, b, x):
    end = time.perf_counter() + 0.1
    while time.perf_counter() < end:
        ksp.solve(b, x)

def done(name, ksp, x):
    print(name, f"{x.norm():.9e}", flush=True)
    pc = ksp.getPC()
    print(name, ksp.getType(), pc.getType(), pc.getFactorSolverType(), file=sys.stderr, flush=True)
"""

# One script with many solvers: each launch costs a second.
MANY = (
    HEAD
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

# A saddle point whose multiplier is known up to a constant: the residual does not tell it.
m = 40
rows, columns, values = five_point(m)
i = np.arange(m * m)
d = (i, i + m * m, np.ones(m * m)), (i, np.roll(i, 1) + m * m, -np.ones(m * m))
rows = np.concatenate([rows, *[part for r, c, _ in d for part in (r, c)]])
columns = np.concatenate([columns, *[part for r, c, _ in d for part in (c, r)]])
values = np.concatenate([values, *[v for _, _, v in d for _ in range(2)]])
S = from_coo(2 * m * m, rows, columns, values)
b, x = load(S)
b.array[m * m :] -= b.array[m * m :].mean()
ksp = solver("saddle_", S, ksp_type="minres", pc_type="none", ksp_rtol=1e-6, ksp_max_it=20000)
ksp.solve(b, x)
done("saddle_", ksp, x)

# Symmetric at first, and then not: conjugate gradients pass the first time.
N = from_coo(70**2, *five_point(70))
b, x = load(N)
ksp = solver("later_", N, **lu, pc_factor_mat_ordering_type="natural")
for convection in (0.0, 0.8, 0.5):
    N.setValuesCOO(five_point(70, convection)[2])
    ksp.solve(b, x)
done("later_", ksp, x)

# One multigrid cycle leaves most of the residual: no solve that others could be compared with.
ksp = solver("cycle_", A, ksp_type="preonly", pc_type="gamg")
b, x = load(A)
solve_for_a_while(ksp, b, x)
done("cycle_", ksp, x)

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


def environment():
    return {**clean_environment(os.environ), "OMP_NUM_THREADS": "1"}


def norms(text):
    return {name: float(norm) for name, norm in map(str.split, text.splitlines())}


def types(text):
    return {words[0]: tuple(words[1:]) for words in map(str.split, text.splitlines()) if len(words) == 4}


def test_script_of_many_solvers(folder, capfd):
    (folder / "many.py").write_text(MANY)
    command = [sys.executable, "many.py"]
    alone = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    status = tune.tune_script(command, None, 3.0, folder / "tuned.json", folder / "report", environment())
    captured = capfd.readouterr()
    assert (status, captured.out, captured.err) == (0, alone.stdout, alone.stderr)
    report = (folder / "report").read_text()
    parts = {part.split("(", 1)[1].split(")")[0]: part for part in report.split("\nsolver ")[1:]}
    slow, later, saddle = parts["prefix slow_"], parts["prefix later_"], parts["prefix saddle_"]
    assert "petsc_options = {" in slow
    assert '"ksp_type": "cg"' in slow
    assert "your solver is already the best" in parts["prefix best_"]
    assert "petsc_options" not in saddle
    assert "its solution differs" in saddle
    assert "a step of another iteration" in parts["prefix cycle_"]
    assert "no entries to look at" in parts["prefix nest_"]
    # Equal values that are assembled again are one matrix.
    (place,) = [part for name, part in parts.items() if name.startswith("no prefix")]
    assert "many.py:" in place
    assert "assembled 3 times, with new values 1 times" in place
    assert '"ksp_reuse_preconditioner": 1' in place
    # Methods for symmetric matrices are out once one matrix was not.
    assert "with new values 3 times" in later
    assert "but a later matrix is not symmetric" in later or "not for a later matrix" in later
    solvers = {solver["prefix"]: solver for solver in tune_report.load(folder / "tuned.json")}
    assert {"slow_", ""} <= set(solvers) <= {"slow_", "", "later_"}
    assert solvers.get("later_", {"options": {}})["options"].get("ksp_type") != "cg"
    assert solvers.get("later_", {"options": {}})["options"].get("pc_type") != "cholesky"

    # A tuned solver that fails on a later matrix costs a factorisation, not the script.
    weak = {"ksp_type": "cg", "pc_type": "none", "ksp_max_it": "3"}
    solvers["later_"] = {"prefix": "later_", "site": "", "options": weak}
    (folder / "tuned.json").write_text(json.dumps({"format": tune_report.FORMAT, "solvers": list(solvers.values())}))
    status = tune.run_tuned(command, folder / "tuned.json", {}, environment=environment())
    captured = capfd.readouterr()
    assert status == 0
    before, after = norms(alone.stdout), norms(captured.out)
    assert after == {name: pytest.approx(norm, rel=1e-6) for name, norm in before.items()}
    used = types(captured.err)
    for name, prefix in ("slow_", "slow_"), ("place", ""):
        options = solvers[prefix]["options"]
        assert used[name][:2] == (options["ksp_type"], options["pc_type"])
        assert used[name] != types(alone.stderr)[name]
    for name in ("best_", "saddle_", "cycle_", "nest_"):
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


def system_of(A, values, prefix="unit_"):
    """Return the system with the given solution, as if the script had solved it."""
    x, b = A.createVecs()
    x.array[:] = values
    A.mult(x, b)
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(A)
    ksp.setFromOptions()
    watch = ValueWatch()
    watch.compare(A)
    return tune_replay.System(ksp, A, b, x, None, 1.0, FeatureReader().read(A, watch.vector, watch.image))


def dense(entries):
    A = PETSc.Mat().createDense(entries.shape, array=entries, comm=PETSc.COMM_SELF)
    return A.convert("aij")


def test_answers_are_compared_without_the_null_space():
    n = 40
    neumann = 2.0 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    neumann[0, 0] = neumann[-1, -1] = 1.0
    A = dense(neumann)
    system = system_of(A, np.sin(np.arange(n)))
    other = system.x.copy()
    other.shift(3.0)
    assert system.relative_residual(other) < 1e-12
    assert system.difference(other) > 1.0
    A.setNullSpace(PETSc.NullSpace().create(constant=True, comm=PETSc.COMM_SELF))
    assert system.difference(other) < 1e-12
    other.setValue(0, 5.0)
    assert system.difference(other) > 1e-2


def test_answers_are_compared_field_by_field():
    # The second field is a millionth of the first, and 30 % wrong: the norm of the whole does not see it.
    entries = np.eye(4)
    entries[3, 3], entries[3, 0], entries[0, 3] = 0.0, 1.0, 1.0
    system = system_of(dense(entries), [1e6, 1e6, 1e6, 1.0])
    other = system.x.copy()
    other.setValue(3, 1.3)
    assert system.difference(other) == pytest.approx(0.3)
    assert [choice.options["pc_type"] for choice in tune_replay.arms(system.features)] == ["lu", "cholesky"]


def test_what_the_script_told_mumps_stays_in_force():
    options = PETSc.Options()
    given = {"pc_type": "lu", "pc_factor_mat_solver_type": "mumps", "mat_mumps_icntl_14": "77"}
    try:
        for name, value in given.items():
            options[f"unit_{name}"] = value
        system = system_of(dense(np.diag(np.arange(1.0, 6.0))), np.ones(5))
        pc = system.ksp.getPC()
        pc.setFactorSetUpSolverType()
        pc.getFactorMatrix().setMumpsIcntl(24, 1)  # by hand, where no option tells of it
        assert tune_replay.mumps_settings(system.ksp) == {"mat_mumps_icntl_14": "77", "mat_mumps_icntl_24": "1"}
    finally:
        for name in given:
            options.delValue(f"unit_{name}")


def entry(**changes):
    arm = {
        "options": {"ksp_type": "cg", "pc_type": "jacobi"},
        "setups": [0.1, 0.1], "updates": [], "solves": [0.01, 0.01], "symmetric": True,
        "state": "equal", "why": "", "iterations": 5,
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
    assert tune.tune_script(command, environment=environment()) == 0
    assert capfd.readouterr() == ("1\n", "pdeopt tune: no linear solve was seen\n")
    for wrong in ({"budget": 0.0}, {"save": folder / "nowhere" / "file"}):
        with pytest.raises(InputError):
            tune.tune_script(command, environment=environment(), **wrong)
    path = folder / "tuned.json"
    for content in (None, "{", "[]", '{"format": "pdeopt tuned solvers 1", "solvers": [{"options": {"a": 1}}]}'):
        if content is not None:
            path.write_text(content)
        with pytest.raises(InputError, match="pdeopt tune --save"):
            tune.run_tuned(command, path, {})
