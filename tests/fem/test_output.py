"""Files for ParaView hold the fields' values, on any number of ranks, and appear only when they are complete."""

import pathlib
import re
import xml.etree.ElementTree as ElementTree

from mpi4py import MPI

import basix.ufl
import dolfinx
import numpy as np
import pytest
from dolfinx import fem, mesh

from pdeopt.fem import _output_series, output
from pdeopt.fem._output_writers import XDMFFile
from pdeopt.fem.output import FieldSeries, write_fields
from pdeopt.report import ConvergenceError, InputError, MissingPackageError

needs_adios2 = pytest.mark.skipif(not dolfinx.has_adios2, reason="DOLFINx was built without ADIOS2")


def field(domain, element, values):
    function = fem.Function(fem.functionspace(domain, element), name="some_function")
    function.interpolate(values)
    return function


def heat_fields(domain):
    return {
        "temperature (K)": field(domain, ("P", 1), lambda x: 300 + x[0] + 2 * x[1]),
        "flux": field(domain, ("P", 2, (2,)), lambda x: np.vstack([x[0] ** 2, x[1]])),
        "control": field(domain, ("DG", 0), lambda x: 5 + x[0]),
        "jump": field(domain, ("DG", 1), lambda x: 7 - x[1]),
    }


def vtx_arrays(path):
    """Return the bytes of a VTX file's data blocks and the names that its schema lists, by XML tag."""
    data = b"".join(part.read_bytes() for part in sorted(path.glob("data.*")))
    schema = re.search(rb"<VTKFile.*?</VTKFile>", (path / "md.0").read_bytes(), re.DOTALL)
    tree = ElementTree.fromstring(schema.group())
    names = {kind: {item.get("Name") for item in tree.iterfind(f".//{kind}/*")} for kind in ("PointData", "CellData")}
    return data, names


def xdmf_values(path):
    """Return the values of every attribute of an XDMF file, with what they are attached to."""
    h5py = pytest.importorskip("h5py")
    values = {}
    for attribute in ElementTree.parse(path).iter("Attribute"):
        file, dataset = attribute.find("DataItem").text.split(":")
        with h5py.File(path.with_name(file)) as data:
            values[attribute.get("Name")] = attribute.get("Center"), data[dataset][:]
    return values


@needs_adios2
@pytest.mark.parallel([1, 2, 3])
def test_vtx_file_holds_all_fields_in_one_lossless_file(shared_tmp_path):
    domain = mesh.create_unit_square(MPI.COMM_WORLD, 5, 4)
    fields = heat_fields(domain)
    written = write_fields(shared_tmp_path / "new" / "heat", fields)
    assert written == [shared_tmp_path / "new" / "heat.bp"]
    assert [path.name for path in (shared_tmp_path / "new").iterdir()] == ["heat.bp"]  # nothing temporary is left
    data, names = vtx_arrays(written[0])
    assert names["PointData"] >= {"temperature (K)", "flux", "jump"}
    assert names["CellData"] == {"control"}
    # ADIOS2 stores the doubles of each rank as they are: the nodal fields in the space that contains all of them.
    own_cells = domain.topology.index_map(2).size_local
    assert fields["control"].x.array[:own_cells].tobytes() in data
    nodal = field(domain, ("DG", 2), lambda x: 300 + x[0] + 2 * x[1])
    interpolated = output.lagrange_interpolant(fields["temperature (K)"], 2, continuous=False)
    assert interpolated.x.array[: 6 * own_cells].tobytes() in data
    np.testing.assert_allclose(interpolated.x.array, nodal.x.array, rtol=1e-14)


@needs_adios2
@pytest.mark.parallel([1, 3])
def test_fields_of_two_meshes_get_two_files(shared_tmp_path):
    domain = mesh.create_unit_square(MPI.COMM_WORLD, 4, 4)
    domain.topology.create_connectivity(1, 2)
    facets = mesh.locate_entities_boundary(domain, 1, lambda x: np.isclose(x[0], 0.0))
    boundary = mesh.create_submesh(domain, 1, facets)[0]
    state = field(domain, ("P", 1), lambda x: x[0])
    control = field(boundary, ("DG", 0), lambda x: 3 + x[1])
    written = write_fields(shared_tmp_path / "both.bp", {"state": state, "control": control})
    assert [path.name for path in written] == ["both.bp", "both-2.bp"]
    assert control.x.array.tobytes() in vtx_arrays(written[1])[0]


