"""`pdeopt run`: the overlay reaches every solver of a script, and the script is otherwise as it was."""

import os
import subprocess
import sys

import pytest

from pdeopt import _cli_scripts
from pdeopt._launchers import clean_environment
from pdeopt.relaxation import launch, overlay
from pdeopt.report import InputError, OptionError

pytestmark = pytest.mark.alone

# A tridiagonal system of 60 unknowns, on which the iteration counts of the methods differ.
HEAD = """
import sys
from mpi4py import MPI
import petsc4py
petsc4py.init(sys.argv)
from petsc4py import PETSc

def matrix(n=60):
    A = PETSc.Mat().createAIJ((n, n), nnz=3)
    for i in range(*A.getOwnershipRange()):
        A[i, i] = 2.0
        for j in (i - 1, i + 1):
            if 0 <= j < n:
                A[i, j] = -1.0
    A.assemble()
    return A

def show(name, ksp, *more):
    print(name, ksp.getType(), ksp.getPC().getType(), f"{ksp.getTolerances()[0]:g}", *more, flush=True)

def solver(prefix=None, ksp_type=None, pc_type=None):
    ksp = PETSc.KSP().create()
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(A)
    if ksp_type:
        ksp.setType(ksp_type)
    if pc_type:
        ksp.getPC().setType(pc_type)
    return ksp

A = matrix()
b, x = A.createVecs()
b.set(1.0)
"""

DOLFINX = """
import sys
from mpi4py import MPI
from petsc4py import PETSc
import ufl
from dolfinx import default_scalar_type, fem, mesh
from dolfinx.fem.petsc import LinearProblem, NonlinearProblem

domain = mesh.create_unit_square(MPI.COMM_WORLD, 8, 8)
space = fem.functionspace(domain, ("Lagrange", 1))
domain.topology.create_connectivity(1, 2)
facets = mesh.exterior_facet_indices(domain.topology)
zero = fem.dirichletbc(default_scalar_type(0), fem.locate_dofs_topological(space, 1, facets), space)
u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
a = ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
L = ufl.inner(fem.Constant(domain, default_scalar_type(1)), v) * ufl.dx
lines = []
for name, options in {
    "direct_": {"ksp_type": "preonly", "pc_type": "lu"},
    "none_": None,
    "projection_": {"ksp_type": "gmres", "pc_type": "jacobi"},
    "hypre": {"ksp_type": "gmres", "pc_type": "hypre", "pc_hypre_type": "boomeramg"},
}.items():
    problem = LinearProblem(a, L, bcs=[zero], petsc_options_prefix=name, petsc_options=options)
    problem.solve()
    ksp = problem.solver
    lines.append((name, ksp.getType(), ksp.getPC().getType(), ksp.getConvergedReason(), f"{problem.x.norm():.6f}"))
w = fem.Function(space)
problem = NonlinearProblem(ufl.action(a, w) - L, w, bcs=[zero], petsc_options_prefix="newton_", petsc_options=None)
problem.solve()
ksp = problem.solver.getKSP()
reason = problem.solver.getConvergedReason()
lines.append(("newton", ksp.getType(), ksp.getPC().getType(), reason, f"{problem.x.norm():.6f}"))
if domain.comm.rank == 0:
    for line in lines:
        print(*line)
    print(*sys.argv[1:], domain.comm.size)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # pdeopt itself need not be there
    return tmp_path


@pytest.fixture
def run(folder, capfd):
    """Run a script, given as text, under the overlay; return its status, lines of stdout, lines of stderr."""

    def run(text, options="", *arguments, **keywords):
        (folder / "script.py").write_text(text)
        command = [sys.executable, "script.py", *arguments]
        status = launch.run_script(
            command, launch.parse_options(options), environment=clean_environment(os.environ), **keywords
        )
        captured = capfd.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    return run


def test_dolfinx_script_on_two_ranks(run):
    options = (
        "-ksp_type cg -ksp_rtol 1e-10 -direct_pc_type gamg -none_pc_type sor -newton_pc_type jacobi -ksp_tpye bcgs"
    )
    status, out, err = run(DOLFINX, options, "--mesh", "-5", ranks=2)
    assert status == 0, err
    rows = [line.split() for line in out]
    assert [row[:3] for row in rows[:5]] == [
        ["direct_", "cg", "gamg"],
        ["none_", "cg", "sor"],
        ["projection_", "cg", "jacobi"],
        ["hypre", "cg", "gamg"],
        ["newton", "cg", "jacobi"],
    ]
    assert all(int(row[3]) > 0 for row in rows[:5])
    assert len({row[4] for row in rows[:5]}) == 1
    assert out[5:] == ["--mesh -5 2"]
    assert err == [
        "pdeopt run: this PETSc has no pc_type hypre: -hyprepc_type is gamg instead",
        "pdeopt run: no solver used -ksp_tpye",
    ]


EVERY_SOLVER = (
    HEAD
    + """
