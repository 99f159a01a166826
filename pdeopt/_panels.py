"""Grids, panels and figures behind `pdeopt.plot`; everything here runs on rank 0 only."""

import dataclasses
import importlib
import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from pdeopt.report import InputError, MissingPackageError

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import pyvista

DIVERGING = "RdBu_r"
COLOURS = "pdeopt colours"  # name of the scalars drawn, beside the field of the user
_DOTS_PER_INCH = 200
_PANEL_INCHES = 4.0
_PLAIN_INCHES = 2.75  # width of a panel that is left to the drawing beside a colour bar
# A panel that stands alone fills the figure's width, and would push its labels off the paper.
_ALONE = 0.82
# Domains flatter than this have their colour bar above them instead of beside them.
_FLAT_ASPECT = 0.45
_RENDERED_PIXELS = 1400  # longer side of a rendered panel; the figure samples it down, which smooths edges


@dataclasses.dataclass(frozen=True)
class Panel:
    """One field to draw: the label of its colour bar, its values on a grid, and the colours they get."""

    label: str
    grid: "pyvista.UnstructuredGrid"
    dimension: int
    colour_map: str
    limits: tuple[float, float]

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Coordinates (left, right, bottom, top) of the rectangle in which a plane domain is seen."""
        x_min, x_max, y_min, y_max, *_ = self.grid.bounds
        longer = max(x_max - x_min, y_max - y_min)
        # A straight boundary has no extent in one direction: give it a strip to be seen in.
        x_pad, y_pad = (max(0.01 * longer, 0.07 * longer - size / 2) for size in (x_max - x_min, y_max - y_min))
        return x_min - x_pad, x_max + x_pad, y_min - y_pad, y_max + y_pad


def load_package(module: str) -> Any:
    """Import an optional module, or raise the error that says how to install its package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPackageError(f"pictures need {package}: run `python -m pip install {package}`") from error


def make_grid(
    name: str,
    cells: npt.NDArray[np.int64],
    cell_types: npt.NDArray[np.int64],
    points: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    cellwise: bool,
) -> "pyvista.UnstructuredGrid":
    """Return a grid of equal cells ``(cells, nodes per cell)`` with one field ``(nodes or cells, components)``."""
    counted = np.column_stack([np.full(len(cells), cells.shape[1]), cells])
    grid = load_package("pyvista").UnstructuredGrid(counted.ravel(), cell_types, points)
    vector = values.shape[1] > 1
    data = grid.cell_data if cellwise else grid.point_data
    data[name] = np.pad(values, [(0, 0), (0, 3 - values.shape[1])]) if vector else values.ravel()
    (grid.set_active_vectors if vector else grid.set_active_scalars)(name, preference="cell" if cellwise else "point")
    return grid


def make_panel(
    label: str, grid: "pyvista.UnstructuredGrid", dimension: int, colour_map: str, limits: tuple[float, float] | None
) -> Panel:
    """Reduce the grid's field to the scalars that give the colours, and choose their range."""
    vectors = grid.active_vectors
    data = grid.cell_data if grid.cell_data else grid.point_data
    data[COLOURS] = grid.active_scalars if vectors is None else np.linalg.norm(vectors, axis=1)
    if not np.all(np.isfinite(data[COLOURS])):
        raise InputError(f"the field '{label}' has values that are NaN or infinite")
    grid.set_active_scalars(COLOURS)
    return Panel(label, grid, dimension, colour_map, limits or value_range(data[COLOURS], colour_map == DIVERGING))


def value_range(values: npt.NDArray[np.floating], symmetric: bool) -> tuple[float, float]:
    """Return the limits of a colour bar for some values, about zero if asked for."""
    lowest, highest = float(values.min()), float(values.max())
    if symmetric:
        highest = max(abs(lowest), abs(highest))
        lowest = -highest
    largest = max(abs(lowest), abs(highest))
    if highest - lowest > 1e-10 * largest:
        return lowest, highest
    margin = 0.01 * largest or 1.0  # rounding in a constant field must not be stretched over all colours
    return lowest - margin, highest + margin


def new_figure(width: float, height: float) -> "matplotlib.figure.Figure":
    """Return an empty figure of a size in inches."""
    # A bare Figure draws with Agg and leaves pyplot's global state, and the user's back end, alone.
    figure = load_package("matplotlib.figure").Figure((width, height), dpi=_DOTS_PER_INCH, layout="constrained")
    figure.set_facecolor("white")
    return cast("matplotlib.figure.Figure", figure)


def add_legend(axes: "matplotlib.axes.Axes") -> None:
    """Add a legend where it covers least, and below the axes if it would cover a line there."""
    figure = axes.figure
    legend = axes.legend(frameon=False)
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    if any(line.get_path().transformed(line.get_transform()).intersects_bbox(box, False) for line in axes.lines):
        legend.remove()
        figure.legend(loc="outside lower center", ncols=2, frameon=False)


