"""The frames of a film behind `pdeopt.animate`; everything here runs on rank 0 only."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pdeopt import _panels

if TYPE_CHECKING:
    import pyvista

# Pixels of a panel: its width, the margins beside the drawing, the strips for the caption above and the bar below.
_WIDTH, _MARGIN, _TOP, _BOTTOM = 520, 20, 52, 110
_LARGEST_HEIGHT = 600  # of the drawing
_TEXT = 16
_BLOCK = 16  # video codecs want multiples


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What changes from frame to frame in one panel, in half the bytes: nodes and colours."""

    points: npt.NDArray[np.float32]
    colours: npt.NDArray[np.float32]

    @classmethod
    def of(cls, panel: _panels.Panel) -> "Snapshot":
        """Copy them from a panel's grid."""
        grid = panel.grid
        return cls(np.array(grid.points, dtype=np.float32), np.array(grid[_panels.COLOURS], dtype=np.float32))


def draw_film(
    path: pathlib.Path,
    panels: Sequence[_panels.Panel],
    frames: Sequence[Sequence[Snapshot]],
    captions: Sequence[str],
    frames_per_second: float,
    show_edges: bool,
) -> None:
    """Draw the frames of panels side by side into a GIF or MP4 file.

    Parameters
    ----------
    path
        The film, with the suffix ``.gif`` or ``.mp4``.
    panels
        Label, grid, colours and their limits; the grid's nodes and values are overwritten.
    frames
        For each frame the snapshots of all panels.
    captions
        The text above each frame.
    frames_per_second, show_edges
        As of `pdeopt.animate.Animation`.
    """
    pyvista = _panels.load_package("pyvista")
    heights = [_drawing_height(panel) if panel.dimension == 2 else _WIDTH - 2 * _MARGIN for panel in panels]
    height = math.ceil((max(heights) + _TOP + _BOTTOM) / _BLOCK) * _BLOCK
    width = math.ceil(_WIDTH * len(panels) / _BLOCK) * _BLOCK
    # VTK reports the absence of an X server before it falls back to a renderer that needs none.
    with pyvista.vtk_verbosity("off"):
        plotter = pyvista.Plotter(off_screen=True, shape=(1, len(panels)), window_size=[width, height], border=False)
        try:
            plotter.set_background("white")
            pictures = [_Picture(plotter, index, panel, height, show_edges) for index, panel in enumerate(panels)]
            plotter.subplot(0, 0)
            caption = plotter.add_text(
                captions[0], position=(_MARGIN, height - 38), font_size=0.75 * _TEXT, color="black"
            )
            if path.suffix == ".gif":
                plotter.open_gif(path, fps=frames_per_second)
            else:
                plotter.open_movie(path, framerate=frames_per_second)
            for snapshots, text in zip(frames, captions, strict=True):
                for picture, snapshot in zip(pictures, snapshots, strict=True):
                    picture.show(snapshot)
                caption.input = text
                plotter.write_frame()
        finally:
            plotter.close()


class _Picture:
    """One panel on the plotter, to be shown at one time after another."""

    def __init__(self, plotter: "pyvista.Plotter", index: int, panel: _panels.Panel, height: int, edges: bool) -> None:
        self._panel, self._edges, plane = panel, edges, panel.dimension == 2
        plotter.subplot(0, index)
        self._surface = _panels.surface_of(panel.grid)
        self._lines = self._black_lines()
        coloured = plotter.add_mesh(
            self._surface,
            scalars=_panels.COLOURS,
            cmap=panel.colour_map,
            clim=panel.limits,
            show_scalar_bar=False,
            lighting=not plane,  # colours in the plane are those of the bar
            ambient=0.0 if plane else 0.5,
            diffuse=1.0 if plane else 0.5,
        )
        for lines, thickness, opacity in zip(self._lines, (2.0, 1.0), (1.0, 0.4), strict=False):
            drawn = plotter.add_mesh(lines, color="black", line_width=thickness, opacity=opacity, lighting=False)
            # A little towards the eye: lines that lie in a surface are drawn over it, and not in parts.
            drawn.mapper.resolve = "polygon_offset"
            drawn.mapper.SetRelativeCoincidentTopologyLineOffsetParameters(-1.0, -4.0)
        plotter.add_text(panel.label, position=(0.1 * _WIDTH, _BOTTOM - 34), font_size=0.75 * _TEXT, color="black")
        plotter.add_scalar_bar(
            " " * (index + 1),  # bars of one title would be one bar; the label has more room above
            mapper=coloured.mapper, n_labels=5, fmt="%.3g", color="black", vertical=False,
            label_font_size=_TEXT, unconstrained_font_size=True,
            position_x=0.1, width=0.8, position_y=12 / height, height=56 / height,
        )  # fmt: skip
        if plane:
            self._look_from_above(plotter, height)
        else:
            plotter.view_isometric()
            plotter.camera.zoom(0.9)

    def show(self, snapshot: Snapshot) -> None:
        """Bring the drawing up to date."""
        grid = self._panel.grid
        moved = not np.array_equal(grid.points, snapshot.points)
        grid.points[:] = snapshot.points
        grid[_panels.COLOURS][:] = snapshot.colours
        self._surface.copy_from(_panels.surface_of(grid))
        if moved:
            for shown, new in zip(self._lines, self._black_lines(), strict=True):
                shown.copy_from(new)

    def _black_lines(self) -> "list[pyvista.PolyData]":
        """Return the rim of the surface, and the mesh's edges if they are asked for."""
        lines = [_panels.rim_of(self._surface, self._panel.dimension == 2)]
        if self._edges:
            cells = self._panel.grid.extract_surface(algorithm="dataset_surface", nonlinear_subdivision=0)
            lines.append(cells.extract_all_edges())
        return lines

    def _look_from_above(self, plotter: "pyvista.Plotter", height: int) -> None:
        """Place the domain between the caption and the bar, in the middle."""
        left, right, bottom, top = self._panel.frame
        drawing = height - _TOP - _BOTTOM
        length_per_pixel = max((right - left) / (_WIDTH - 2 * _MARGIN), (top - bottom) / drawing)
        middle = (left + right) / 2, (bottom + top) / 2 + (height / 2 - _BOTTOM - drawing / 2) * length_per_pixel
        plotter.view_xy()
        plotter.enable_parallel_projection()
        plotter.camera.focal_point = (*middle, 0.0)
        plotter.camera.position = (*middle, max(right - left, top - bottom))
        plotter.camera.parallel_scale = height / 2 * length_per_pixel


def _drawing_height(panel: _panels.Panel) -> float:
    left, right, bottom, top = panel.frame
    return min((_WIDTH - 2 * _MARGIN) * (top - bottom) / (right - left), _LARGEST_HEIGHT)
