"""The quick run of decompositions, which starts processes under MPI."""

import math

from mpi4py import MPI

import pytest

from pdeopt.bench import rom_pod
from pdeopt.bench.harness import BenchSettings
from pdeopt.bench.study import Study

pytestmark = pytest.mark.alone


def test_decompositions_keep_their_claims():
    study = Study("bench", BenchSettings(quick=True, repeat=1), MPI.COMM_WORLD)
    rom_pod.measure(study, True)
    assert not any("failed" in row for row in study.rows)
    assert all(target.value is not None and math.isfinite(target.value) for target in study.targets)
    assert {target.id for target in study.targets if not target.holds} <= {"bench.6a"}
