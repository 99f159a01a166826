"""The solver inside the automatic types: a choice made into a PETSc object, and what is known of the matrix."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

from petsc4py import PETSc

from pdeopt.relaxation.features import FeatureReader, MatrixFeatures
from pdeopt.relaxation.reuse import Change, Lagging, ValueWatch
from pdeopt.relaxation.rule import Choice, candidates
from pdeopt.report import SolveReport

# Marks a preconditioner that has read its options.
_READ = "pdeopt_read"


class Chooser:
    """What is known of a matrix: its features, how it changed, and the choices that failed on it.

    Attributes
    ----------
    features
        Of the values seen last; None before.
    change
        How these values differ from those that the preconditioner was made of.
    failed
        Name of each choice that failed on this pattern, and how.
    seconds
        Wall seconds spent on comparing and reading features.
    """

    def __init__(self) -> None:
        self.watch = ValueWatch()
        self._reader = FeatureReader()
        self.features: MatrixFeatures | None = None
        self.change = Change("pattern")
        self.failed: dict[str, str] = {}
        self.seconds = 0.0
        self._indefinite = False
        self._event = PETSc.Log.Event("AutoKSP features")

    def look(self, matrix: PETSc.Mat) -> Change:
        """Return how the matrix changed, and read its features if it did. Collective: yes."""
        began = time.perf_counter()
        with self._event:
            change = self._look(matrix)
        self.seconds += time.perf_counter() - began
        return change

    def _look(self, matrix: PETSc.Mat) -> Change:
        change = self.watch.compare(matrix)
        if change is None:
            change = dataclasses.replace(self.change, fresh=False)
        elif change.kind == "pattern":
            self.failed.clear()
            self._indefinite = False
            self._reader.forget_pattern()
        if self.features is None or (change.fresh and change.kind != "scaled"):
            # A first Newton matrix may be symmetric and definite, and the later ones not.
            assert self.watch.vector
            assert self.watch.image
            self.features = self._reader.read(matrix, self.watch.vector, self.watch.image)
            if self._indefinite:
                self.features = dataclasses.replace(self.features, indefinite=True)
        self.change = change
        return change

    def accept(self) -> None:
        """Note that a preconditioner was made of the values seen last. Collective: yes."""
        self.watch.accept()
        self.change = Change("none", False)

    def give_up(self, choice: Choice, reason: int, how: str) -> None:
        """Note that a choice failed; one that met negative curvature also tells of the matrix. Collective: no."""
        self.failed[choice.name] = how
        if reason == PETSc.KSP.ConvergedReason.DIVERGED_INDEFINITE_MAT and self.features is not None:
            self._indefinite = True
            self.features = dataclasses.replace(self.features, indefinite=True)

    def candidates(self, direct: bool = False) -> list[Choice]:
        """Return the choices that have not failed, the best first. Collective: no; the same on all ranks."""
        assert self.features is not None
        everything = list(candidates(self.features, direct))
        return [choice for choice in everything if choice.name not in self.failed] or everything[-1:]

    def release(self) -> None:
        """Free the vectors. Collective: yes."""
        self.watch.release()


@dataclasses.dataclass
class Held:
    """A solver that a choice was made into.

    Attributes
    ----------
    choice, ksp
        What it is.
    lagging
        How long its preconditioner may stay behind the values.
    setup_last, solve_last
        Seconds of its last set-up and solve on this rank; the set-up counts 0 once it has solved again without.
    setups
        How often it has been set up.
    """

    choice: Choice
    ksp: PETSc.KSP
    lagging: Lagging = dataclasses.field(default_factory=Lagging)
    setup_last: float = 0.0
    solve_last: float = 0.0
    setups: int = 0


class Automatic:
    """What is common to the types that choose themselves: what they know, and what they say of it."""

    def __init__(self) -> None:
        self._chooser = Chooser()
        self.choice: Choice | None = None
        self.setups = {"new": 0, "updated": 0}

    @property
    def features(self) -> MatrixFeatures | None:
        """What the present choice was made from."""
        return self._chooser.features

    @property
    def failed(self) -> dict[str, str]:
        """Choices that failed on this pattern, and how."""
        return dict(self._chooser.failed)

    def _quantities(self) -> dict[str, str]:
        """Return the lines of the report that are common."""
        return {
            "matrix": str(self._chooser.features),
            "set-ups, new / updated": f"{self.setups['new']} / {self.setups['updated']}",
            "given up": "; ".join(f"{name} ({how})" for name, how in self._chooser.failed.items()) or "nothing",
        }


def print_report(report: SolveReport, viewer: PETSc.Viewer) -> bool:
    """Print a report where a viewer takes text; return whether it does. Collective: yes."""
    if viewer.getType() != PETSc.Viewer.Type.ASCII:
        return False
    for label, value in report.rows():
        viewer.printfASCII(f"  {label}: {value}\n")
    return True


def build(choice: Choice, prefix: str, script_prefix: str, matrix: PETSc.Mat) -> PETSc.KSP:
    """Return a KSP with the options of a choice, not yet set up.

    Parameters
    ----------
    choice
        What to build. Options that the user gave under ``prefix`` win over it.
    prefix
        Of the new object.
    script_prefix
        Of the object that the user sees, whose settings of MUMPS are kept.
    matrix
        The matrix, whose communicator counts.

    Collective: yes.
    """
    inner = PETSc.KSP().create(matrix.getComm())
    inner.setOptionsPrefix(prefix)
    inner.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    with options_of(choice, prefix, script_prefix):
        # Methods that apply the preconditioner on the left only are not among the choices.
        if choice.options["ksp_type"] != "cg":
            inner.setPCSide(PETSc.PC.Side.RIGHT)
        inner.setFromOptions()
    inner.setErrorIfNotConverged(False)
    return inner


def set_up(inner: PETSc.KSP, choice: Choice, prefix: str, script_prefix: str, A: PETSc.Mat, P: PETSc.Mat) -> None:
    """Set up a KSP that `build` made, or take new values with the symbolic work of the former. Collective: yes."""
    pc = inner.getPC()
    pc.setReusePreconditioner(False)
    inner.setOperators(A, P)
    # Nested solvers read their options when they are made: once, or in multigrid each time.
    again = choice.kind != "multigrid" and pc.getAttr(_READ)
    with contextlib.nullcontext() if again else options_of(choice, prefix, script_prefix):
        inner.setUp()
        inner.setUpOnBlocks()
    pc.setAttr(_READ, True)
    # Whether values changed is decided by `Chooser.look`, not by PETSc's count of assemblies.
    pc.setReusePreconditioner(True)


@contextlib.contextmanager
def options_of(choice: Choice, prefix: str, script_prefix: str) -> Iterator[None]:
    """Lay the options of a choice under a prefix, below those that the user gave there. Collective: no."""
    database = PETSc.Options()
    script = PETSc.Options(script_prefix).getAll()
    wanted = dict(choice.options) | {name: value for name, value in script.items() if name.startswith("mat_mumps_")}
    added = []
    for name, value in wanted.items():
        if not database.hasName(prefix + name):
            database[prefix + name] = value
            added.append(prefix + name)
    try:
        yield
    finally:
        for name in added:
            database.delValue(name)
