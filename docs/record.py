"""Run the examples and demos on two ranks and keep what they printed, and the demos' pictures, for the pages.

``python docs/record.py`` records everything, ``python docs/record.py NAME ...`` the scripts of these names.
"""

import io
import os
import pathlib
import subprocess
import sys

import PIL.Image

from pdeopt._launchers import clean_environment
from pdeopt.bench.case import launch_command

DOCS = pathlib.Path(__file__).resolve().parent
ROOT = DOCS.parent
WIDTH = 1200  # pixels
LARGEST = 150_000  # bytes of one picture


def record(script: pathlib.Path) -> None:
    """Run a script and keep its standard output; a run that fails leaves what was recorded before."""
    command = [*launch_command(2), str(script)]
    environment = clean_environment(os.environ) | {"OMP_NUM_THREADS": "1"}
    job = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    (DOCS / "recorded").mkdir(exist_ok=True)
    (DOCS / "recorded" / f"{script.stem}.txt").write_text(job.stdout)


def keep_picture(source: pathlib.Path, target: pathlib.Path) -> None:
    """Keep a picture on white, no wider than the page needs, in 256 colours."""
    picture = PIL.Image.open(source).convert("RGBA")
    white = PIL.Image.new("RGBA", picture.size, "white")
    picture = PIL.Image.alpha_composite(white, picture).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.quantize(256, dither=PIL.Image.Dither.NONE).save(buffer, "png", optimize=True)
    if buffer.tell() > LARGEST:
        raise ValueError(f"{target.name} has {buffer.tell()} bytes, more than {LARGEST}: make WIDTH smaller")
    target.write_bytes(buffer.getvalue())


def main(names: list[str]) -> None:
    """Record the scripts of these names, or all."""
    scripts = [*sorted((DOCS / "examples").glob("*.py")), *sorted((ROOT / "demos").glob("*.py"))]
    unknown = set(names) - {script.stem for script in scripts}
    if unknown:
        sys.exit(f"no example or demo is named {', '.join(sorted(unknown))}")
    for script in scripts:
        if names and script.stem not in names:
            continue
        record(script)
        for picture in sorted((ROOT / f"out_{script.stem}").glob("*.png")):
            name = script.stem if picture.stem != "convergence" else f"{script.stem}_convergence"
            keep_picture(picture, DOCS / "_static" / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