for prefix in (None, "own_"):
    ksp = solver(prefix, "gmres", "jacobi")
    ksp.solve(b, x)
    show(f"{prefix} never set from options", ksp)
    ksp.setType("bcgs")
    ksp.getPC().setType("lu")
    ksp.solve(b, x)
    show(f"{prefix} types set again", ksp)
ksp = solver("late_")
ksp.setFromOptions()
show("late at once", ksp)
ksp.setTolerances(rtol=1e-3)
ksp.setType("bcgs")
ksp.solve(b, x)
show("late", ksp)

def residual(snes, x, f):
    A.mult(x, f)
    f.axpy(-1.0, b)
    f.array[:] += 0.01 * x.array_r**3

def jacobian(snes, x, J, P):
    A.copy(P)
    diagonal = P.getDiagonal()
    diagonal.array[:] += 0.03 * x.array_r**2
    P.setDiagonal(diagonal)
    P.assemble()

for prefix in ("first_", "second_"):
    snes = PETSc.SNES().create()
    snes.setOptionsPrefix(prefix)
    snes.setFunction(residual, b.duplicate())
    snes.setJacobian(jacobian, matrix())
    if prefix == "first_":
        snes.setFromOptions()
    x.set(0.0)
    snes.solve(None, x)
    show(prefix, snes.getKSP(), snes.getType(), snes.getConvergedReason() > 0)

def implicit(ts, t, x, x_dot, f):
    A.mult(x, f)
    f.axpy(1.0, x_dot)

def implicit_jacobian(ts, t, x, x_dot, shift, J, P):
    A.copy(P)
    P.shift(shift)
    P.assemble()

ts = PETSc.TS().create()
ts.setType("beuler")
ts.setOptionsPrefix("time_")
ts.setIFunction(implicit, b.duplicate())
ts.setIJacobian(implicit_jacobian, matrix())
ts.setTimeStep(0.1)
ts.setMaxTime(0.3)
ts.setExactFinalTime(PETSc.TS.ExactFinalTime.STEPOVER)
ts.solve(x)
show("time", ts.getSNES().getKSP(), ts.getType(), ts.getConvergedReason() > 0)

def quadratic(tao, x, g):
    A.mult(x, g)
    value = 0.5 * x.dot(g) - b.dot(x)
    g.axpy(-1.0, b)
    return value

