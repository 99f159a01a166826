"""The bench of the algebraic body, in small: what it prints; descent on weights that have room finds it."""

from mpi4py import MPI

import numpy as np
import scipy.sparse as sparse

from pdeopt.bench import linear_algebraic
from pdeopt.bench.harness import BenchSettings
from pdeopt.bench.linear_weights import Saving, best_weights, over_constant
from pdeopt.bench.study import Study


def test_quick_run_solves_and_judges():
    study = Study("linear", BenchSettings(quick=True, repeat=1, seed=0), MPI.COMM_SELF)
    linear_algebraic.measure(study, quick=True)
    own = [row for row in study.rows if row.get("arm") == "algebraic: constants"]
    assert len(own) == 2
    assert all(row["solved"] for row in own)
    assert [target.id for target in study.targets] == ["linear.2a", "linear.2c"]


def test_descent_repairs_spoilt_weights():
    """Linear interpolation on a line, with its weights halved at random nodes: descent wins iterations back."""
    count = 401
    A = sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(count, count)).tocsr()
    coarse = np.arange(1, count, 2)
    rows = np.concatenate([coarse, coarse - 1, coarse + 1])
    columns = np.tile(np.arange(coarse.size), 3)
    values = np.concatenate([np.ones(coarse.size), np.full(2 * coarse.size, 0.5)])
    values *= np.random.default_rng(0).uniform(0.6, 1.0, values.size)
    P = sparse.csr_array((values, (rows, columns)), shape=(count, coarse.size))
    saving = best_weights(A, P, 60)
    assert saving.oracle <= 0.8 * saving.constant


def test_price_of_a_network_counts():
    assert over_constant(Saving(20, 10), setup=1.0, solve=1.0, one_pass=0.05) == 1.0
