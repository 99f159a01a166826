"""What makes a cycle for a matrix: the interface between `NeuralMultigrid` and its bodies."""

from typing import Protocol

from petsc4py import PETSc

__all__ = ["Body"]


class Body(Protocol):
    """A symmetric operator near the inverse of a matrix, made for its values.

    Attributes
    ----------
    name
        What it is, for reports.
    """

    name: str

    def update(self, matrix: PETSc.Mat) -> bool:
        """Take the values of a matrix and keep what depends on the pattern alone; return False where that is nothing.

        Collective: yes.
        """
        ...

    def apply(self, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Set y to the cycle's answer to x. Collective: yes."""
        ...

    def quantities(self) -> dict[str, float | int | str]:
        """Return numbers worth printing. Collective: no."""
        ...

    def view(self, viewer: PETSc.Viewer) -> None:
        """Print what `quantities` does not say. Collective: yes."""
        ...

    def release(self) -> None:
        """Free what it owns. Collective: yes."""
        ...