tao = PETSc.TAO().create()
tao.setType("nls")
tao.setOptionsPrefix("optimum_")
tao.setObjectiveGradient(quadratic, b.duplicate())
tao.setHessian(lambda tao, x, H, P: None, A)
x.set(0.0)
tao.setSolution(x)
tao.solve()
show("optimum", tao.getKSP(), tao.getType(), tao.getConvergedReason() > 0)
print(PETSc.Options().getAll())
"""
)


def test_every_kind_of_solver_without_the_scripts_help(run, monkeypatch):
    monkeypatch.setenv("PETSC_OPTIONS", "-ksp_type cgs -first_ksp_type bicg -second_ksp_type bicg")
    overlaid = "-ksp_type cg -pc_type icc -own_pc_type sor -ksp_rtol 1e-9"
    status, out, err = run(EVERY_SOLVER, overlaid + " -snes_type newtontr -ts_type cn -tao_type bnls")
    assert (status, err) == (0, [])
    assert out[:11] == [
        "None never set from options cg icc 1e-09",
        "None types set again cg icc 1e-09",
        "own_ never set from options cg sor 1e-09",
        "own_ types set again cg sor 1e-09",
        "late at once cg icc 1e-09",
        "late cg icc 1e-09",
        "first_ cg icc 1e-09 newtontr True",
        "second_ cg icc 1e-09 newtontr True",
        "time cg icc 1e-09 cn True",
        "optimum cg icc 1e-09 bnls True",
        # The script's own database is as the script left it.
        "{'first_ksp_type': 'bicg', 'ksp_type': 'cgs', 'second_ksp_type': 'bicg'}",
    ]
    # Elsewhere the environment decides, and only where the script reads it.
    _, out, _ = run(EVERY_SOLVER, "-first_ksp_rtol 1e-8")
    assert out[0] == "None never set from options gmres jacobi 1e-05"
    assert out[6] == "first_ bicg ilu 1e-08 newtonls True"
    assert out[7] == "second_ gmres ilu 1e-05 newtonls True"


SUB_SOLVERS = (
    HEAD
    + """
fields = [("u", PETSc.IS().createStride(30, 0, 1)), ("p", PETSc.IS().createStride(30, 30, 1))]
for prefix in ("from_options_", "by_hand_"):
    ksp = solver(prefix, "fgmres", "fieldsplit")
    pc = ksp.getPC()
    pc.setFieldSplitIS(*fields)
    if prefix == "by_hand_":
        ksp.setUp()
        for part in pc.getFieldSplitSubKSP():
            part.setType("richardson")
            part.getPC().setType("sor")
    ksp.solve(b, x)
    show(prefix, ksp)
    for part in pc.getFieldSplitSubKSP():
        show(part.getOptionsPrefix(), part)

class Inner:
    def setUp(self, pc):
        self.solvers = [solver("named_"), solver(None)]
        self.solvers[1].setFromOptions()

    def apply(self, pc, x, y):
        for ksp in self.solvers:
            ksp.solve(x, y)

ksp = solver("outer_", "fgmres", "python")
inner = Inner()
ksp.getPC().setPythonContext(inner)
ksp.solve(b, x)
show("outer_", ksp)
for part in inner.solvers:
    show(part.getOptionsPrefix(), part)
ksp = solver("grids_", None, "gamg")
ksp.solve(b, x)
show("grids_", ksp)
show("grids_mg", ksp.getPC().getMGSmoother(ksp.getPC().getMGLevels() - 1))
ksp = solver("factor_", "preonly", "lu")
ksp.getPC().setFactorSolverType("superlu")
ksp.solve(b, x)
print(ksp.getPC().getFactorSolverType(), ksp.getPC().getFactorMatrix().getMumpsIcntl(14))
print(PETSc.Options().getAll())
"""
)


def test_sub_solvers_are_spared_unless_they_are_named(run):
    superlu = "pdeopt run: this PETSc has no pc_factor_mat_solver_type superlu: mumps instead (solver factor_)"
    status, out, err = run(SUB_SOLVERS, "-ksp_type gcr -ksp_rtol 1e-6")
    assert (status, err) == (0, [superlu])
    assert out[:8] == [
        "from_options_ gcr fieldsplit 1e-06",
        "from_options_fieldsplit_u_ preonly ilu 1e-05",
        "from_options_fieldsplit_p_ preonly ilu 1e-05",
        "by_hand_ gcr fieldsplit 1e-06",
        "by_hand_fieldsplit_u_ richardson sor 1e-05",
        "by_hand_fieldsplit_p_ richardson sor 1e-05",
        "outer_ gcr python 1e-06",
        "named_ gmres ilu 1e-05",
    ]
    assert out[8:] == [
        "None gmres ilu 1e-05", "grids_ gcr gamg 1e-06", "grids_mg chebyshev jacobi 1e-05", "mumps 20", "{}",
    ]  # fmt: skip

    named = "-fieldsplit_u_pc_type icc -fieldsplit_p_ksp_type cg -by_hand_fieldsplit_p_ksp_type gmres"
    status, out, err = run(
        SUB_SOLVERS, f"{named} -named_pc_type jacobi -mg_levels_ksp_type richardson -mat_mumps_icntl_14 33"
    )
    assert (status, err) == (0, [superlu])
    assert out == [
        "from_options_ fgmres fieldsplit 1e-05",
        "from_options_fieldsplit_u_ preonly icc 1e-05",
        "from_options_fieldsplit_p_ cg ilu 1e-05",
        "by_hand_ fgmres fieldsplit 1e-05",
        "by_hand_fieldsplit_u_ richardson icc 1e-05",
        "by_hand_fieldsplit_p_ gmres sor 1e-05",
        "outer_ fgmres python 1e-05",
        "named_ gmres jacobi 1e-05",
        "None gmres ilu 1e-05",
        "grids_ gmres gamg 1e-05",
        "grids_mg richardson jacobi 1e-05",
        "mumps 33",
        "{}",
    ]


TALKATIVE = (
    HEAD
    + """