def save_figure(figure: "matplotlib.figure.Figure", path: str | pathlib.Path) -> pathlib.Path:
    """Write a figure as PNG under a temporary name, rename it, and return its final path."""
    from pdeopt.fem.output import staging_folder

    target = pathlib.Path(path)
    if target.suffix != ".png":
        target = target.with_name(target.name + ".png")
    staging = staging_folder(target)
    try:
        figure.savefig(staging / target.name)
        (staging / target.name).replace(target)
    except OSError as error:
        raise InputError(f"cannot write the picture '{target}': {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def draw_panels(panels: Sequence[Panel], title: str, show_edges: bool, length_unit: str) -> "matplotlib.figure.Figure":
    """Return the figure of a row of panels."""
    images = [None if panel.dimension == 1 else _render(panel, show_edges) for panel in panels]
    aspects = [0.75 if image is None else image.shape[0] / image.shape[1] for image in images]
    flat = max(aspects) < _FLAT_ASPECT
    drawing_height = min((3.4 if flat else _PLAIN_INCHES) * max(aspects), 5.5)
    if len(panels) == 1 and not flat:
        drawing_height *= _ALONE
    height = drawing_height + (1.5 if flat else 0.6) + (0.3 if title else 0.0)
    figure = new_figure(_PANEL_INCHES * len(panels), height)
    figure.suptitle(title)
    unit = f" ({length_unit})" if length_unit else ""
    rows = figure.subplots(1, len(panels), squeeze=False)
    for panel, image, aspect, axes in zip(panels, images, aspects, rows[0], strict=True):
        axes.spines[:].set_visible(False)
        if image is None:
            _draw_graph(axes, panel)
            axes.set(xlabel=f"x{unit}", ylabel=panel.label)
            continue
        if panel.dimension == 2:
            axes.imshow(image, extent=panel.frame, interpolation="antialiased")
            axes.set(xlabel=f"x{unit}", ylabel=f"y{unit}")
            axes.locator_params("x", nbins=max(1, min(5, round(5 / aspect))), min_n_ticks=1)
            axes.locator_params("y", nbins=max(2, min(5, round(7 * aspect))))
            _draw_arrows(axes, panel)
        else:
            axes.imshow(image, interpolation="antialiased")
            axes.set(xticks=[], yticks=[])
        # Inset axes follow the drawn size of the panel, which the equal aspect changes after the layout.
        if flat:
            position = (0.0, 1.0 + 0.06 / aspect, 1.0, 0.04 / aspect)
        else:
            narrowed = max(1.0, _PLAIN_INCHES * aspect / drawing_height)
            position = (1.0 + 0.04 * narrowed, 0.0, 0.05 * narrowed, 1.0)
        _draw_colour_bar(axes, position, panel, above=flat)
    return figure


def _draw_colour_bar(
    axes: "matplotlib.axes.Axes", position: tuple[float, float, float, float], panel: Panel, above: bool
) -> None:
    ticker, colors = load_package("matplotlib.ticker"), load_package("matplotlib.colors")
    numbers = ticker.ScalarFormatter(useOffset=False, useMathText=True)
    numbers.set_powerlimits((-3, 4))
    bar = axes.figure.colorbar(
        load_package("matplotlib.cm").ScalarMappable(colors.Normalize(*panel.limits), panel.colour_map),
        cax=axes.inset_axes(position),
        label=panel.label,
        orientation="horizontal" if above else "vertical",
        format=numbers,
    )
    bar.outline.set_visible(False)
    if above:
        bar.ax.xaxis.set_ticks_position("top")
        bar.ax.xaxis.set_label_position("top")


def _draw_graph(axes: "matplotlib.axes.Axes", panel: Panel) -> None:
    """Draw a field on an interval, cell by cell, so that jumps stay jumps."""
    grid = panel.grid
    nodes = grid.cells.reshape(grid.n_cells, -1)[:, 1:]
    x = grid.points[nodes, 0]
    order = np.argsort(x, axis=1)  # VTK lists both ends of a cell first
    values = grid.point_data[COLOURS][nodes] if grid.point_data else np.repeat(grid[COLOURS][:, None], x.shape[1], 1)
    segments = np.take_along_axis(np.stack([x, values], axis=2), order[:, :, None], axis=1)
    axes.add_collection(load_package("matplotlib.collections").LineCollection(list(segments), color="tab:blue"))
    axes.autoscale_view()
    axes.grid(True, color="0.85")


def _draw_arrows(axes: "matplotlib.axes.Axes", panel: Panel) -> None:
    """Draw a vector field on a regular lattice of points, which no partition of the mesh can change."""
    name = panel.grid.active_vectors_name
    if name is None:
        return
    x_min, x_max, y_min, y_max, *_ = panel.grid.bounds
    spacing = max(x_max - x_min, y_max - y_min) / 24
    counts = [max(1, int(size / spacing)) for size in (x_max - x_min, y_max - y_min)]
    corner = [
        (low + high - (count - 1) * spacing) / 2
        for low, high, count in zip((x_min, y_min), (x_max, y_max), counts, strict=True)
    ]
    lattice = load_package("pyvista").ImageData(
        dimensions=(*counts, 1), spacing=(spacing, spacing, 1.0), origin=(*corner, 0.0)
    )
    sampled = lattice.sample(panel.grid)
    inside = sampled["vtkValidPointMask"] > 0
    vectors = sampled[name][inside]
    largest = np.linalg.norm(vectors, axis=1).max(initial=0.0)
    if largest > 0.0:
        axes.quiver(
            *sampled.points[inside, :2].T,
            *vectors[:, :2].T,
            color="white",
            edgecolor="black",
            linewidth=0.3,
            width=0.006,
            pivot="middle",
            angles="xy",
            scale_units="xy",
            scale=largest / spacing,
        )


def _render(panel: Panel, show_edges: bool) -> npt.NDArray[np.uint8]:
    """Return the picture ``(height, width, 3)``: exactly the frame of a plane domain, or a solid cut to its edges."""
    pyvista = load_package("pyvista")
    plane = panel.dimension == 2
    left, right, bottom, top = panel.frame
    window = [_RENDERED_PIXELS] * 2
    if plane:
        pixels_per_length = _RENDERED_PIXELS / max(right - left, top - bottom)
        window = [math.ceil((right - left) * pixels_per_length), math.ceil((top - bottom) * pixels_per_length)]
    surface = surface_of(panel.grid)
    # VTK reports the absence of an X server before it falls back to a renderer that needs none.
    with pyvista.vtk_verbosity("off"):
        plotter = pyvista.Plotter(off_screen=True, window_size=window)
        try:
            plotter.set_background("white")
            plotter.add_mesh(
                surface,
                scalars=COLOURS,
                cmap=panel.colour_map,
                clim=panel.limits,
                show_scalar_bar=False,
                lighting=not plane,  # colours in the plane are those of the bar
                ambient=0.0 if plane else 0.5,
                diffuse=1.0 if plane else 0.5,
                line_width=10.0,  # of fields on curves
            )
            rim = rim_of(surface, plane)
            if rim.n_cells:  # curves and balls have none
                plotter.add_mesh(rim, color="black", line_width=3.0, lighting=False)
            if show_edges:
                # Without subdivision, so that the edges are those of the mesh.
                cells = panel.grid.extract_surface(algorithm="dataset_surface", nonlinear_subdivision=0)
                edges = cells.extract_all_edges()
                plotter.add_mesh(edges, color="black", opacity=0.4, line_width=1.5, lighting=False)
            if plane:
                plotter.view_xy()
                plotter.enable_parallel_projection()
                middle = ((left + right) / 2, (bottom + top) / 2)
                plotter.camera.focal_point = (*middle, 0.0)
                plotter.camera.position = (*middle, max(right - left, top - bottom))
                plotter.camera.parallel_scale = (top - bottom) / 2
            else:
                plotter.view_isometric()
            image = np.asarray(plotter.screenshot(return_img=True))
        finally:
            plotter.close()
    if plane:
        return image
    drawn = np.argwhere(np.any(image != 255, axis=2))
    (first_row, first_column), (last_row, last_column) = drawn.min(axis=0), drawn.max(axis=0)
    return image[first_row : last_row + 1, first_column : last_column + 1]


def surface_of(grid: "pyvista.UnstructuredGrid") -> "pyvista.PolyData":
    """Return what is seen of a grid; cells of degree two and more are cut into straight pieces, four to an edge."""
    return grid.extract_surface(algorithm="dataset_surface", nonlinear_subdivision=2)


def rim_of(surface: "pyvista.PolyData", plane: bool) -> "pyvista.PolyData":
    """Return the boundary of a plane surface or the sharp edges of a solid's."""
    # Discontinuous fields repeat their points: only the merged surface knows which edges have one side.
    merged = surface.clean(tolerance=1e-9 * surface.length)
    if not plane:  # DOLFINx orients neighbouring cells differently
        merged = merged.compute_normals(point_normals=False, consistent_normals=True, auto_orient_normals=True)
    return merged.extract_feature_edges(
        30.0, boundary_edges=True, feature_edges=not plane, non_manifold_edges=False, manifold_edges=False
    )