@pytest.mark.parallel([1, 3])
def test_xdmf_file_holds_the_values(shared_tmp_path):
    domain = mesh.create_unit_square(MPI.COMM_WORLD, 5, 4)
    (written,) = write_fields(shared_tmp_path / "heat.xdmf", heat_fields(domain), time=2.5)
    assert {path.name for path in shared_tmp_path.iterdir()} == {"heat.xdmf", "heat.h5"}
    values = xdmf_values(written)
    grid_x, grid_y = (axis.ravel() for axis in np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 5)))
    centre, temperature = values["temperature (K)"]
    assert centre == "Node"
    np.testing.assert_allclose(np.sort(temperature.ravel()), np.sort(300 + grid_x + 2 * grid_y), rtol=1e-14)
    assert values["flux"][1].shape == (30, 3)
    np.testing.assert_allclose(np.sort(values["flux"][1][:, 0]), np.sort(grid_x**2), atol=1e-14)
    centre, control = values["control"]
    assert centre == "Cell"
    assert control.shape == (40, 1)
    assert control.mean() == pytest.approx(5.5, rel=1e-12)
    centre, jump = values["jump"]  # XDMF has no discontinuous nodal fields
    assert centre == "Cell"
    assert jump.mean() == pytest.approx(6.5, rel=1e-12)
    assert {item.get("Value") for item in ElementTree.parse(written).iter("Time")} == {"2.5"}


def test_a_new_result_replaces_the_old_one(tmp_path):
    domain = mesh.create_unit_square(MPI.COMM_SELF, 2, 2)
    for suffix in (".bp", ".xdmf") if dolfinx.has_adios2 else (".xdmf",):
        for value in (1.0, 2.0):
            constant = field(domain, ("P", 1), lambda x, value=value: np.full_like(x[0], value))
            (path,) = write_fields(tmp_path / f"u{suffix}", constant)
        if suffix == ".bp":
            data, names = vtx_arrays(path)
            assert np.full(9, 2.0).tobytes() in data
            assert np.full(9, 1.0).tobytes() not in data
            assert "some_function" in names["PointData"]
        else:
            np.testing.assert_array_equal(xdmf_values(path)["some_function"][1], 2.0)
    assert not list(tmp_path.glob(".*"))


def test_mixed_and_foreign_elements_are_split_and_interpolated():
    domain = mesh.create_unit_square(MPI.COMM_SELF, 3, 3)
    velocity = basix.ufl.element("P", "triangle", 2, shape=(2,))
    pressure = basix.ufl.element("P", "triangle", 1)
    flow = fem.Function(fem.functionspace(domain, basix.ufl.mixed_element([velocity, pressure])))
    flow.sub(0).interpolate(lambda x: np.vstack([x[0], 2 * x[1]]))
    flow.sub(1).interpolate(lambda x: 3 * x[0])
    parts = dict(output.plain_fields("flow", flow))
    assert list(parts) == ["flow_0", "flow_1"]
    assert parts["flow_1"].x.array.max() == pytest.approx(3.0)
    view = dict(output.plain_fields("pressure", flow.sub(1)))["pressure"]
    np.testing.assert_array_equal(view.x.array, parts["flow_1"].x.array)
    species = field(domain, ("P", 1, (4,)), lambda x: np.outer([1, 2, 3, 4], x[0]))
    assert len(dict(output.plain_fields("species", species))) == 4
    flux = field(domain, ("RT", 1), lambda x: np.vstack([1 + x[0], x[1]]))
    ((_, plain),) = output.plain_fields("flux", flux)
    assert plain.function_space.ufl_element().discontinuous
    x = plain.function_space.tabulate_dof_coordinates()
    np.testing.assert_allclose(plain.x.array.reshape(-1, 2), x[:, :2] + [1, 0], atol=1e-13)


