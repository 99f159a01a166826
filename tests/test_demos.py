"""Every demo runs on one and two ranks, says that it converged, and leaves its pictures and files."""

import os
import pathlib
import shutil
import subprocess

import pytest

from pdeopt._launchers import clean_environment
from pdeopt.bench.case import launch_command

pytestmark = pytest.mark.alone

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEMOS = sorted((ROOT / "demos").glob("*.py"))
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("script", DEMOS, ids=lambda script: script.stem)
def test_demo_runs_and_leaves_its_pictures(script, ranks, tmp_path):
    for folder in ("demos", "meshes"):  # the demos write beside their checkout
        shutil.copytree(ROOT / folder, tmp_path / folder)
    environment = clean_environment(os.environ) | {"PYTHONPATH": str(ROOT), "MPIEXEC_TIMEOUT": "200"}
    job = subprocess.run(
        [*launch_command(ranks), str(tmp_path / "demos" / script.name)],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=220, check=False,
    )  # fmt: skip
    assert job.returncode == 0, job.stderr[-2000:]
    assert "converged (reason" in job.stdout
    assert "NOT converged" not in job.stdout
    (folder,) = tmp_path.glob("out_*")
    pictures = list(folder.glob("*.png"))
    assert len(pictures) >= 2
    for picture in pictures:
        assert picture.read_bytes().startswith(PNG)
        assert picture.stat().st_size > 5000
    assert any(path.suffix in (".bp", ".xdmf") for path in folder.iterdir())


def test_there_are_demos():
    assert len(DEMOS) >= 2