import os
print(__name__, sys.argv, os.getcwd(), sys.path[:2], input(), "sitecustomize" in sys.modules, os.get_terminal_size)
ksp = solver("talk_")
ksp.setFromOptions()
for _ in range(2):
    ksp.solve(b, x)
ksp.view()
sys.stderr.write("a warning of the script\\n")

def fail():
    try:
        ksp.solve(b, matrix(3).createVecLeft())
    except PETSc.Error as error:
        raise ValueError("deliberate") from error

fail()
"""
)
TALK = ["-talk_ksp_converged_reason", "-talk_ksp_monitor", "-talk_ksp_view_final_residual", "-nobody_reads_this", "1"]


def test_script_runs_as_it_does_alone(folder, capfdbinary, monkeypatch):
    (folder / "script.py").write_text(TALKATIVE)
    (folder / "sitecustomize.py").write_text("import sys\nsys.stderr.write('the site speaks\\n')\n")
    (folder / "input").write_text("typed\n")
    monkeypatch.setenv("PETSC_OPTIONS", "-talk_pc_type sor -talk_ksp_rtol 1e-3")
    command = [sys.executable, "script.py", *TALK]
    environment = clean_environment(os.environ)
    with open("input") as file:
        alone = subprocess.run(command, stdin=file, capture_output=True, env=environment, check=False)
    assert b"the site speaks" in alone.stderr
    assert b"KSP Residual norm" in alone.stdout
    assert b"Option left: name:-nobody_reads_this value: 1 source: command line" in alone.stdout
    stdin = os.dup(0)
    try:
        for options, remarks in ("", b""), ("-other_ksp_type cg", b"pdeopt run: no solver used -other_ksp_type\n"):
            with open("input") as file:
                os.dup2(file.fileno(), 0)
                status = launch.run_script(command, launch.parse_options(options), environment=environment)
            captured = capfdbinary.readouterr()
            assert status == alone.returncode == 1
            assert captured.out == alone.stdout
            assert captured.err == alone.stderr + remarks
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)


def test_the_scripts_monitors_and_viewers_stay_and_ours_print_once(run):
    text = HEAD + "ksp = solver('talk_')\nksp.setFromOptions()\nksp.setTolerances(rtol=1e-3)\nksp.solve(b, x)\n"
    _, out, _ = run(text, "-ksp_type cg -pc_type none -ksp_max_it 2 -ksp_monitor -log_view", *TALK[:1])
    assert sum("KSP Residual norm" in line for line in out) == 3
    assert sum("did not converge due to DIVERGED_ITS" in line for line in out) == 1
    assert any("PETSc Performance Summary" in line for line in out)


def test_options_that_cannot_be_laid_cost_a_line_each(run):
    solves = ("ksp = solver(prefix, 'bcgs', 'icc')", "ksp.solve(b, x)", "show(prefix, ksp)")
    text = HEAD + "\n    ".join(["for prefix in 'one_', 'two_':", *solves])
    wrong = "-ksp_rtol abc -pc_type python -pc_python_type no_module.Thing -tao_type bnlss -three_ksp_type cg"
    status, out, err = run(text, f"{wrong} -ksp_type cg -snes_type newtontr -two_pc_type hypre")
    assert (status, out) == (0, ["one_ cg icc 1e-05", "two_ cg gamg 1e-05"])
    missing = "ModuleNotFoundError: No module named 'no_module'"
    refused = [line for line in err if "ksp_rtol abc is left out" in line]
    assert [line.split()[2] for line in refused] == ["-one_ksp_rtol", "-two_ksp_rtol"]
    assert [line for line in err if line not in refused] == [
        f"pdeopt run: -pc_python_type no_module.Thing is left out: {missing}",
        "pdeopt run: no tao_type 'bnlss' in PETSc, -tao_type is left out: did you mean bnls?",
        "pdeopt run: this PETSc has no pc_type hypre: -two_pc_type is gamg instead",
        "pdeopt run: no solver used -ksp_rtol, -three_ksp_type, -snes_type",
    ]


WATCHER = """
import sys