@pytest.mark.parallel([1, 2])
def test_wrong_input_is_the_same_error_on_all_ranks(shared_tmp_path):
    domain = mesh.create_unit_square(MPI.COMM_WORLD, 2, 2)
    u = field(domain, ("P", 1), lambda x: x[0])
    if MPI.COMM_WORLD.rank == 0:
        pathlib.Path(shared_tmp_path, "file").write_text("")
        pathlib.Path(shared_tmp_path, "mine.bp").mkdir()
        pathlib.Path(shared_tmp_path, "mine.bp", "thesis.tex").write_text("")
    MPI.COMM_WORLD.barrier()
    at_points = fem.Function(fem.functionspace(domain, basix.ufl.quadrature_element("triangle", degree=2)))
    cases = [
        ("file/u.xdmf", {"u": u}, "cannot write to the folder"),
        ("u.xdmf", {"a/b": u}, "cannot be named"),
        ("u.xdmf", [u, u], "two fields are named 'some_function'"),
        ("u.xdmf", [], "no field"),
        ("u.xdmf", {"q": at_points}, "quadrature points"),
    ]
    if dolfinx.has_adios2:
        cases += [("u.bp", {"geometry": u}, "taken by the VTX format"), ("mine.bp", {"u": u}, "not be replaced")]
    for name, fields, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            write_fields(shared_tmp_path / name, fields)
        messages = MPI.COMM_WORLD.allgather(str(caught.value).partition(" [on rank")[0])
        assert len(set(messages)) == 1
    assert {path.name for path in shared_tmp_path.iterdir()} == {"file", "mine.bp"}
    assert (shared_tmp_path / "mine.bp" / "thesis.tex").exists()


def test_a_failed_write_leaves_the_old_result(tmp_path, monkeypatch):
    u = field(mesh.create_unit_square(MPI.COMM_SELF, 2, 2), ("P", 1), lambda x: x[0])
    (path,) = write_fields(tmp_path / "u.xdmf", u)
    before = path.read_bytes()

    class FullDisk(XDMFFile):
        def write(self, time):
            super().write(time)
            raise OSError("no space left")

    monkeypatch.setitem(_output_series.FORMATS, ".xdmf", FullDisk)
    with pytest.raises(OSError, match="no space left"):
        write_fields(path, u)
    assert path.read_bytes() == before
    assert {item.name for item in tmp_path.iterdir()} == {"u.xdmf", "u.h5"}


def waves(domain):
    """Return fields of several kinds, and times: the fields take their values as one goes from time to time."""
    flow = fem.Function(
        fem.functionspace(domain, basix.ufl.mixed_element([basix.ufl.element("P", "triangle", 1)] * 2)), name="flow"
    )
    fields = {
        "u": field(domain, ("P", 1), lambda x: 0 * x[0]),
        "flow": flow,
        "part": flow.sub(1),
        "flux": field(domain, ("RT", 1), lambda x: 0 * x[:2]),
        "control": field(domain, ("DG", 0), lambda x: 0 * x[0]),
    }

    def set_to(time):
        fields["u"].interpolate(lambda x: time + x[0])
        flow.sub(1).interpolate(lambda x: 10 * time + x[1])
        fields["flux"].interpolate(lambda x: np.vstack([time + 0 * x[0], 1 + 0 * x[0]]))
        fields["control"].interpolate(lambda x: time + 0 * x[0])
        return time

    return fields, map(set_to, (0.0, 0.5, 2.0))


@pytest.mark.parallel([1, 2])
def test_a_series_holds_the_values_of_every_time_or_is_set_apart(shared_tmp_path):
    _a_series_holds_the_values_of_every_time(shared_tmp_path / "whole")
    _a_series_that_ends_in_an_error_is_set_apart(shared_tmp_path / "broken")


