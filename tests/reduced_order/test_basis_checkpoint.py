"""Bases made on some ranks serve on others; damage is noticed, and what does not fit is refused."""

from mpi4py import MPI

import basis_cases
import dolfinx
import numpy as np
import pytest

from pdeopt.reduced_order import (
    Basis,
    InnerProduct,
    load_basis,
    proper_orthogonal_decomposition,
    read_basis_mesh,
    save_basis,
)
from pdeopt.report import InputError

pytest.importorskip("io4dolfinx")
COMM = MPI.COMM_WORLD
VALUES = {"cells": np.array([7, 3, 11]), "weights": np.array([0.1, 1e-300, 1 / 3]), "coverage": 0.95, "name": "heat"}


@pytest.mark.parallel([3])
def test_offline_on_two_ranks_online_on_one_and_three(shared_tmp_path):
    for element in ("P2 vector", "Nedelec"):
        place = shared_tmp_path / element
        form = "l2" if element == "Nedelec" else "h1"
        part = COMM.Split(int(COMM.rank < 2))
        expected = None
        if COMM.rank < 2:
            inner = basis_cases.inner_product(element, cells=4, form=form, comm=part)
            basis = proper_orthogonal_decomposition(basis_cases.bumps(inner, 6), modes=3)
            save_basis(place, basis, VALUES)
            query = basis_cases.bumps(inner, 3, seed=5).columns
            expected = basis.coordinates(query), basis.singular_values
        expected = COMM.bcast(expected)
        part.Free()
        for comm in (MPI.COMM_SELF, COMM):
            inner = basis_cases.inner_product(element, cells=4, form=form, comm=comm)
            basis, values = load_basis(place, inner)
            found = basis.coordinates(basis_cases.bumps(inner, 3, seed=5).columns)
            np.testing.assert_allclose(found, expected[0], atol=1e-10 * np.abs(expected[0]).max())
            np.testing.assert_array_equal(basis.singular_values, expected[1])
            assert values.keys() == VALUES.keys()
            np.testing.assert_array_equal(values["weights"], VALUES["weights"])
            assert (values["coverage"], values["name"]) == (0.95, "heat")


@pytest.mark.parallel([1, 2])
def test_damage_and_misuse_are_errors_on_all_ranks(shared_tmp_path):
    inner = basis_cases.inner_product(cells=3)
    basis = proper_orthogonal_decomposition(basis_cases.bumps(inner, 4), modes=2)
    path = save_basis(shared_tmp_path / "basis", basis, VALUES)
    same, _ = load_basis(shared_tmp_path / "basis", inner)
    np.testing.assert_array_equal(same.modes, basis.modes)
    mesh = read_basis_mesh(shared_tmp_path / "basis").mesh
    load_basis(shared_tmp_path / "basis", InnerProduct(dolfinx.fem.functionspace(mesh, ("Lagrange", 1))))
    for other, message in (
        (basis_cases.inner_product(cells=3, form="l2"), "not orthonormal in this inner product"),
        (basis_cases.inner_product("P2 vector", cells=3), "read it on its own element"),
        (basis_cases.inner_product(cells=4), "18 triangles .* not on 32 triangles"),
    ):
        _same_error(lambda other=other: load_basis(shared_tmp_path / "basis", other), message)
    _same_error(lambda: load_basis(shared_tmp_path / "nowhere", inner), "has no basis")
    _same_error(lambda: save_basis(shared_tmp_path / "basis", basis, {"basis.size": 3}), "choose another name")
    whole = Basis(inner, basis.modes[:, :1])
    assert load_basis(save_basis(shared_tmp_path / "one", whole).parent, inner)[0].size == 1
    for file in sorted(COMM.bcast([file.name for file in path.iterdir()])):
        content = COMM.bcast((path / file).read_bytes() if COMM.rank == 0 else b"")
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        for damaged in (bytes(flipped), content[:-1]):
            _write(path / file, damaged)
            _same_error(lambda: load_basis(shared_tmp_path / "basis", inner), "not what was written|bytes instead of")
        _write(path / file, content)
    load_basis(shared_tmp_path / "basis", inner)


def _write(path, content):
    if COMM.rank == 0:
        path.write_bytes(content)
    COMM.barrier()


def _same_error(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert len(set(COMM.allgather(str(caught.value)))) == 1