def watch_and_fail():
    overlay = sys.modules["pdeopt.relaxation.overlay"]
    overlay.watch(lambda call: call.solver.setTolerances(rtol=1e-2) if call.kind == "KSP" else None, tell)
    overlay.watch(fail, None)
    overlay.watch(None, fail)

def tell(call):
    assert 0 <= call.seconds < 10
    site = call.site.rpartition("/")[2]
    print(call.kind, call.method, call.solver.getOptionsPrefix(), site, call.inner, call.failed)

def fail(call):
    raise RuntimeError("no good")
"""
WATCHED = (
    HEAD
    + """
ksp = solver("linear_")
ksp.solve(b, x)
try:
    ksp.solve(b, matrix(3).createVecLeft())
except PETSc.Error:
    pass
snes = PETSc.SNES().create()
snes.setOptionsPrefix("nonlinear_")
snes.setFunction(lambda snes, x, f: (A.mult(x, f), f.axpy(-1.0, b)), b.duplicate())
snes.setJacobian(lambda snes, x, J, P: A.copy(P), matrix())
x.set(0.0)
snes.solve(None, x)
snes.getKSP().solve(b, x)
print(f"{x.norm():.6f}")
"""
)


def test_watchers_see_each_solve_and_cannot_break_one(run, folder):
    (folder / "watcher.py").write_text(WATCHER)
    # The solution of the tridiagonal system with a right-hand side of ones is i (n + 1 - i) / 2.
    norm = f"{sum((i * (61 - i) / 2) ** 2 for i in range(1, 61)) ** 0.5:.6f}"
    first = WATCHED.splitlines().index("ksp.solve(b, x)") + 1
    status, out, err = run(WATCHED, watcher="watcher:watch_and_fail")
    assert (status, err) == (0, ["pdeopt run: a watcher failed and is dropped: RuntimeError: no good"])
    assert out == [
        f"KSP solve linear_ script.py:{first} False False",
        f"KSP solve linear_ script.py:{first + 2} False True",
        f"KSP solve nonlinear_ script.py:{first + 10} True False",
        f"SNES solve nonlinear_ script.py:{first + 10} False False",
        f"KSP solve nonlinear_ script.py:{first + 11} False False",
        norm,
    ]
    status, out, err = run(WATCHED, "-ksp_type cg", watcher="watcher:no_such_function")
    assert (status, out) == (0, [norm])
    assert len(err) == 1
    assert err[0].startswith("pdeopt run: the overlay failed and is off from here: AttributeError")


ORDERED = """
ksp = solver("mine_", "preonly", "lu")
ksp.getPC().setFactorSolverType("petsc")
ksp.getPC().setFactorOrdering("natural")
PETSc.Options()["mine_pc_factor_mat_ordering_type"] = "natural"
ksp.setFromOptions()
ksp.solve(b, x)
print(ksp.getPC().getFactorSolverType(), ksp.getPC().getFactorMatrix().getMumpsIcntl(7))
"""


def test_another_package_does_not_inherit_the_ordering_of_petscs_own_factors(run):
    # ICNTL(7) = 1 is an ordering given from outside.
    given = "-pc_factor_mat_solver_type mumps -pc_factor_mat_ordering_type natural"
    for options, ordering in (("-pc_factor_mat_solver_type mumps", "7"), (given, "1")):
        status, out, err = run(HEAD + ORDERED, options)
        assert (status, err) == (0, [])
        assert out == [f"mumps {ordering}"]


def test_watching_needs_an_overlay():
    with pytest.raises(RuntimeError, match="pdeopt run"):
        overlay.watch(print)


def test_exit_status_and_remarks(folder, capfd):
    def status_of(*words, options=""):
        with pytest.raises(SystemExit) as stop:
            _cli_scripts.main(["run", "--options", options, "--", *words])
        return stop.value.code, capfd.readouterr()

    status, captured = status_of(sys.executable, "-c", "import sys; sys.exit(3)", options="-ksp_type cg")
    assert (status, captured.out, captured.err) == (3, "", "")
    status, captured = status_of(sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert (status, captured.out, captured.err) == (128 + 9, "", "")
    _, captured = status_of(sys.executable, "-c", "print(1)", options="-ksp_type cg")
    remark = "pdeopt run: the options had no effect: "
    assert captured == ("1\n", f"{remark}the script has not used petsc4py\n")
    _, captured = status_of(sys.executable, "-I", "-c", "print(1)", options="-ksp_type cg")
    assert captured == ("1\n", f"{remark}no Python of this command reads PYTHONPATH\n")
    ask_for_the_end = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(20)"
    status, captured = status_of(sys.executable, "-c", ask_for_the_end)
    assert (status, captured.out, captured.err) == (128 + 15, "", "")
    for words, options, message in (
        ((), "", "no command"),
        (("no-such-program",), "", "'no-such-program' cannot be run"),
        (("true",), "ksp_type cg", "'ksp_type' belongs to no option"),
    ):
        status, captured = status_of(*words, options=options)
        assert status == 2
        assert message in captured.err


def test_overlay_that_cannot_start_says_so(run, folder):
    (folder / "petsc4py" / "lib").mkdir(parents=True)
    (folder / "petsc4py" / "__init__.py").touch()
    (folder / "petsc4py" / "lib" / "__init__.py").write_text("ImportPetsc = None")
    status, out, err = run("import petsc4py.lib\nprint(petsc4py.lib.__name__)", "-ksp_type cg")
    assert (status, out) == (0, ["petsc4py.lib"])
    assert len(err) == 1
    assert err[0].startswith(f"pdeopt run: no overlay in {sys.executable}: AttributeError: ")


def test_thread_limits_of_pdeopt_do_not_reach_the_script(folder):
    environment = {name: value for name, value in clean_environment(os.environ).items() if "NUM_THREADS" not in name}
    environment["PYTHONPATH"] = os.pathsep.join([str(launch._HOOKS.parents[2]), str(folder)])
    code = "import os; print([name for name in os.environ if 'NUM_THREADS' in name])"
    command = [sys.executable, "-m", "pdeopt", "run", "--", sys.executable, "-c", code]
    job = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (job.returncode, job.stdout, job.stderr) == (0, "[]\n", "")


def test_options_are_read_as_petsc_reads_them():
    text = "-ksp_rtol -1e-3 -ksp_monitor -pc_type lu --pc_type 'a b' -ksp_rtol 2"
    assert launch.parse_options(text) == {"ksp_rtol": "2", "ksp_monitor": "", "pc_type": "a b"}
    for wrong in "ksp_type cg", "-ksp_type 'cg", "-ksp_type cg gmres":
        with pytest.raises(OptionError):
            launch.parse_options(wrong)
    with pytest.raises(InputError, match="at least 1"):
        launch.run_script([sys.executable], {}, ranks=0)
