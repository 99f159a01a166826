"""Gathered grids and pictures show the field that was handed in, on any number of ranks."""

import subprocess
import sys

from mpi4py import MPI

import numpy as np
import pytest
from dolfinx import fem, mesh

from pdeopt import _panels
from pdeopt.plot import gather_grid, plot_convergence, plot_fields
from pdeopt.report import InputError, MissingPackageError

pyvista = pytest.importorskip("pyvista")
matplotlib_image = pytest.importorskip("matplotlib.image")

COMM = MPI.COMM_WORLD


def field(domain, element, values):
    function = fem.Function(fem.functionspace(domain, element), name="u")
    function.interpolate(values)
    return function


def integral(grid):
    return grid.integrate_data()["u"]


def pixels(path):
    return np.rint(255 * matplotlib_image.imread(path)[..., :3]).astype(int)


def contains_colour(image, colour, tolerance=3):
    return bool(np.any(np.all(np.abs(image - colour) <= tolerance, axis=-1)))


@pytest.mark.parallel([1, 2, 3])
def test_gathered_grid_is_the_same_on_any_number_of_ranks():
    square = mesh.create_unit_square(COMM, 6, 5)
    quads = mesh.create_unit_square(COMM, 4, 4, cell_type=mesh.CellType.quadrilateral)
    box = mesh.create_unit_cube(COMM, 2, 2, 2)

    def slope(x):
        return 1 + x[0] + 2 * x[1]

    # (mesh, element, cells, nodes); the values are linear, so that every element integrates them exactly
    cases = [
        (square, ("P", 1), 60, 42),
        (square, ("P", 2), 60, 143),
        (square, ("DG", 0), 60, 42),
        (square, ("DG", 1), 60, 180),
        (quads, ("Q", 1), 16, 25),
        (box, ("P", 1), 48, 27),
    ]
    for domain, element, cells, nodes in cases:
        grid = gather_grid(field(domain, element, slope))
        assert (grid is None) == (COMM.rank > 0)
        if grid is None:
            continue
        assert (grid.n_cells, grid.n_points) == (cells, nodes)
        assert grid.active_scalars_name == "u"
        values = grid["u"]
        if element[1] == 0:
            np.testing.assert_allclose(values, slope(grid.cell_centers().points.T), rtol=1e-6)
        else:
            np.testing.assert_allclose(values, slope(grid.points.T), rtol=1e-12)
            assert (values.min(), values.max()) == (pytest.approx(1.0), pytest.approx(4.0))
        if element[1] < 2:  # VTK integrates linear cells only
            assert integral(grid) == pytest.approx(2.5, rel=1e-12)
    flux = gather_grid(field(square, ("P", 1, (2,)), lambda x: np.vstack([x[1], -x[0]])))
    if flux is not None:
        np.testing.assert_allclose(flux["u"], flux.points[:, [1, 0, 2]] * [1, -1, 0], atol=1e-14)
        assert flux.active_vectors_name == "u"
    with pytest.raises(InputError, match="neither scalar nor vector"):
        gather_grid(field(square, ("P", 1, (2, 2)), lambda x: np.zeros((4, x.shape[1]))))


