"""The tables of a benchmark: for the terminal, and as Markdown for README and documentation.

``python -m pdeopt.bench.table`` in a checkout brings every marked section of its README and docs up to date.
"""

import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import rich.box
import rich.console
import rich.markup
import rich.table

from pdeopt.bench.record import Record, read_record
from pdeopt.report import InputError

_MARKER = re.compile(r"<!-- bench:([\w.-]+) -->")


def make_console(rank: int = 0, width: int = 240) -> rich.console.Console:
    """Return a console that is silent except on rank 0.

    Parameters
    ----------
    rank
        This process's rank.
    width
        Columns where the output is no terminal: a file has no edge, and 80 columns would cut the tables.

    Collective: no.
    """
    console = rich.console.Console(quiet=rank != 0, highlight=False)
    if not console.is_terminal:
        console.width = width
    return console


def print_tables(record: Record, console: rich.console.Console) -> None:
    """Print the tables of a benchmark's record. Collective: no."""
    for title, columns, cells in _tables(record):
        # Escaped, because a unit such as [s] would be taken for a style.
        headers, name = map(rich.markup.escape, columns), rich.markup.escape(title)
        table = rich.table.Table(*headers, title=name, title_justify="left", box=rich.box.SIMPLE_HEAD)
        for line in cells:
            table.add_row(*map(rich.markup.escape, line))
        console.print(table)
    console.print(_footer(record), markup=False)


def markdown(record: Record, targets_only: bool = False) -> str:
    """Return the tables of a benchmark's record, or that of its targets alone, as Markdown. Collective: no."""
    blocks = []
    shown = {**record, "rows": []} if targets_only else record
    for title, columns, cells in _tables(shown):
        lines = [columns, ["---"] * len(columns), *cells]
        body = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
        blocks.append(f"**{title}**\n\n{body}")
    return "\n\n".join([*blocks, f"<sub>{_footer(record)}</sub>"]) + "\n"


def replace_marked_section(text: str, name: str, content: str) -> str:
    """Return ``text`` with ``content`` between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``.

    Raises
    ------
    InputError
        If the pair of markers does not stand exactly once in the text.

    Collective: no.
    """
    opening, closing = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    before, opened, rest = text.partition(opening)
    _, closed, after = rest.partition(closing)
    if not opened or not closed or opening in rest or closing in before + after:
        raise InputError(f"the text needs one section from {opening} to {closing}")
    return f"{before}{opening}\n{content.strip()}\n{closing}{after}"


def update_marked_section(path: pathlib.Path, name: str, content: str) -> bool:
    """Replace the marked section of a file; return whether the file changed. Collective: no; call it on rank 0."""
    old = path.read_text()
    new = replace_marked_section(old, name, content)
    if new != old:
        path.write_text(new)
    return new != old


def marked_sections(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, str, str]]:
    """Yield file, section name and due Markdown of every marked section of a checkout's README and docs.

    A section is named after a bench, or ``NAME.targets`` for the lines of "What it must show" alone.

    Parameters
    ----------
    root
        The checkout; the records are read from ``docs/benchmarks/NAME.json``.

    Collective: no.
    """
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        for name in _MARKER.findall(path.read_text() if path.exists() else ""):
            bench, _, part = name.partition(".")
            record = read_record(root / "docs" / "benchmarks" / f"{bench}.json")
            yield path, name, markdown(record, targets_only=part == "targets")


def _tables(record: Record) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield title, columns and cells: the rows grouped by their ``table``, then the targets."""
    groups: dict[str, list[Record]] = {}
    for row in record["rows"]:
        groups.setdefault(str(row.get("table", record["bench"])), []).append(row)
    for title, rows in groups.items():
        columns = list(dict.fromkeys(key for row in rows for key in row if key != "table"))
        yield title, columns, [[_cell(row[key]) if key in row else "" for key in columns] for row in rows]
    if record["targets"]:
        columns = ["target", "claim", "measured", "bound", "holds"]
        yield "What it must show", columns, [_target_cells(target) for target in record["targets"]]


def _target_cells(target: Record) -> list[str]:
    bound = f"{target['sense']} {_cell(target['bound'])}"
    return [target["id"], target["claim"], _cell(target["value"]), bound, "yes" if target["holds"] else "NO"]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _footer(record: Record) -> str:
    machine = record["machine"]
    commit = str(machine["commit"] or "unknown")[:12] + (" with changes" if machine["modified"] else "")
    parts = [
        f"{machine['cores']} cores of {machine['cpu']}",
        f"DOLFINx {machine['dolfinx']}",
        f"PETSc {machine['petsc']}",
        str(machine["mpi"]),
        f"pdeopt {machine['pdeopt']} ({commit})",
        str(machine["date"])[:10],
        f"seed {record['seed']}",
        f"looks {record['looks']}",
    ]
    return ("quick run, not a result; " if record["quick"] else "") + ", ".join(parts)


if __name__ == "__main__":
    for document, bench, due in list(marked_sections(pathlib.Path.cwd())):
        if update_marked_section(document, bench, due):
            sys.stdout.write(f"{document}: {bench}\n")
