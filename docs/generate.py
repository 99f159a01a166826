"""What the pages take from the project itself: demos as pages, the command line's help, benchmark tables."""

import os
import pathlib
import re
import subprocess
import sys

from pdeopt.bench import record, table

DOCS = pathlib.Path(__file__).resolve().parent
ROOT = DOCS.parent
_MARKER = re.compile(r"^<!-- generated: (help|benchmarks) ?(.*?) -->$", re.MULTILINE)


def demo_scripts() -> list[pathlib.Path]:
    """Return the demos, in the order of their names."""
    return sorted((ROOT / "demos").glob("*.py"))


def demo_page(script: pathlib.Path) -> str:
    """Return a demo (jupytext light) as Markdown: prose, code, its pictures, and what it printed when recorded."""
    import jupytext

    cells = jupytext.reads(script.read_text(), fmt="py:light").cells
    parts = [cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```" for cell in cells]
    command = f"mpiexec -n 2 python demos/{script.name}"
    pictures = [
        f"```{{figure}} ../_static/{picture.name}\n:alt: {picture.stem.replace('_', ' ')}\n\nMade by `{command}`.\n```"
        for picture in (DOCS / "_static" / f"{script.stem}{kind}.png" for kind in ("", "_convergence"))
        if picture.exists()
    ]
    printed = [
        "## What it prints",
        f"`{command}` printed:",
        f"```{{literalinclude}} ../recorded/{script.stem}.txt\n:language: text\n```",
        f"The script: {{download}}`{script.name} <../../demos/{script.name}>`.",
    ]
    # The story opens with what comes out; how it converged belongs to the numbers at the end.
    return "\n\n".join([parts[0], *pictures[:1], *parts[1:], *printed, *pictures[1:]]) + "\n"


def write_demo_pages(folder: pathlib.Path) -> None:
    """Write the page of every demo into a folder, and remove pages whose demo is gone."""
    folder.mkdir(exist_ok=True)
    pages = {f"{script.stem}.md": demo_page(script) for script in demo_scripts()}
    for old in folder.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, page in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != page:  # an unchanged page is not read again by Sphinx
            path.write_text(page)


def help_text(command: str) -> str:
    """Return what ``pdeopt COMMAND --help`` prints."""
    job = subprocess.run(
        [sys.executable, "-m", "pdeopt", *command.split(), "--help"],
        cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in job.stdout.splitlines()).strip()


def benchmark_tables(folder: pathlib.Path) -> str:
    """Return the tables of every benchmark record in a folder as Markdown, or a sentence that there is none."""
    files = sorted(folder.glob("*.json"))
    if not files:
        return "No full run is recorded yet."
    return "\n\n".join(f"## {path.stem}\n\n{table.markdown(record.read_record(path))}" for path in files)


def fill_in(text: str) -> str:
    """Replace the markers ``<!-- generated: help COMMAND -->`` and ``<!-- generated: benchmarks -->`` of a page."""

    def content(marker: re.Match[str]) -> str:
        if marker[1] == "benchmarks":
            return benchmark_tables(DOCS / "benchmarks")
        command = f"pdeopt {marker[2]}".strip()
        return f"```console\n$ {command} --help\n{help_text(marker[2])}\n```"

    return _MARKER.sub(content, text)
