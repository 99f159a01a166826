"""What a reduced Newton method needs to know of a reduced system."""

from typing import Protocol

from mpi4py import MPI

from pdeopt.reduced_order.inner_product import Array


class ReducedSystem(Protocol):
    """r(a) = Phi' F(u_0 + Phi a), a small dense system that is the same on all ranks.

    Attributes
    ----------
    comm
        Communicator.
    size
        Number of coordinates r.
    """

    comm: MPI.Comm
    size: int

    def update(self) -> None:
        """Take over the present values of the parameters, coefficients and lifting. Collective: yes."""

    def evaluate(self, coordinates: Array, *, jacobian: bool = True) -> tuple[Array, Array | None]:
        """Return the residual, shape (r,), and its Jacobian, shape (r, r). Collective: yes, by one all-reduce."""
