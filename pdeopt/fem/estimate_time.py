"""Certificates of trajectories: the residual of the time-stepping scheme itself, slab by slab.

With the residual R_n of step n, per unit of time, as the scheme has it ((u_n - u_{n-1}) / dt plus the weighted spatial
terms, tested with v),

    eta^2 = |u(0) - u_0|^2 + sum_n dt_n eta_n^2,    eta_n = sup_v R_n(v) / |v|_V,

in L2 and in an energy norm |v|_V. For a linear equation u' + A u = f with the norm of A, the difference e to the exact
solution of the scheme has

    eta^2 = |e_N|^2 + sum_n dt_n (|d_n e|_*^2 + |e_n|_A^2) + what the scheme damps,                             (*)

where d_n e is the scheme's difference quotient, |.|_* the dual norm of |.|_A, e_n the weighted value of the theta
scheme, and the last term (2 theta - 1) sum_n |e_n - e_{n-1}|^2: expand |d_n e + A e_n|_*^2 and telescope the mixed
product (the parabolic inf-sup identity; Tantardini and Veeser, SIAM J. Numer. Anal. 54 (2016); for the backward Euler
scheme Ern, Smears and Vohralik, ibid. 55 (2017)). So eta sees jumps between time levels as well as wrong fields, and
its constants depend neither on the step nor on the mesh. BDF2 has the same with its G-norm at the end.

The increment u_n - u_{n-1} must come from the trajectory. A residual whose time derivative is computed from the
equation at the proposal itself vanishes for any trajectory, noise included; `noise_ratio` tells.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
import ufl
from ufl.core.expr import Expr

from pdeopt.fem import forms
from pdeopt.fem.estimate_norm import DualNorm
from pdeopt.fem.estimate_space import LinearForm
from pdeopt.report import InputError

Field = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class TrajectoryEstimate:
    """What the slabs of a trajectory add up to.

    Parameters
    ----------
    initial_mismatch
        L2 norm of the difference to the prescribed initial value.
    slabs
        eta_n of every step.
    steps
        dt_n of every step [time].
    """

    initial_mismatch: float
    slabs: tuple[float, ...]
    steps: tuple[float, ...]

    @property
    def total(self) -> float:
        """Eta of the trajectory, in the units of the L2 norm."""
        squares = math.fsum(step * eta**2 for step, eta in zip(self.steps, self.slabs, strict=True))
        return math.sqrt(self.initial_mismatch**2 + squares)

    @property
    def shares(self) -> tuple[float, ...]:
        """The slabs' shares dt_n eta_n^2 of the square of the total: where to take another step, or to solve again."""
        return tuple(step * eta**2 for step, eta in zip(self.steps, self.slabs, strict=True))


class TrajectoryEstimator:
    """Accumulates the residual of a time-stepping scheme over a trajectory.

    Parameters
    ----------
    norm
        Dual norm of the spatial operator: `poisson_norm` for diffusion, `stokes_norm` for flow.
    residual
        The residual of one step as a linear form (or the list of its blocks), divided by dt if the scheme is written
        multiplied by it. Its functions and constants hold the step in question when `add` is called.

    Collective: yes.
    """

    def __init__(self, norm: DualNorm, residual: LinearForm) -> None:
        self._norm, self._residual = norm, residual
        self._initial_mismatch = 0.0
        self._slabs: list[float] = []
        self._steps: list[float] = []

    def start(self, mismatch: Expr) -> float:
        """Forget all slabs and take the difference between the trajectory's and the prescribed initial value.

        Parameters
        ----------
        mismatch
            The difference, as a UFL expression.

        Returns
        -------
        float
            Its L2 norm.

        Collective: yes.
        """
        self._slabs, self._steps = [], []
        mesh = self._norm.space.mesh
        square = forms.compile_form(ufl.inner(mismatch, mismatch) * ufl.dx(mesh))
        self._initial_mismatch = math.sqrt(max(forms.assemble_scalar(square), 0.0))
        return self._initial_mismatch

    def add(self, step: float) -> float:
        """Measure the residual of one step and return eta_n; infinity if the fields have NaN or Inf.

        Parameters
        ----------
        step
            dt_n > 0 [time].

        Raises
        ------
        InputError
            If the step is not positive.
        ConvergenceError
            If the Riesz solve fails.

        Collective: yes.
        """
        if not step > 0.0:
            raise InputError(f"the time step is {step}: it must be positive")
        vector = self._norm.residual(self._residual)
        eta = self._norm.norm(vector)
        vector.destroy()
        self._slabs.append(eta)
        self._steps.append(step)
        return eta

    def estimate(self) -> TrajectoryEstimate:
        """Return what the slabs added so far amount to. Collective: no."""
        return TrajectoryEstimate(self._initial_mismatch, tuple(self._slabs), tuple(self._steps))


def noise_ratio(
    score: Callable[[Sequence[Field]], float],
    converged: Sequence[Field],
    generator: np.random.Generator,
    comm: MPI.Comm,
) -> float:
    """Return how much worse than a converged trajectory a certificate rates random fields of the same size.

    A certificate that is worth its name gives a large number, 1e6 and more; one whose residual is built from the
    proposal alone gives about one.

    Parameters
    ----------
    score
        The certificate: takes the owned values of every time level, shape (owned,) each, and returns a number.
    converged
        The time levels of a trajectory that solves the scheme. The first one, the initial value, is kept.
    generator
        Random stream of this rank (`parallel.random_stream` with a communicator).
    comm
        Communicator of the fields.

    Collective: yes.
    """
    noise = [np.array(converged[0])]
    for level in converged[1:]:
        sums = comm.allreduce(np.array([float(level @ level), float(level.size)]))
        noise.append(generator.standard_normal(level.size) * math.sqrt(sums[0] / sums[1]))
    return float(score(noise) / score(converged))
