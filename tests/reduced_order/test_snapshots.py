"""Snapshots of any space keep what is appended, their Gram matrix follows, and what cannot be used is refused."""

from mpi4py import MPI

import basis_cases
import basix.ufl
import dolfinx
import numpy as np
import pytest
import ufl
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.reduced_order import InnerProduct, Snapshots
from pdeopt.report import InputError

COMM = MPI.COMM_WORLD


@pytest.mark.parallel([1, 2, 3])
def test_the_gram_matrix_is_that_of_the_integrals_and_grows_with_the_snapshots():
    for element, form in (("P1", "h1"), ("P2 vector", "h1"), ("Nedelec", "l2"), ("DG0", "l2")):
        inner = basis_cases.inner_product(element, cells=3, form=form)
        parameters = [(0.3, 0.4, 0.2), (0.6, 0.5, 0.3), (0.5, 0.5, 0.25)]
        fields = [basis_cases.bump(inner.space, parameter) for parameter in parameters]
        snapshots = Snapshots(inner, 3)
        for count, (field, parameter) in enumerate(zip(fields, parameters, strict=True), start=1):
            snapshots.append(field if count % 2 else forms.owned_values(field), parameter)
            gram = snapshots.gram()
            assert gram.shape == (count, count) == (len(snapshots), len(snapshots))
        first, second = fields[0], fields[2]
        integrand = ufl.inner(first, second)
        if form == "h1":
            integrand += ufl.inner(ufl.grad(first), ufl.grad(second))
        exact = forms.assemble_scalar(forms.compile_form(integrand * ufl.dx))
        assert gram[0, 2] == pytest.approx(exact, rel=1e-12)
        np.testing.assert_array_equal(gram, gram.T)
        np.testing.assert_array_equal(snapshots.parameters, parameters)
        np.testing.assert_allclose(gram, inner.gram(snapshots.columns), rtol=1e-12)


@pytest.mark.parallel([1, 2])
def test_subsets_and_normalised_snapshots_take_their_gram_matrix_along():
    inner = basis_cases.inner_product()
    snapshots = basis_cases.bumps(inner, 6)
    gram = snapshots.gram()
    some = snapshots.subset([4, 1])
    np.testing.assert_array_equal(some.columns, snapshots.columns[:, [4, 1]])
    np.testing.assert_array_equal(some.parameters, snapshots.parameters[[4, 1]])
    np.testing.assert_array_equal(some.gram(), gram[np.ix_([4, 1], [4, 1])])
    some.append(snapshots.columns[:, 0], snapshots.parameters[0])
    assert (len(some), len(snapshots)) == (3, 6)
    np.testing.assert_allclose(some.gram()[2], gram[0, [4, 1, 0]], rtol=1e-13)
    unit = snapshots.normalised()
    np.testing.assert_allclose(inner.norms(unit.columns), 1.0, rtol=1e-13)
    np.testing.assert_allclose(unit.gram(), inner.gram(unit.columns), rtol=1e-12)
    np.testing.assert_allclose(snapshots.norms(), inner.norms(snapshots.columns), rtol=1e-13)
    assert Snapshots(inner).parameters is None
    with pytest.raises(InputError, match="up to 6: there are 6"):
        snapshots.subset([0, 6])


@pytest.mark.parallel([1, 3])
def test_mixed_fields_are_snapshots_too():
    mesh = dolfinx.mesh.create_unit_square(COMM, 3, 3)
    element = basix.ufl.mixed_element(
        [basix.ufl.element("Lagrange", "triangle", 2, shape=(2,)), basix.ufl.element("Lagrange", "triangle", 1)]
    )
    inner = InnerProduct(fem.functionspace(mesh, element), "l2")
    flow = fem.Function(inner.space)
    flow.sub(0).interpolate(lambda x: np.array([x[0], 2.0 * x[1]]))
    flow.sub(1).interpolate(lambda x: 1.0 + x[0])
    snapshots = Snapshots(inner)
    snapshots.append(flow)
    assert snapshots.gram()[0, 0] == pytest.approx(1 / 3 + 4 / 3 + 7 / 3, rel=1e-12)


@pytest.mark.parallel([1, 2])
def test_what_cannot_be_used_is_the_same_error_on_all_ranks_and_is_not_kept():
    inner = basis_cases.inner_product(cells=4)
    snapshots = basis_cases.bumps(inner, 2)
    columns, gram = snapshots.columns.copy(), snapshots.gram()
    good, parameter = columns[:, 0], np.zeros(3)
    broken = good.copy()
    if COMM.rank == COMM.size - 1:
        broken[-1] = np.nan
    other_element = fem.Function(fem.functionspace(inner.space.mesh, ("Lagrange", 2)))
    other_mesh = basis_cases.bump(basis_cases.inner_product(cells=4).space, (0.5, 0.5, 0.2))
    wrong = [
        (broken, parameter, "snapshot 2 has NaN or infinite values"),
        (good * np.inf, parameter, "snapshot 2 has NaN or infinite values"),
        (good[:-1] if COMM.rank == 0 else good, parameter, "this rank owns"),
        (columns, parameter, r"shape .*give \(owned,\)"),
        (other_element, parameter, "interpolate it there first"),
        (other_mesh, parameter, "interpolate it there first"),
        (good, None, "came without parameters"),
        (good, np.zeros(2), r"parameters have the shape \(2,\) for each snapshot: give \(3,\)"),
        (good, [0.0, np.nan, 1.0], "all of them have to be finite"),
    ]
    if COMM.size > 1:
        wrong.append((good, np.full(3, float(COMM.rank)), "differ between ranks"))
    for field, values, message in wrong:
        with pytest.raises(InputError, match=message) as caught, np.errstate(invalid="ignore"):
            snapshots.append(field, values)
        assert len(set(COMM.allgather(str(caught.value)))) == 1
    if COMM.size > 1:
        with pytest.raises(InputError, match="and rank 0 adds 1"):
            Snapshots(inner).extend(columns[:, : 1 + COMM.rank])
    with pytest.raises(InputError, match="announce their number"):
        Snapshots(inner).append(good, parameter)
    assert len(snapshots) == 2
    np.testing.assert_array_equal(snapshots.columns, columns)
    np.testing.assert_array_equal(snapshots.gram(), gram)
    zero = Snapshots(inner)
    zero.append(0.0 * good)
    with pytest.raises(InputError, match="snapshot 0 is zero"):
        zero.normalised()