def _a_series_holds_the_values_of_every_time(folder):
    h5py = pytest.importorskip("h5py")
    domain = mesh.create_unit_square(MPI.COMM_WORLD, 3, 3)
    names = ["u", "flow_0", "flow_1", "part", "flux", "control"]
    for suffix in (".bp", ".xdmf", ".vtkhdf") if dolfinx.has_adios2 else (".xdmf", ".vtkhdf"):
        fields, times = waves(domain)
        with FieldSeries(folder / f"waves{suffix}", fields) as series:
            for time in times:
                series.write(time)
                assert not (folder / f"waves{suffix}").exists()  # only what is complete has its name
            with pytest.raises(InputError, match=r"the time 2 is not later than 2"):
                series.write(2.0)
        with pytest.raises(InputError, match="is closed"):
            series.write(3.0)
        assert all(path.exists() for path in series.paths)
    if MPI.COMM_WORLD.rank > 0:
        return
    assert not list(folder.glob(".*"))
    if dolfinx.has_adios2:
        data, listed = vtx_arrays(folder / "waves.bp")
        assert set(names) <= listed["PointData"] | listed["CellData"]
        assert all(np.full(8, time).tobytes() in data for time in (0.5, 2.0))  # cells of the control
    tree = ElementTree.parse(folder / "waves.xdmf")
    for name in names:
        found = [
            (float(grid.find("Time").get("Value")), grid.find("Attribute/DataItem").text)
            for grid in tree.iter("Grid")
            if grid.find("Attribute") is not None and grid.find("Attribute").get("Name") == name
        ]
        assert [time for time, _ in found] == [0.0, 0.5, 2.0]
        for time, place in found:
            with h5py.File(folder / "waves.h5") as file:
                values = file[place.partition(":")[2]][:]
            expected = {"u": time + 0.5, "flow_0": 0.0, "flow_1": 10 * time + 0.5, "part": 10 * time + 0.5}
            assert values[:, 0].mean() == pytest.approx(expected.get(name, time), abs=1e-13)
    for name in names:
        with h5py.File(folder / f"waves-{name}.vtkhdf") as file:
            root = file["VTKHDF"]
            np.testing.assert_array_equal(root["Steps/Values"][:], [0.0, 0.5, 2.0])
            (values,) = (root[kind][name][:] for kind in ("PointData", "CellData") if name in root.get(kind, {}))
            values = values.reshape(3, -1, values.shape[1])
            if name == "u":
                points = root["Points"][:]
                np.testing.assert_allclose(values[2, :, 0], 2 + points[:, 0], rtol=1e-14)
            elif name == "part":
                np.testing.assert_allclose(values[1, :, 0], 5 + points[:, 1], rtol=1e-14)
            elif name == "flux":
                np.testing.assert_allclose(values[2], [[2.0, 1.0, 0.0]] * 18, atol=1e-13)


def _a_series_that_ends_in_an_error_is_set_apart(folder):
    domain = mesh.create_unit_square(MPI.COMM_WORLD, 3, 3)
    u = field(domain, ("P", 1), lambda x: x[0])
    with FieldSeries(folder / "u.xdmf", u) as series:
        series.write(0.0)
    before = (folder / "u.xdmf").read_text()
    for _ in range(2):  # what the first leaves does not stop the second
        with pytest.raises(ConvergenceError), FieldSeries(folder / "u.xdmf", u) as series:
            series.write(0.0)
            series.write(1.0)
            raise ConvergenceError("the solver stopped")
    with FieldSeries(folder / "u.xdmf", u) as series:  # a run that had nothing to do
        pass
    assert series.paths == []
    MPI.COMM_WORLD.barrier()
    assert (folder / "u.xdmf").read_text() == before
    assert {path.name for path in folder.iterdir()} == {"u.xdmf", "u.h5", "u-incomplete"}
    times = [time.get("Value") for time in ElementTree.parse(folder / "u-incomplete" / "u.xdmf").iter("Time")]
    assert times == ["0", "1"]
    assert (folder / "u-incomplete" / "u.h5").exists()


def test_without_adios2_xdmf_is_written_and_bp_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dolfinx, "has_adios2", False)
    u = field(mesh.create_unit_square(MPI.COMM_SELF, 2, 2), ("P", 1), lambda x: x[0])
    assert write_fields(tmp_path, u) == [tmp_path / "fields.xdmf"]
    with pytest.raises(MissingPackageError, match=r"ask for .*u\.xdmf"):
        write_fields(tmp_path / "u.bp", u)
