"""Where a reduced Newton method starts: coordinates interpolated between training parameters."""

from collections.abc import Callable

import numpy as np

from pdeopt.reduced_order._packages import require_package
from pdeopt.reduced_order.inner_product import Array
from pdeopt.report import InputError


class CoordinateInterpolation:
    """Reduced coordinates as a function of the parameter, by cubic radial basis functions in the scaled parameter box.

    Alone, with POD modes, it is the plain non-intrusive reduced model; as a start it saves most Newton steps. With
    fewer training parameters than dimensions + 1 the nearest one is taken.

    Parameters
    ----------
    parameters
        Training parameters, shape (n, d). What spans decades is best handed over as its logarithm.
    coordinates
        Their reduced coordinates, shape (r, n), as `Basis.coordinates` returns them.

    Raises
    ------
    InputError
        If the shapes do not fit, or there is NaN or Inf.
    MissingPackageError
        If scipy is absent.

    Collective: no; equal numbers on all ranks give equal starts.
    """

    def __init__(self, parameters: Array, coordinates: Array) -> None:
        parameters, coordinates = np.asarray(parameters, dtype=np.float64), np.asarray(coordinates, dtype=np.float64)
        if parameters.ndim != 2 or coordinates.ndim != 2 or len(parameters) != coordinates.shape[1]:
            raise InputError(
                f"parameters have the shape {parameters.shape} and coordinates {coordinates.shape}: give (n, d) and "
                "(r, n)"
            )
        if not (np.isfinite(parameters).all() and np.isfinite(coordinates).all()):
            raise InputError("training parameters or coordinates have NaN or Inf: leave those snapshots out")
        self.dimension = parameters.shape[1]
        self._low = parameters.min(axis=0)
        width = np.ptp(parameters, axis=0)
        self._scale = 1.0 / np.where(width > 0.0, width, 1.0)
        self._points, self._coordinates = (parameters - self._low) * self._scale, coordinates
        self._interpolator: Callable[[Array], Array] | None = None
        if len(parameters) > self.dimension:
            package = require_package("scipy.interpolate")
            try:
                self._interpolator = package.RBFInterpolator(self._points, coordinates.T, kernel="cubic", degree=1)
            except np.linalg.LinAlgError as error:
                raise InputError(
                    "the training parameters repeat themselves or lie in a plane: interpolation has no solution"
                ) from error

    def __call__(self, parameter: Array) -> Array:
        """Return coordinates, shape (r,).

        Raises
        ------
        InputError
            If the parameter has another shape than (d,), or NaN or Inf.

        Collective: no.
        """
        parameter = np.asarray(parameter, dtype=np.float64)
        if parameter.shape != (self.dimension,):
            raise InputError(f"the parameter has the shape {parameter.shape}: give ({self.dimension},)")
        if not np.isfinite(parameter).all():
            raise InputError(f"the parameter {parameter} has NaN or Inf")
        point = (parameter - self._low) * self._scale
        if self._interpolator is None:
            nearest = ((self._points - point) ** 2).sum(axis=1).argmin()
            return np.array(self._coordinates[:, nearest])
        return np.asarray(self._interpolator(point[None, :])[0])
