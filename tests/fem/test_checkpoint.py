"""A run goes on from its last complete state to the same answer, on any number of ranks; damage is always noticed."""

import json
import pathlib
import warnings

from mpi4py import MPI

import mesh_files
import numpy as np
import pytest
from dolfinx import fem, mesh

from pdeopt.bench import checkpoint_cases
from pdeopt.bench.case import run_case
from pdeopt.bench.kills import kill_at_random
from pdeopt.fem import _checkpoint_fields, _checkpoint_store, read_mesh
from pdeopt.fem.checkpoint import load_state, save_state
from pdeopt.fem.mesh import MeshData
from pdeopt.parallel import random_stream
from pdeopt.report import InputError, MissingPackageError

pytest.importorskip("io4dolfinx")
COMM = MPI.COMM_WORLD


def field(domain, element=("P", 1), value=lambda x: 1 + x[0]):
    function = fem.Function(fem.functionspace(domain, element))
    function.interpolate(value)
    return function


@pytest.mark.parallel([3])
def test_fields_move_from_any_number_of_ranks_to_any_other(shared_tmp_path):
    if COMM.rank == 0:
        mesh_files.write_gmsh(shared_tmp_path, "triangle", 2)
    COMM.barrier()
    (curved,) = shared_tmp_path.glob("*.msh")

    def cube(part):
        return MeshData(mesh.create_unit_cube(part, 2, 1, 2), None, None, {})

    for kind, make, elements in (
        ("tetrahedra", cube, ["DG2", "N1curl2"]),
        ("Gmsh", lambda part: read_mesh(curved, part), []),
    ):
        errors = checkpoint_cases.errors_between_ranks(COMM, str(shared_tmp_path / kind), make, elements)
        assert max(errors.values()) <= 1e-12
    again = read_mesh(curved, COMM)
    assert len(checkpoint_cases.tag_places(again)) == len(again.physical_groups) > 2
    # The measure of what is moved does see a difference.
    data = cube(COMM)
    shifted = checkpoint_cases.known_fields(data.mesh, ["N1curl2"])
    shifted["N1curl2"].x.array[0] += 1e-9
    save_state(shared_tmp_path / "shifted", shifted)
    assert checkpoint_cases.largest_error(load_state(shared_tmp_path / "shifted"), data.mesh, ["N1curl2"]) >= 0.9e-9


@pytest.mark.parallel([1, 2])
def test_states_come_back_do_not_fit_elsewhere_and_are_passed_over_when_damaged(shared_tmp_path, monkeypatch):
    """One job: a launch takes longer than all of these."""
    _everything_comes_back_to_the_last_bit_on_as_many_ranks(shared_tmp_path / "same")
    _a_damaged_state_is_passed_over_with_a_warning_or_refused(shared_tmp_path / "damaged")
    _what_does_not_fit_is_the_same_error_on_all_ranks(shared_tmp_path / "misuse", monkeypatch)


