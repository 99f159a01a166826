"""Initial guesses side by side: each is evaluated, its residual is measured, and the smallest residual wins."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np

from pdeopt.fem._guess_norm import DualNorm
from pdeopt.fem._guess_report import Candidate
from pdeopt.parallel import raise_everywhere

_WITHIN = 10.0  # a guess whose residual is more times the best one's than this is out, also of combinations
_PARALLEL = 1e-10  # residual directions of smaller share of the largest count as dependent


class OutdoneError(Exception):
    """Raised while a residual is evaluated, by all ranks, once a part of it is worse than the best guess so far."""


@dataclasses.dataclass
class Offer:
    """A guess in the making: its vector, its residual, and what became of it."""

    name: str
    is_proposal: bool
    vector: PETSc.Vec
    residual: PETSc.Vec | None = None
    norm: float = math.nan
    euclidean: float = math.nan
    seconds: float = 0.0
    note: str = ""
    left_out: bool = False

    @property
    def in_race(self) -> bool:
        """Whether it has a finite residual."""
        return math.isfinite(self.norm)

    def candidate(self) -> Candidate:
        """Return what the report keeps."""
        return Candidate(self.name, self.is_proposal, self.norm, self.seconds, self.note)

    def destroy(self) -> None:
        """Free the vectors. Collective: yes."""
        self.vector.destroy()
        if self.residual is not None:
            self.residual.destroy()


class Judge:
    """Makes guesses, measures their residuals and picks the best. Every method is collective.

    Parameters
    ----------
    template
        A vector of the solver's layout.
    residual
        Evaluates the residual at a vector into another; may raise `OutdoneError`.
    norm
        The dual norm by which guesses are compared.
    load
        Writes what a provider returned into a vector; raises on all ranks if it does not fit.
    lower_bound
        Bounds the dual norm of a residual from below by its Euclidean norm, if the norm has such a bound.

    Attributes
    ----------
    offers
        The guesses so far.
    evaluations
        Residuals evaluated so far.
    """

    NOTHING = "nothing was offered"

    def __init__(
        self,
        template: PETSc.Vec,
        residual: Callable[[PETSc.Vec, PETSc.Vec], None],
        norm: DualNorm,
        load: Callable[[object, PETSc.Vec], None],
        lower_bound: Callable[[float], float] = lambda euclidean: 0.0,
    ) -> None:
        self._template, self._residual, self._norm, self._load = template, residual, norm, load
        self._lower_bound = lower_bound
        self._comm: MPI.Comm = template.comm.tompi4py()
        self.offers: list[Offer] = []
        self.evaluations = 0

    def make(self, name: str, provide: Callable[[], object], is_proposal: bool) -> Offer:
        """Let a provider make its guess; whatever goes wrong puts it out of the race on every rank.

        A provider that fails on some ranks only must not communicate after the failure, or must fail on all of them.
        """
        started = time.perf_counter()
        offer = Offer(name, is_proposal, self._template.duplicate())
        self.offers.append(offer)
        try:
            value, error = None, None
            try:
                value = provide()
            except Exception as caught:
                error = caught
            raise_everywhere(self._comm, error)
            if any(self._comm.allgather(value is None)):
                offer.note = self.NOTHING
            else:
                self._load(value, offer.vector)
                # Not the maximum norm: which of a NaN and a number is larger depends on the rank that compares them.
                if not math.isfinite(offer.vector.norm()):
                    offer.note = "it has NaN or Inf"
        except Exception as error:
            offer.note = f"{type(error).__name__}: {error}"
        offer.seconds += time.perf_counter() - started
        return offer

    def add(self, name: str, vector: PETSc.Vec) -> Offer:
        """Enter a vector that is known already; it is copied."""
        offer = Offer(name, False, vector.copy())
        self.offers.append(offer)
        return offer

    def leave_out(self, name: str, why: str) -> None:
        """Record a proposal that is not asked this time."""
        self.offers.append(Offer(name, True, self._template.duplicate(), note=why, left_out=True))

    def measure(self, offer: Offer) -> None:
        """Evaluate the residual of a guess and its norms; an error there puts it out of the race."""
        if offer.note or offer.residual is not None:
            return
        started = time.perf_counter()
        twin = next((o for o in self.offers if o.in_race and o is not offer and o.vector.equal(offer.vector)), None)
        if twin is not None:
            offer.note = f"the same as {twin.name}"
            offer.seconds += time.perf_counter() - started
            return
        offer.residual = self._template.duplicate()
        error: Exception | None = None
        try:
            self._residual(offer.vector, offer.residual)
        except Exception as caught:  # PETSc reports a failed callback on the rank where it failed
            error = caught
        self.evaluations += 1
        try:
            raise_everywhere(self._comm, error)
            offer.euclidean = float(offer.residual.norm())
            least = self._lower_bound(offer.euclidean)
            if math.isfinite(offer.euclidean) and least > _WITHIN * self.best_norm:
                offer.note = f"outdone, its residual is at least {least:.3e}"
            elif math.isfinite(offer.euclidean):
                offer.norm = self._comm.bcast(float(self._norm(offer.residual)))
            if not offer.in_race and not offer.note:
                offer.note = "its residual has NaN or Inf"
        except OutdoneError as outdone:
            offer.note = f"outdone, {outdone}"
        except Exception as failure:
            offer.note = f"its residual cannot be evaluated ({type(failure).__name__}: {failure})"
        offer.seconds += time.perf_counter() - started

    def combine(self) -> Offer | None:
        """Offer the affine combination of the guesses with the smallest linearised residual.

        With r_i the residuals of the guesses and weights that add up to one, minimise |sum_i c_i r_i|^2. Its matrix
        <r_i, r_j> = (|r_i|^2 + |r_j|^2 - |r_i - r_j|^2) / 2 takes one norm per pair and no further residual.
        """
        racing = [offer for offer in self.offers if offer.in_race]
        racing = [offer for offer in racing if offer.norm <= _WITHIN * self.best_norm]
        if len(racing) < 2 or self.best_norm == 0.0:
            return None
        started = time.perf_counter()
        gram = np.diag([offer.norm**2 for offer in racing])
        difference = self._template.duplicate()
        for i, one in enumerate(racing):
            for j in range(i):
                other = racing[j]
                difference.waxpy(-1.0, one.residual, other.residual)
                distance = self._comm.bcast(float(self._norm(difference)))
                gram[i, j] = gram[j, i] = (one.norm**2 + other.norm**2 - distance**2) / 2.0
        difference.destroy()
        weights = _affine_weights(gram)
        offer = Offer("combination", any(o.is_proposal for o in racing), self._template.duplicate())
        offer.vector.set(0.0)
        offer.vector.maxpy(list(weights), [o.vector for o in racing])
        offer.seconds = time.perf_counter() - started
        self.offers.append(offer)
        return offer

    @property
    def best_norm(self) -> float:
        """The smallest residual so far, infinite if there is none. Collective: no."""
        return min((offer.norm for offer in self.offers if offer.in_race), default=math.inf)

    def best(self, rivals_only: bool = False) -> Offer | None:
        """Return the guess in the race with the smallest residual, rivals first among equals."""
        racing = [o for o in self.offers if o.in_race and not (rivals_only and o.is_proposal)]
        return min(racing, key=lambda offer: (offer.norm, offer.is_proposal), default=None)

    def destroy(self) -> None:
        """Free the vectors of all offers."""
        for offer in self.offers:
            offer.destroy()


def _affine_weights(gram: np.ndarray) -> np.ndarray:
    """Return the weights, adding up to one, that minimise c' G c for a positive semidefinite matrix.

    With the first guess as origin and D the differences to it: min |r_0 + D d|, which stays solvable when some of the
    residuals are dependent.
    """
    # <r_i - r_0, r_j - r_0> and <r_i - r_0, r_0>, i, j >= 1
    directions = gram[1:, 1:] - gram[1:, :1] - gram[:1, 1:] + gram[0, 0]
    right = gram[1:, 0] - gram[0, 0]
    tail = -np.linalg.pinv(directions, rcond=_PARALLEL, hermitian=True) @ right
    return np.concatenate([[1.0 - tail.sum()], tail])


def lagrange_weights(nodes: Sequence[float], point: float) -> list[float]:
    """Return the weights of polynomial interpolation from different nodes to a point."""
    return [math.prod((point - other) / (node - other) for other in nodes if other != node) for node in nodes]
