"""Films of fields over time, drawn on rank 0 without a screen: GIF, or MP4 where imageio-ffmpeg is installed.

A frame gathers its fields to rank 0: this is meant for meshes of up to some 1e5 cells and some hundred frames. Write
larger results with `pdeopt.fem.output.FieldSeries` and play them in ParaView.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Collection, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pdeopt import _film, _panels
from pdeopt.parallel import collective_errors, on_root
from pdeopt.plot import choose_colours, gather_grid
from pdeopt.report import InputError

if TYPE_CHECKING:
    import pyvista
    from dolfinx import fem


class Animation:
    """A film of fields side by side, each with one colour bar for all frames; a context manager.

    .. code-block:: python

        with Animation({"temperature (K)": u}, "results/heat.gif", time_unit="s") as film:
            for step in range(100):
                ...
                film.add(time)

    Plane domains are seen from above, solid ones from an isometric direction; they may move. Vector fields are coloured
    by their magnitude. The film is drawn at the end of the block, when the range of the values is known, and not at
    all if the block ends in an error.

    Parameters
    ----------
    functions
        Scalar or vector fields by label; the label stands at the colour bar and should carry the unit
        ("temperature (K)"). Every `add` looks at the functions: go on computing in the same ones.
    path
        The film: ``.gif``, which is appended if there is no suffix, or ``.mp4``. A panel is 520 pixels wide. An older
        film is replaced.
    frames_per_second
        Speed, > 0. GIF viewers count in hundredths of a second.
    title
        Heading, before the time.
    colour_map, diverging, limits
        As for `pdeopt.plot.plot_fields`; without limits the range over all frames counts.
    show_edges
        Draw the edges of the mesh.
    time_unit
        Unit of the time stamp ("s").

    Raises
    ------
    InputError
        On all ranks, if there is no field, a label is unknown, a field cannot be drawn, or the format is another one.
    MissingPackageError
        On all ranks, if pyvista, imageio, or for MP4 imageio-ffmpeg is not installed.

    Collective: yes, like its methods.
    """

    def __init__(
        self,
        functions: "Mapping[str, fem.Function[Any]]",
        path: str | pathlib.Path,
        *,
        frames_per_second: float = 10.0,
        title: str = "",
        colour_map: str | Mapping[str, str] = "viridis",
        diverging: Collection[str] = (),
        limits: Mapping[str, tuple[float, float]] | None = None,
        show_edges: bool = False,
        time_unit: str = "",
    ) -> None:
        self._functions, self._limits = dict(functions), dict(limits or {})
        self._colour_maps = choose_colours(list(self._functions), colour_map, diverging, self._limits)
        self._path = pathlib.Path(path)
        if not self._path.suffix:
            self._path = self._path.with_name(self._path.name + ".gif")
        if not frames_per_second > 0.0:
            raise InputError(f"frames_per_second is {frames_per_second:g}: it must be positive")
        self._frames_per_second, self._title, self._time_unit = frames_per_second, title, time_unit
        self._show_edges = show_edges
        for label, function in self._functions.items():
            if function.function_space.mesh.geometry.dim == 1:
                raise InputError(f"'{label}' lives on an interval, of which there are no films: use plot_fields")
        self._comm = next(iter(self._functions.values())).function_space.mesh.comm
        on_root(self._comm, self._check_format)
        self._times: list[float] = []
        self._panels: list[_panels.Panel] = []  # of the first frame, on rank 0, as all that follows
        self._frames: list[list[_film.Snapshot]] = []

    def add(self, time: float) -> None:
        """Add the fields' present values as a frame.

        Parameters
        ----------
        time
            What the time stamp says.

        Raises
        ------
        InputError
            On all ranks, if a field is not finite, or neither scalar nor vector.

        Collective: yes. Ghost values of the fields are updated.
        """
        grids = [gather_grid(function) for function in self._functions.values()]
        with collective_errors(self._comm):
            if self._comm.rank == 0:
                self._keep(grids)
        self._times.append(time)

    def close(self) -> pathlib.Path:
        """Draw the film.

        Returns
        -------
        pathlib.Path
            The file written.

        Raises
        ------
        InputError
            On all ranks, if there is no frame, or the file cannot be written.

        Collective: yes.
        """
        return on_root(self._comm, self._write)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()

    def _check_format(self) -> None:
        _panels.load_package("pyvista")
        _panels.load_package("imageio")
        if self._path.suffix == ".mp4":
            _panels.load_package("imageio_ffmpeg")
        elif self._path.suffix != ".gif":
            raise InputError(f"a film cannot be written as '{self._path.suffix}': choose .gif or .mp4")

    def _keep(self, grids: "list[pyvista.UnstructuredGrid | None]") -> None:
        panels = [
            _panels.make_panel(label, grid, function.function_space.mesh.geometry.dim, self._colour_maps[label], None)
            for (label, function), grid in zip(self._functions.items(), grids, strict=True)
        ]
        self._panels = self._panels or panels
        self._frames.append([_film.Snapshot.of(panel) for panel in panels])

    def _write(self) -> pathlib.Path:
        """Draw all frames and give the film its name."""
        from pdeopt.fem.output import staging_folder

        if not self._times:
            raise InputError("there is no frame to draw: call add(time)")
        staging = staging_folder(self._path)
        try:
            _film.draw_film(
                staging / self._path.name,
                [self._with_limits(index) for index in range(len(self._panels))],
                self._frames,
                [self._caption(time) for time in self._times],
                self._frames_per_second,
                self._show_edges,
            )
            (staging / self._path.name).replace(self._path)
        except OSError as error:
            raise InputError(f"cannot write the film '{self._path}': {error.strerror or error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return self._path

    def _with_limits(self, index: int) -> _panels.Panel:
        """Return a panel whose bar covers all frames."""
        panel = self._panels[index]
        colours = np.concatenate([frame[index].colours for frame in self._frames])
        lowest, highest = _panels.value_range(colours, panel.colour_map == _panels.DIVERGING)
        rounding = 1e-6 * (highest - lowest)  # the bar says 0, and not 2e-37
        drawn = (0.0 if abs(lowest) < rounding else lowest, 0.0 if abs(highest) < rounding else highest)
        return dataclasses.replace(panel, limits=self._limits.get(panel.label, drawn))

    def _caption(self, time: float) -> str:
        unit = f" {self._time_unit}" if self._time_unit else ""
        return f"{self._title}{':  ' if self._title else ''}t = {time:.4g}{unit}"


def animate_fields(
    functions: "Mapping[str, fem.Function[Any]]", times: Iterable[float], path: str | pathlib.Path, **options: Any
) -> pathlib.Path:
    """Draw a film of fields whose values change while one goes through the times.

    .. code-block:: python

        def steps():
            for number in range(100):
                ...  # computes the next u
                yield number * time_step

        animate_fields({"temperature (K)": u}, steps(), "results/heat.gif", time_unit="s")

    Parameters
    ----------
    functions, path
        As of `Animation`.
    times
        Gives one time after another, the same on all ranks, each when the functions have their values at it.
    options
        Keyword arguments of `Animation`.

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    InputError, MissingPackageError
        As `Animation`.

    Collective: yes.
    """
    film = Animation(functions, path, **options)
    for time in times:
        film.add(time)
    return film.close()