def _everything_comes_back_to_the_last_bit_on_as_many_ranks(folder):
    cube = mesh.create_unit_cube(COMM, 2, 2, 2)
    saved = checkpoint_cases.known_fields(cube, checkpoint_cases.ELEMENTS)
    streams = {"shared": random_stream("a", 3), "own": random_stream("b", 3, COMM)}
    legacy = np.random.Generator(np.random.MT19937(5))
    for stream in (*streams.values(), legacy):
        stream.standard_normal(7)
    values = {
        "step": 120,
        "time": 0.1 + 0.2,
        "method": "BDF2",
        "largest": np.inf,
        "done": np.bool_(False),
        "seed": None,
    }
    arrays = {"history": np.linspace(0, 1, 5), "pairs": np.eye(2, dtype=np.complex64), "count": np.array(7)}
    path = save_state(folder / "run", saved, values=values | arrays, streams=streams | {"legacy": legacy})
    assert path == folder / "run" / "state-000001"
    drawn = [stream.standard_normal(7) for stream in (*streams.values(), legacy)]

    state = load_state(folder / "run")
    assert (state.path, state.ranks) == (path, COMM.size)
    assert {name: state.values[name] for name in values} == values
    for name, array in arrays.items():
        assert (state.values[name].dtype, state.values[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(state.values[name], array)
    again = mesh.create_unit_cube(COMM, 2, 2, 2)
    fields = {name: fem.Function(fem.functionspace(again, f.function_space.ufl_element())) for name, f in saved.items()}
    others = {
        "shared": random_stream("c"),
        "own": random_stream("d"),
        "legacy": np.random.Generator(np.random.MT19937()),
    }
    state.restore(fields, others)
    saved["pressure"] = saved["pressure"].collapse()
    for name in fields:
        np.testing.assert_array_equal(fields[name].x.array, saved[name].x.array)
    for stream, expected in zip(others.values(), drawn, strict=True):
        np.testing.assert_array_equal(stream.standard_normal(7), expected)


def _what_does_not_fit_is_the_same_error_on_all_ranks(folder, monkeypatch):
    square = mesh.create_unit_square(COMM, 4, 4)
    u = field(square)
    place = folder / "run"
    assert load_state(place) is None
    save_state(place, {"u": u, "v": u}, streams={"own": random_stream("s", 0, COMM)}, values={"step": 1})
    state = load_state(place)

    square.topology.create_entities(1)
    moved = mesh.create_unit_square(COMM, 4, 4)
    moved.geometry.x[:, 0] *= 1.001
    other_rank = mesh.create_unit_square(COMM, 4, 4, diagonal=mesh.DiagonalType.left)
    submesh = mesh.create_submesh(square, 2, np.arange(square.topology.index_map(2).size_local, dtype=np.int32))[0]
    generator = np.random.default_rng()
    before = u.x.array.copy()
    u.x.array[:] = 0.0
    wrong_reads = [
        (lambda: state.restore({"u": u, "w": u}), "has no field 'w'; it has 'u', 'v'"),
        (lambda: state.restore({"u": field(square, ("P", 2))}), "was saved as float64 on .*read it on its own element"),
        (lambda: state.restore({"u": field(moved)}), "was saved on another mesh: nodes of equal cells are up to 0.001"),
        (lambda: state.restore({"u": field(other_rank)}), "was saved on another mesh"),
        (
            lambda: state.restore({"u": field(mesh.create_unit_square(COMM, 3, 4))}),
            "32 triangles .* not on 24 triangles",
        ),
        (lambda: state.restore({"u": field(submesh)}), "lives on a submesh"),
        (lambda: state.restore({"u": u}, {"mine": generator}), "no random stream 'mine' was saved"),
        (lambda: state.restore({"u": u}, {"own": np.random.Generator(np.random.MT19937())}), "was a PCG64, not a MT"),
        (lambda: state.read_mesh("w"), "name the field whose mesh"),
    ]
    wrong_writes = [
        (lambda: save_state(place, {"u": u}, keep=0), "keep is 0"),
        (lambda: save_state(place, {"u": u}, values={"solver": object()}), "the value 'solver' is a object"),
        (lambda: save_state(place, {"u": u}, values={"names": np.array([None])}), "the value 'names' is a ndarray"),
        (lambda: save_state(place, {"u": field(submesh)}), "lives on a submesh"),
        (lambda: save_state(folder / "file", {"u": u}), "cannot write to the folder"),
    ]
    if COMM.rank == 0:
        (folder / "file").write_text("")
    for call, message in wrong_reads + wrong_writes:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert len(set(COMM.allgather(str(caught.value)))) == 1
    assert not u.x.array.any()  # nothing was read where something did not fit

    # One rank's disk is full.
    push = _checkpoint_store.push_to_disk

    def disk_is_full(stream):
        if COMM.rank == COMM.size - 1:
            raise OSError(28, "No space left on device")
        push(stream)

    monkeypatch.setattr(_checkpoint_store, "push_to_disk", disk_is_full)
    with pytest.raises(InputError, match=r"No space left on device.*free some space"):
        save_state(place, {"u": u})
    COMM.barrier()
    assert [path.name for path in place.iterdir()] == ["state-000001"]
    state.restore({"u": u})
    np.testing.assert_array_equal(u.x.array, before)

    monkeypatch.setattr(_checkpoint_fields.importlib, "import_module", lambda name: __import__("no_such_package"))
    with pytest.raises(MissingPackageError, match=r"--no-deps -r requirements-nodeps\.txt"):
        save_state(place, {"u": u})


def test_a_stream_of_each_rank_needs_as_many_ranks(tmp_path):
    u = field(mesh.create_unit_square(MPI.COMM_SELF, 2, 2))
    path = save_state(tmp_path, {"u": u}, streams={"own": random_stream("s")})
    manifest = json.loads((path / "manifest.json").read_text())
    state = load_state(tmp_path, MPI.COMM_SELF)
    state.content["streams"]["own"] *= 2
    with pytest.raises(InputError, match="one state for each of 2 ranks, and this run has 1"):
        state.restore({}, {"own": random_stream("s")})
    assert manifest["format"] == 1


def test_a_mesh_refined_on_other_ranks_is_refused_and_can_be_read(tmp_path):
    def refined():
        coarse = mesh.create_unit_square(MPI.COMM_SELF, 3, 3)
        coarse.topology.create_entities(1)
        return mesh.refine(coarse)[0]

    u = field(refined(), ("DG", 0), lambda x: x[0] + 2 * x[1])
    save_state(tmp_path, {"u": u})
    state = load_state(tmp_path, MPI.COMM_SELF)
    domain = state.read_mesh().mesh
    v = field(domain, ("DG", 0), lambda x: 0 * x[0])
    state.restore({"u": v})
    np.testing.assert_allclose(v.x.array, field(domain, ("DG", 0), lambda x: x[0] + 2 * x[1]).x.array, atol=1e-14)
    # Two cells that have changed their numbers, as if another rank had refined them first.
    topology = np.load(state.path / "mesh-0-topology.npy")
    topology[[3, 4]] = topology[[4, 3]]
    np.save(state.path / "mesh-0-topology.npy", topology)
    with pytest.raises(InputError, match="refined on another number of ranks"):
        state.restore({"u": v})


def test_old_states_and_remains_of_kills_are_removed(tmp_path):
    u = field(mesh.create_unit_square(MPI.COMM_SELF, 2, 2))
    (tmp_path / ".state-0123abcd.partial").mkdir()
    (tmp_path / ".state-0123abcd.partial" / "half.npy").write_text("half")
    (tmp_path / "notes.txt").write_text("mine")
    for step in range(5):
        save_state(tmp_path, {"u": u}, values={"step": step}, keep=3)
    names = ["notes.txt", "state-000003", "state-000004", "state-000005"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert load_state(tmp_path, MPI.COMM_SELF).values == {"step": 4}


def _a_damaged_state_is_passed_over_with_a_warning_or_refused(folder):
    u = field(mesh.create_unit_square(COMM, 2, 2))
    for step in (1, 2):
        path = save_state(folder, {"u": u}, values={"step": step})
    if COMM.rank == 0:
        with open(path / "field-1-values.npy", "r+b") as stream:
            stream.seek(-3, 2)
            stream.write(b"\x17")
    COMM.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_state(folder).values == {"step": 1}
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (COMM.rank == 0)
    assert all("'field-1-values.npy' is not what was written" in m and "going on from" in m for m in messages)
    with pytest.raises(InputError, match=r"state-000002: the file 'field-1-values.npy' is not what was written"):
        load_state(folder, strict=True)
    if COMM.rank == 0:
        (folder / "state-000001" / "manifest.sha256").unlink()
    COMM.barrier()
    with pytest.raises(InputError, match=r"wrong SHA-256.*'manifest.sha256' is missing.*no state to go on from"):
        load_state(folder)


def test_each_changed_byte_and_each_cut_is_found(tmp_path, monkeypatch):
    row = checkpoint_cases.damage_files(MPI.COMM_SELF, str(tmp_path / "run"), flips=200, cuts=3)
    assert row["changes found"] == row["bytes changed"] == 200
    assert row["cuts found"] == row["files cut or removed"] >= 3 * row["files"]
    # Without the digests the same count does not come out.
    monkeypatch.setattr(_checkpoint_store, "_digest", lambda content: "")
    row = checkpoint_cases.damage_files(MPI.COMM_SELF, str(tmp_path / "blind"), flips=40, cuts=1)
    assert row["changes found"] < row["bytes changed"]


def test_killed_runs_end_with_the_same_bits(tmp_path):
    random = random_stream("test kills", 4)
    kills = [kill_at_random(tmp_path, steps=60, cells=8, ranks=2, random=random) for _ in range(3)]
    arguments = {"folder": str(tmp_path), "steps": 60, "cells": 8, "compare": True}
    row = run_case("pdeopt.bench.checkpoint_cases:burgers", arguments, ranks=2, timeout=120.0)
    assert row["first step"] == kills[-1].states >= kills[0].states
    assert row["digest"] == row["digest without checkpoints"]
    # A run whose random streams were not restored has another answer.
    run = checkpoint_cases.BurgersRun(MPI.COMM_SELF, 4)
    run.advance()
    run.save(str(tmp_path / "serial"))
    forgetful = checkpoint_cases.BurgersRun(MPI.COMM_SELF, 4)
    load_state(tmp_path / "serial", MPI.COMM_SELF).restore(forgetful.fields)
    run.advance()
    forgetful.advance()
    assert run.digest() != forgetful.digest()
    assert pathlib.Path(tmp_path, "serial", "state-000001").is_dir()