@pytest.mark.parallel([1, 2])
def test_picture_shows_the_field_in_the_colours_of_the_bar(shared_tmp_path):
    square = mesh.create_unit_square(COMM, 8, 8)
    state = field(square, ("P", 1), lambda x: np.sin(np.pi * x[0]) * np.sin(np.pi * x[1]))
    signed = field(square, ("DG", 0), lambda x: np.where(x[0] > 0.5, 2.0, -1.0))
    path = plot_fields(
        {"temperature (K)": state, "control (W/m²)": signed},
        shared_tmp_path / "new" / "both",
        title="A picture",
        diverging=["control (W/m²)"],
        length_unit="m",
    )
    assert path == shared_tmp_path / "new" / "both.png"
    assert [item.name for item in path.parent.iterdir()] == ["both.png"]
    if COMM.rank == 0:
        from matplotlib import colormaps

        image = pixels(path)
        assert image.shape[1] == 1600
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 500
        left, right = image[:, :640], image[:, 800:1440]
        # The darkest and the brightest colour of the bar stand inside the panel, at the boundary and in the middle.
        assert contains_colour(left, [68, 1, 84])
        assert contains_colour(left, [253, 231, 37])
        red, blue = ([int(255 * part) for part in colormaps["RdBu_r"](x)[:3]] for x in (1.0, 0.25))
        assert contains_colour(right, red)
        assert contains_colour(right, blue)
        assert np.all(image[[0, -1]] == 255)  # nothing touches the rim of the paper
    # A picture needs one rank only, yet its failure is everybody's.
    broken = field(square, ("P", 1), lambda x: np.where(x[0] > 0.9, np.nan, x[0]))
    with pytest.raises(InputError, match="'broken' has values that are NaN"):
        plot_fields({"broken": broken}, shared_tmp_path / "broken.png")
    if COMM.rank == 0:
        (shared_tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to the folder"):
        plot_fields({"state": state}, shared_tmp_path / "file" / "state.png")
    with pytest.raises(InputError, match="no field is labelled 'stat'"):
        plot_fields({"state": state}, shared_tmp_path / "state.png", limits={"stat": (0.0, 1.0)})


def test_solids_curves_intervals_and_vectors_are_drawn(tmp_path):
    box = mesh.create_box(MPI.COMM_SELF, [(0, 0, 0), (1, 0.5, 0.3)], [6, 3, 2])
    square = mesh.create_unit_square(MPI.COMM_SELF, 6, 6)
    square.topology.create_connectivity(1, 2)
    edge = mesh.create_submesh(square, 1, mesh.locate_entities_boundary(square, 1, lambda x: np.isclose(x[0], 0.0)))[0]
    channel = mesh.create_rectangle(MPI.COMM_SELF, [(0, 0), (2.2, 0.4)], [22, 4])
    rows = [
        {"displacement (m)": field(box, ("P", 1, (3,)), lambda x: x), "density": field(box, ("DG", 0), lambda x: x[0])},
        {"boundary": field(edge, ("P", 1), lambda x: x[1]), "flux": field(square, ("RT", 1), lambda x: x[:2])},
        {"velocity (m/s)": field(channel, ("P", 2, (2,)), lambda x: np.vstack([x[1] * (0.4 - x[1]), 0 * x[0]]))},
        {"alone": field(square, ("P", 1), lambda x: 2500.0 * x[0] * x[1])},
        {"profile": field(mesh.create_interval(MPI.COMM_SELF, 5, (0, 1)), ("DG", 0), lambda x: x[0])},
    ]
    for index, row in enumerate(rows):
        image = pixels(plot_fields(row, tmp_path / f"{index}.png", show_edges=True, colour_map="inferno"))
        assert image.shape[1] == 800 * len(row)
        drawn = np.any(image != 255, axis=2)
        assert 0.02 < drawn.mean() < 0.9
        assert not drawn[[0, -1]].any()
        assert not drawn[:, [0, -1]].any()


def test_panels_are_labelled_and_constant_fields_keep_a_readable_bar():
    square = mesh.create_unit_square(MPI.COMM_SELF, 2, 2)
    grid = gather_grid(field(square, ("P", 1), lambda x: 300 + 1e-12 * x[0]))
    panel = _panels.make_panel("temperature (K)", grid, 2, "viridis", None)
    assert panel.limits == pytest.approx((297.0, 303.0))
    figure = _panels.draw_panels([panel], "Heading", show_edges=False, length_unit="mm")
    (axes,) = figure.axes
    (bar,) = axes.child_axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x (mm)", "y (mm)")
    assert bar.get_ylabel() == "temperature (K)"
    assert figure.get_suptitle() == "Heading"
    assert bar.get_ylim() == pytest.approx(panel.limits)
    # The bar stands beside the domain.
    figure.draw_without_rendering()
    assert bar.get_position().x0 > axes.get_position().x1


def test_histories_are_drawn_on_a_logarithmic_axis(tmp_path, monkeypatch):
    figures = []
    save = _panels.save_figure
    monkeypatch.setattr(_panels, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path))
    histories = {"MINRES": [10.0**-k for k in range(9)], "Newton": [1.0, 1e-3, 0.0]}
    path = plot_convergence(histories, tmp_path / "history", title="Convergence")
    assert len(np.unique(pixels(path).reshape(-1, 3), axis=0)) > 20
    (axes,) = figures[0].axes
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["MINRES", "Newton"]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), histories["MINRES"])
    plot_convergence({"few": np.eye(1, 100)[0]}, path)  # a point that stands alone has no line, but its marker
    assert figures[-1].axes[0].lines[0].get_markevery() == 1
    with pytest.raises(InputError, match="no positive value"):
        plot_convergence({"nothing": [0.0]}, path)


def test_a_legend_covers_no_curve(tmp_path, monkeypatch):
    figures = []
    save = _panels.save_figure
    monkeypatch.setattr(_panels, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path))
    everywhere = [10.0 ** -(7 * (step % 2)) for step in range(60)]
    plot_convergence({"everywhere": everywhere, "flat": [1e-3] * 60}, tmp_path / "full")
    (figure,) = figures
    assert figure.axes[0].get_legend() is None
    (legend,) = figure.legends
    figure.draw_without_rendering()
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())


def test_import_is_light_and_a_missing_package_is_named(monkeypatch):
    # A fresh interpreter, since this one has everything loaded; it starts no MPI job of its own.
    code = "import sys, pdeopt.plot; print(sorted({'pyvista', 'matplotlib', 'dolfinx'} & set(sys.modules)))"
    if COMM.size == 1:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
    monkeypatch.setitem(sys.modules, "pyvista", None)
    square = mesh.create_unit_square(MPI.COMM_SELF, 2, 2)
    with pytest.raises(MissingPackageError, match="python -m pip install pyvista"):
        gather_grid(field(square, ("P", 1), lambda x: x[0]))


def test_rendering_is_silent(tmp_path):
    code = (
        "from mpi4py import MPI; from dolfinx import fem, mesh; from pdeopt.plot import plot_fields\n"
        "space = fem.functionspace(mesh.create_unit_square(MPI.COMM_SELF, 2, 2), ('P', 1))\n"
        f"plot_fields({{'u': fem.Function(space)}}, {str(tmp_path / 'u.png')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
