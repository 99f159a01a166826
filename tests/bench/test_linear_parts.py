"""Parts of the bench of linear solvers: their systems are what they say, and their judges see planted faults."""

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest
import scipy.sparse

from pdeopt.bench import linear_checks, linear_systems, linear_unfit
from pdeopt.bench.harness import BenchSettings
from pdeopt.bench.linear_bodies import BODIES, BodyArm, RecyclingArm, multigrid
from pdeopt.bench.linear_changing import _coordinates
from pdeopt.bench.linear_families import FAMILIES
from pdeopt.bench.linear_outcome import RTOL
from pdeopt.bench.linear_sequences import SEQUENCES
from pdeopt.bench.linear_unseen import SHAPES, batches
from pdeopt.bench.study import Study

COMM = MPI.COMM_WORLD


@pytest.fixture
def case():
    found = FAMILIES["square, checker"].case(COMM, 16, 0)
    yield found
    found.destroy()


def test_unseen_systems_are_definite_and_of_every_shape():
    shapes, kinds = set(), set()
    for system in batches(COMM, 2 * len(SHAPES), 3, batch=2, most=200):
        rows, columns, values = system.A.getValuesCSR()
        A = scipy.sparse.csr_matrix((values, columns, rows)).toarray()
        assert np.abs(A - A.T).max() <= 1e-13 * np.abs(A).max()
        # Scaled by the diagonal, as reaction and jumps spread the eigenvalues.
        scale = 1.0 / np.sqrt(np.diag(A))
        assert np.linalg.eigvalsh(scale[:, None] * A * scale)[0] > 1e-9
        assert system.b.norm() > 0.0
        assert len(system.coordinates) * system.A.getBlockSize() == len(A)
        shapes.add(system.shape)
        kinds.add(system.kind)
    assert shapes == set(SHAPES)
    assert len(kinds) >= 4


@pytest.mark.parametrize("body", BODIES)
def test_a_sequence_by_a_body_reaches_the_true_residual(body):
    places = _coordinates(2, 12, COMM)
    arms = [BodyArm(f"{body}, {kept}", body, places, kept) for kept in (0, 4)]
    for A, b in SEQUENCES["samples"](COMM, 12, 3, 0):
        for arm in arms:
            assert arm.solve(A, b).residual <= RTOL
    for arm in arms:
        arm.destroy()


def test_recycling_saves_iterations_over_a_sequence():
    arms = [RecyclingArm(f"Jacobi, {kept}", {"ksp_type": "cg", "pc_type": "jacobi"}, kept) for kept in (0, 8)]
    iterations = [[], []]
    for A, b in SEQUENCES["samples"](COMM, 24, 4, 0):
        for arm, found in zip(arms, iterations, strict=True):
            outcome = arm.solve(A, b)
            assert outcome.residual <= RTOL
            found.append(outcome.iterations)
    plain, recycled = iterations
    assert recycled[-1] <= 0.75 * plain[-1]
    for arm in arms:
        arm.destroy()


def test_every_spoilt_proposal_is_replaced(case):
    stream = np.random.default_rng(0)
    for after, spoil in linear_systems._SPOILERS.values():
        context = multigrid("grid", case.coordinates)
        spoilt = linear_systems._Spoilt(context, lambda y, f=spoil: f(y, stream), after)
        outcome, why = linear_systems._propose(case.A, case.b, spoilt)
        assert why
        assert outcome.solved


def test_asymmetry_and_a_negative_direction_are_seen(case):
    def planted(factor):
        def cycle(x, y):
            x.copy(y)
            y.array_w[0] += factor * x.array_r[1]

        return cycle

    skew, least = linear_checks._products(case.A, planted(1.0), 20)
    assert skew > 1e-6
    assert least > 0.0
    assert linear_checks._products(case.A, planted(1e3), 50)[1] < 0.0


def test_silence_and_a_reason_without_a_sentence_are_counted(monkeypatch):
    ends = iter(
        [
            linear_unfit._End(2, 1.0, 3, "converged, it says"),
            linear_unfit._End(-5, 1.0, 3, ""),
            linear_unfit._End(-5, 1.0, 3, "the method broke down"),
            linear_unfit._End(2, 1e-9, 3, ""),
        ]
    )
    monkeypatch.setattr(linear_unfit, "_solve", lambda system, body, directions: next(ends))
    monkeypatch.setattr(linear_unfit, "_SYSTEMS", {"positive definite": linear_unfit._laplacian})
    study = Study("linear", BenchSettings(quick=True, repeat=1), MPI.COMM_SELF)
    linear_unfit.measure(study, quick=True)
    values = {target.id: target.value for target in study.targets}
    # Directions are the second and the fourth: the second has not solved what MUMPS solves.
    assert values == {"linear.7a": 2, "linear.7b": 1}


@pytest.mark.parametrize("name", list(linear_unfit._SYSTEMS))
def test_unfit_systems_are_what_their_names_say(name):
    system = linear_unfit._SYSTEMS[name](COMM, 8)
    rows, columns, values = system.A.getValuesCSR()
    A, b = scipy.sparse.csr_matrix((values, columns, rows)).toarray(), np.array(system.b.array_r)
    finite = bool(np.all(np.isfinite(A)) and np.all(np.isfinite(b)))
    assert finite == ("NaN" not in name)
    if finite:
        nullspace = system.A.getNullSpace()
        assert bool(nullspace.handle) == ("null space attached" in name and "no null" not in name)
        assert (np.abs(A - A.T).max() > 1e-6) == (name == "not symmetric")
        solution = np.linalg.lstsq(A, b, rcond=1e-10)[0]
        assert (np.linalg.norm(A @ solution - b) < 1e-9 * np.linalg.norm(b)) == system.solvable
        eigenvalues = np.linalg.eigvalsh(0.5 * (A + A.T))
        assert (eigenvalues[0] < -1e-9) == name.startswith(("indefinite", "negative"))
    for handle in (system.A, system.b):
        assert isinstance(handle, PETSc.Object)
        handle.destroy()
