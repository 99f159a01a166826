"""`pdeopt tune` changes nothing that a script does: output, files and exit status are those of a run without it."""

import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tune_scripts

pytestmark = pytest.mark.alone

# A solver that is worth tuning: without a natural ordering the factorisation would be faster.
SOLVE = (
    tune_scripts.HEAD
    + """
def tuned(prefix="own_", comm=None, **options):
    A = from_coo(70**2, *five_point(70), comm)
    b, x = load(A)
    lu = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "petsc"}
    ksp = solver(prefix, A, **{**lu, "pc_factor_mat_ordering_type": "natural", **options})
    ksp.solve(b, x)
    return ksp, b, x

"""
)

# Name: script, words after it, exit status.
SCRIPTS = {
    "exception": (
        """
        def fails():
            ksp, b, x = tuned()
            try:
                [][1]
            except IndexError as error:
                raise ValueError(f"no\\nway: {x.norm():.12e}") from error
        fails()
        """,
        [],
        1,
    ),
    "petsc_error": (
        """
        A = from_coo(70**2, *five_point(70))
        tuned()
        ksp = solver("weak_", A, ksp_type="cg", pc_type="none", ksp_max_it=3, ksp_error_if_not_converged=None)
        ksp.solve(*load(A))
        """,
        [],
        1,
    ),
    "kill": (
        """
        import os, signal
        print(tuned()[2].norm(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        [],
        128 + signal.SIGKILL,
    ),
    "exit": ("print(tuned()[2].norm())\nsys.exit(3)", [], 3),
    "stderr": (
        """
        print("before", file=sys.stderr)
        tuned()
        import warnings
        warnings.warn("after")
        sys.exit("the last line")
        """,
        [],
        1,
    ),
    "petsc_options": (
        """
        ksp, b, x = tuned("monitored_", ksp_type="gmres", ksp_rtol=1e-13)
        ksp.view()
        print(sorted(PETSc.Options().getAll().items()), ksp.getIterationNumber())
        """,
        [],
        0,
    ),
    "arguments": (
        """
        import os
        def main():
            ksp, b, x = tuned(None)
            print(__name__, __file__, sys.argv, sys.path[0] == os.path.dirname(os.path.abspath(__file__)), x.norm())
            print(sys.flags.optimize, sorted(name for name in globals() if "pdeopt" in name), os.getcwd())
        if __name__ == "__main__":
            main()
        """,
        ["--mesh", "-5", "a b", "*", "-n", "3"],
        0,
    ),
    "files": (
        """
        ksp, b, x = tuned()
        x.view(PETSc.Viewer().createBinary("x.dat", "w"))
        ksp.view(PETSc.Viewer().createASCII("ksp.txt"))
        np.save("x.npy", x.array)
        np.savetxt("x.txt", x.array)
        with open("log", "a") as log:
            print(ksp.getConvergedReason(), ksp.getResidualNorm(), file=log)
        """,
        [],
        0,
    ),
    "random": (
        """
        np.random.seed(1)
        for _ in range(3):
            ksp, b, x = tuned()
            b.setRandom()
            print(np.random.rand(), b.norm())
            ksp.solve(b, x)
        """,
        [],
        0,
    ),
    "newton": (
        """
        A = from_coo(70**2, *five_point(70))
        b, x = load(A)
        J = A.duplicate(copy=True)
        def function(snes, x, f):
            A.mult(x, f)
            f.array[:] += 0.1 * x.array_r**3 - 0.5
        def jacobian(snes, x, J, P):
            A.copy(J)
            J.setDiagonal(4.0 + 0.3 * x * x)
            J.assemble()
        snes = PETSc.SNES().create()
        snes.setOptionsPrefix("newton_")
        snes.setFunction(function, b.duplicate())
        snes.setJacobian(jacobian, J)
        for name, value in {"snes_monitor": None, "ksp_type": "preonly", "pc_type": "lu",
                            "pc_factor_mat_solver_type": "petsc", "pc_factor_mat_ordering_type": "natural"}.items():
            PETSc.Options("newton_")[name] = value
        snes.setFromOptions()
        x.set(0.0)
        snes.solve(None, x)
        print(snes.getIterationNumber(), snes.getLinearSolveIterations(), snes.getConvergedReason(), x.norm())
        """,
        [],
        0,
    ),
    "time": (
        """
        A = from_coo(70**2, *five_point(70))
        A.scale(-1.0)
        x, f = load(A)
        ts = PETSc.TS().create()
        ts.setType("cn")
        ts.setRHSFunction(lambda ts, t, u, f: A.mult(u, f), f)
        ts.setRHSJacobian(lambda ts, t, u, J, P: A.copy(P), A.duplicate(copy=True))
        ts.setTimeStep(0.1)
        ts.setMaxSteps(5)
        ts.setMaxTime(10.0)
        ts.setExactFinalTime(PETSc.TS.ExactFinalTime.STEPOVER)
        ts.setMonitor(lambda ts, step, time, u: print(step, time, u.norm()))
        ts.getSNES().getKSP().setType("preonly")
        ts.getSNES().getKSP().getPC().setType("lu")
        ts.setFromOptions()
        ts.solve(x)
        print(ts.getSNESIterations(), ts.getKSPIterations(), ts.getConvergedReason(), x.norm())
        """,
        [],
        0,
    ),
    "optimisation": (
        """
        A = from_coo(140**2, *five_point(140))
        b, x = load(A)
        def objective(tao, x, g):
            A.mult(x, g)
            value = 0.5 * x.dot(g) - x.dot(b)
            g.axpy(-1.0, b)
            return value
        tao = PETSc.TAO().create()
        tao.setType("nls")
        tao.setObjectiveGradient(objective, b.duplicate())
        tao.setHessian(lambda tao, x, H, P: None, A)
        tao.setMonitor(lambda tao: print(tao.getIterationNumber(), tao.getSolutionStatus()))
        tao.setFromOptions()
        x.set(0.0)
        tao.solve(x)
        print(tao.getConvergedReason(), x.norm())
        """,
        [],
        0,
    ),
    "python_types": (
        """
        class Halves:
            def mult(self, A, x, y):
                x.copy(y)
                y.scale(0.5)
        class Richardson:
            def solve(self, ksp, b, x):
                for i in range(5):
                    ksp.getPC().apply(b, x)
                    print("step", i, x.norm())
                ksp.setIterationNumber(5)
                ksp.setConvergedReason(PETSc.KSP.ConvergedReason.CONVERGED_ITS)
        class Inner:
            def setUp(self, pc):
                self.ksp, _, _ = tuned("inner_")
            def apply(self, pc, b, x):
                self.ksp.solve(b, x)
        ksp, b, x = tuned(None, ksp_type="gmres", pc_type="none", ksp_max_it=400)
        ksp.getPC().setType("python")
        ksp.getPC().setPythonContext(Inner())
        ksp.solve(b, x)
        print(ksp.getIterationNumber(), ksp.getConvergedReason(), x.norm())
        ksp.setType("python")
        ksp.setPythonContext(Richardson())
        ksp.solve(b, x)
        H = PETSc.Mat().createPython((10, 10), Halves())
        H.setUp()
        b, x = load(H)
        ksp = solver("shell_", H, ksp_type="cg", pc_type="none")
        ksp.solve(b, x)
        print(ksp.getIterationNumber(), x.norm())
        """,
        [],
        0,
    ),
    "atexit": (
        """
        import atexit
        ksp, b, x = tuned()
        atexit.register(print, "registered first")
        def last():
            ksp.solve(b, x)
            print("solved at exit", x.norm(), file=sys.stderr)
        atexit.register(last)
        """,
        [],
        0,
    ),
    "stdin": (
        """
        for line in sys.stdin:
            ksp, b, x = tuned()
            b.scale(float(line))
            ksp.solve(b, x)
            print(line.strip(), x.norm())
        """,
        [],
        0,
    ),
    "fork": (
        """
        import multiprocessing, os
        ksp, b, x = tuned()
        print("parent", x.norm(), flush=True)
        child = os.fork()
        if child == 0:
            ksp.solve(b, x)
            print("child", x.norm(), flush=True)
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        child = multiprocessing.get_context("fork").Process(target=print, args=["forked"], kwargs={"flush": True})
        child.start()
        child.join()
        print(child.exitcode)
        """,
        [],
        0,
    ),
    "spawn": (
        """
        import multiprocessing
        def norm(scale):
            ksp, b, x = tuned("child_")
            b.scale(scale)
            ksp.solve(b, x)
            return x.norm()
        if __name__ == "__main__":
            print(tuned()[2].norm())
            pool = multiprocessing.get_context("spawn").Pool(1)
            print(pool.map(norm, [1.0, 2.0]))
            pool.close()
            pool.join()
        """,
        [],
        0,
    ),
}
ENVIRONMENTS = {"petsc_options": {"PETSC_OPTIONS": "-monitored_ksp_monitor -nothing_reads_this 1 -options_left"}}
# Solvers of both ranks, of rank 1 alone, and one of rank 0 alone whose place is that of another one of both ranks.
TWO_RANKS = """
A = PETSc.Mat().createAIJ((4900, 4900), nnz=5)
first, last = A.getOwnershipRange()
for i in range(first, last):
    A.setValue(i, i, 4.0)
    for j in (i - 70, i - (i % 70 > 0), i + (i % 70 < 69), i + 70):
        if 0 <= j < 4900 and j != i:
            A.setValue(i, j, -1.0)
A.assemble()
b, x = load(A)
ksp = solver("own_", A, ksp_type="gmres", pc_type="none", ksp_rtol=1e-6, ksp_max_it=9999)
for _ in range(3):
    ksp.solve(b, x)
if MPI.COMM_WORLD.rank == 1:
    tuned("alone_", MPI.COMM_SELF)

def many(ksp, b, x, seconds=0.03):
    end = MPI.Wtime() + seconds
    while MPI.Wtime() < end if ksp.comm.size == 1 else ksp.getIterationNumber() == 0:
        ksp.solve(b, x)

if MPI.COMM_WORLD.rank == 0:
    cycle = PETSc.KSP().create(MPI.COMM_SELF)
    S = from_coo(70**2, *five_point(70), MPI.COMM_SELF)
    cycle.setOperators(S)
    cycle.setType("preonly")
    cycle.getPC().setType("gamg")
    many(cycle, *load(S))
same = PETSc.KSP().create()
same.setOperators(A)
same.setType("gmres")
same.getPC().setType("none")
many(same, b, x)
together = ksp.getIterationNumber(), ksp.getConvergedReason(), x.norm()
with open(f"rank{MPI.COMM_WORLD.rank}", "w") as file:
    print(*together, file=file)
if MPI.COMM_WORLD.rank == 0:
    print(*together, flush=True)
sys.exit(4)
"""


def run(folder, words, more=(), tune=()):
    """Run a command in a folder of its own; return its exit status, what it printed and the files that it wrote."""
    folder.mkdir()
    (folder / "script.py").write_text(words[0])
    environment = tune_scripts.environment() | dict(more) | {"PYTHONHASHSEED": "0"}
    report = folder.with_name("report")
    launcher = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(words[2])] if words[2] else []
    command = [sys.executable, "script.py", *words[1]]
    if tune:
        ranks = ["-n", str(words[2])] if words[2] else []
        command = [sys.executable, "-m", "pdeopt", "tune", *ranks, "--report", str(report), "--", *command]
        launcher = []
    job = subprocess.run(
        [*launcher, *command], cwd=folder, env=environment, input="1.5\n-2\n", capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    status = 128 - job.returncode if job.returncode < 0 else job.returncode
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    out, err = (re.sub(r"pid=\d+", "pid", text.replace(str(folder), "")) for text in (job.stdout, job.stderr))
    return (status, out, err, files), report


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_does_what_it_does_alone(name, tmp_path):
    text, arguments, status = SCRIPTS[name]
    words = SOLVE + textwrap.dedent(text), arguments, None
    alone, _ = run(tmp_path / "alone", words, ENVIRONMENTS.get(name, {}))
    tuned, report = run(tmp_path / "tuned", words, ENVIRONMENTS.get(name, {}), tune=True)
    assert alone[0] == status, alone[2]
    assert tuned == alone
    assert any(line.startswith("    own ") for line in report.read_text().splitlines()), report.read_text()


def test_script_on_two_ranks_does_what_it_does_alone(tmp_path):
    words = SOLVE + TWO_RANKS, [], 2
    alone, _ = run(tmp_path / "alone", words)
    tuned, report = run(tmp_path / "tuned", words, tune=True)
    assert alone[0] == 4, alone[2]
    assert tuned == alone
    assert {"rank0", "rank1"} < alone[3].keys()
    assert "    own " in report.read_text()
    assert report.read_text().count("unknowns on 2 ranks") == 2
    assert report.read_text().count("unknowns on 1 ranks") == 1  # that of rank 0, which keeps the ledger
