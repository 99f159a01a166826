"""Films show the fields at their times, in the colours of one bar for all frames, on any number of ranks."""

import sys

from mpi4py import MPI

import numpy as np
import pytest
from dolfinx import fem, mesh

from pdeopt import _film
from pdeopt.animate import Animation, animate_fields
from pdeopt.report import InputError, MissingPackageError

pytest.importorskip("pyvista")
iio = pytest.importorskip("imageio.v3")
matplotlib = pytest.importorskip("matplotlib")

COMM = MPI.COMM_WORLD


def colour(name, part):
    return np.array(matplotlib.colormaps[name](part)[:3]) * 255


def constant(domain, element, name="u"):
    return fem.Function(fem.functionspace(domain, element), name=name)


@pytest.mark.parallel([2])
def test_film_shows_each_frame_in_the_colours_of_one_bar(shared_tmp_path):
    square = mesh.create_unit_square(COMM, 4, 4)
    state, signed = constant(square, ("P", 2)), constant(square, ("DG", 0))

    def steps():
        for step, value in enumerate([2.0, 3.0, 6.0]):
            state.x.array[:] = value
            signed.x.array[:] = value - 4
            yield 0.5 * step

    fields = {"temperature (K)": state, "control (W/m²)": signed}
    path = animate_fields(
        fields, steps(), shared_tmp_path / "new" / "heat", diverging=["control (W/m²)"], frames_per_second=5
    )
    assert path == shared_tmp_path / "new" / "heat.gif"
    COMM.barrier()
    assert [item.name for item in path.parent.iterdir()] == ["heat.gif"]
    if COMM.rank == 0:
        frames = iio.imread(path).astype(float)
        assert iio.immeta(path)["duration"] == 200  # [ms] a frame
        assert iio.immeta(path)["loop"] == 0  # for ever
        count, height, width, _ = frames.shape
        assert (count, width) == (3, 2 * _film._WIDTH)
        middle = height // 2 - 20
        panels = [(width // 4, "viridis", [0.0, 0.25, 1.0]), (3 * width // 4, "RdBu_r", [0.0, 0.25, 1.0])]
        for column, name, parts in panels:
            for frame, part in zip(frames, parts, strict=True):
                # A GIF has 256 colours a frame.
                np.testing.assert_allclose(frame[middle, column], colour(name, part), atol=8)
        # The time stamp changes, the bars and their labels stay.
        assert np.abs(frames[0, :45] - frames[1, :45]).max() > 100
        assert np.abs(frames[0, -100:] - frames[1, -100:]).mean() < 1.5
        assert np.all(frames[:, [0, -1]] > 250)  # nothing touches the rim

    film = Animation({"u": state}, shared_tmp_path / "broken.gif")
    film.add(0.0)
    own = state.function_space.dofmap.index_map.size_local
    if COMM.rank == COMM.size - 1:
        state.x.array[own // 2] = np.nan
    with pytest.raises(InputError, match="'u' has values that are NaN"):
        film.add(1.0)
    wrong = [
        (lambda: Animation({}, "u.gif"), "no field"),
        (lambda: Animation({"u": state}, "u.avi"), r"as '\.avi': choose \.gif or \.mp4"),
        (lambda: Animation({"u": state}, "u.gif", frames_per_second=0), "frames_per_second is 0"),
        (lambda: Animation({"u": state}, "u.gif", limits={"v": (0, 1)}), "no field is labelled 'v'"),
        (lambda: animate_fields({"u": state}, [], shared_tmp_path / "u.gif"), "no frame to draw"),
    ]
    for call, message in wrong:
        with pytest.raises(InputError, match=message):
            call()
    assert {item.name for item in shared_tmp_path.iterdir()} == {"new"}


def test_solids_and_moving_meshes_are_drawn_and_errors_draw_nothing(tmp_path):
    box = mesh.create_box(MPI.COMM_SELF, [(0, 0, 0), (1, 0.5, 0.3)], [3, 2, 1])
    displacement = constant(box, ("P", 1, (3,)))
    plate = mesh.create_unit_square(MPI.COMM_SELF, 3, 3)
    moving = constant(plate, ("P", 1))
    with Animation(
        {"displacement (m)": displacement, "plate": moving},
        tmp_path / "box.gif",
        limits={"plate": (-1.0, 1.0)},
        show_edges=True,
    ) as film:
        for step in range(2):
            displacement.interpolate(lambda x, step=step: step * x)
            plate.geometry.x[:, 0] -= 0.4 * step
            film.add(step)
    frames = iio.imread(tmp_path / "box.gif").astype(float)
    solid, flat = np.split(frames, 2, axis=2)
    assert np.abs(solid[0] - solid[1]).max() > 100
    assert 0.1 < np.any(solid[0] < 250, axis=2).mean() < 0.8
    row = flat.shape[1] // 2
    right = [np.flatnonzero(np.any(frame[row] < 250, axis=1)).max() for frame in flat]
    assert right[0] - right[1] > 100  # the plate has moved to the left
    with pytest.raises(RuntimeError), Animation({"u": moving}, tmp_path / "u.gif") as film:
        film.add(0.0)
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["box.gif"]
    with pytest.raises(InputError, match="lives on an interval"):
        Animation({"u": constant(mesh.create_interval(MPI.COMM_SELF, 3, (0, 1)), ("P", 1))}, tmp_path / "u.gif")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    u = constant(mesh.create_unit_square(MPI.COMM_SELF, 2, 2), ("P", 1))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingPackageError, match="python -m pip install imageio_ffmpeg"):
        Animation({"u": u}, tmp_path / "u.mp4")
    monkeypatch.setitem(sys.modules, "imageio", None)
    with pytest.raises(MissingPackageError, match="python -m pip install imageio"):
        Animation({"u": u}, tmp_path / "u.gif")
