"""The documentation's sources: complete, without dangling links, and about names that exist. Sphinx is not needed."""

import ast
import importlib
import importlib.util
import pathlib
import re

import pytest
from dolfinx.fem.petsc import LinearProblem

import pdeopt
from pdeopt.bench import harness, record
from pdeopt.control import ControlProblem, UnsteadyControlProblem, solvers, state_solvers, structure, tao

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# docs/demos and docs/_build are made by the build.
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if path.relative_to(DOCS).parts[0] not in ("demos", "_build")]
DEMOS = sorted((ROOT / "demos").glob("*.py"))
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
MODULES = [path for path in sorted((ROOT / "pdeopt").rglob("*.py")) if not path.stem.startswith("_")]
FENCE = re.compile(r"^(`{3,})(.*?)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


def load_generator():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exists(target):
    """Whether a path of the documentation exists, or will when the demos have become pages."""
    return target.exists() or (target.parent == DOCS / "demos" and (ROOT / "demos" / f"{target.stem}.py").exists())


def heading_anchors(text):
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "-" if "'" in heading else "", heading.lower()).replace(" ", "-") for heading in headings
    }


def dangling(page, text):
    """Return what a page refers to and does not exist: links, anchors, included files and pictures, toctrees."""
    missing = []
    prose = FENCE.sub("", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r"\{download\}`[^<`]*<([^>]+)>`", prose):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not exists(path) or (anchor and anchor not in heading_anchors(path.read_text())):
            missing.append(target)
    for _, opening, body in FENCE.findall(text):
        directive, _, argument = opening.partition("} ")
        if directive in ("{figure", "{include", "{literalinclude"):
            path = (page.parent / argument).resolve()
            marks = re.findall(r'^:(?:start-after|end-before|start-at): "?(.*?)"?$', body, re.MULTILINE)
            if not path.exists() or any(mark not in path.read_text() for mark in marks):
                missing.append(opening)
        elif opening == "{toctree}":
            missing += [entry for entry in toctree_entries(page, body) if not exists(entry)]
    return missing


def toctree_entries(page, body):
    lines = [line for line in body.splitlines() if line and not line.startswith(":")]
    return [(page.parent / f"{line}.md").resolve() for line in lines if "*" not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_page_refers_only_to_what_exists(page):
    assert dangling(page, page.read_text()) == []


def test_dangling_references_are_found():
    page = DOCS / "guide" / "control.md"
    bad = [
        "[x](nowhere.md)",
        "[x](../installation.md#no-such-heading)",
        "[x](#no-such-heading)",
        "{download}`x <nowhere.py>`",
        "```{figure} ../_static/nowhere.png\n```",
        "```{literalinclude} ../examples/nowhere.py\n```",
        '```{literalinclude} ../examples/derivatives.py\n:start-after: "# [nowhere]"\n```',
        "```{toctree}\n:hidden:\n\nnowhere\n```",
        "[x](../demos/nowhere.md)",
    ]
    good = ["[x](https://petsc.org)", "[x](../demos/heat_sink_control.md)", "[](#bounds)", "`[x](nowhere.md`"]
    assert all(dangling(page, text + "\n") for text in bad)
    assert not any(dangling(page, text + "\n# Bounds\n") for text in good)


def test_every_page_is_in_a_toctree():
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for _, opening, body in FENCE.findall(page.read_text()):
            if opening == "{toctree}":
                listed.update(toctree_entries(page, body))
    assert [page for page in PAGES if page not in listed] == []


def test_sources_are_finished():
    sources = [*PAGES, *EXAMPLES, *DEMOS, DOCS / "conf.py", DOCS / "generate.py", DOCS / "record.py"]
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|lorem ipsum)\b", re.IGNORECASE)
    assert [path for path in sources if words.search(path.read_text())] == []


# --- demos and examples -----------------------------------------------------------------------------------------------


def light_format_faults(text):
    """Return what keeps a script from becoming a page: jupytext's light format, a title, prose between the code."""
    faults = []
    paragraphs = re.split(r"\n\s*\n", text.strip())
    prose = [part for part in paragraphs if all(line.startswith("#") for line in part.splitlines())]
    if not paragraphs[0].startswith("# # "):
        faults.append("no title")
    if len(prose) < 4 or len(prose[0].splitlines()) < 4:
        faults.append("too little prose")
    if any(part.count("$$") % 2 for part in prose):
        faults.append("a formula that does not end in its paragraph")
    if re.search(r"^# ?(%%|\+|-)\s*$", text, re.MULTILINE):
        faults.append("cell markers of another format")
    if "mpirun -n" not in prose[0]:
        faults.append("no command that runs it")
    return faults


@pytest.mark.parametrize("script", DEMOS, ids=lambda script: script.stem)
def test_demo_becomes_a_page_with_its_output_and_picture(script):
    text = script.read_text()
    ast.parse(text)
    assert light_format_faults(text) == []
    assert script in load_generator().demo_scripts()
    assert "converged (reason" in (DOCS / "recorded" / f"{script.stem}.txt").read_text()
    for picture in (DOCS / "_static").glob(f"{script.stem}*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert 5_000 < picture.stat().st_size < 150_000
    assert (DOCS / "_static" / f"{script.stem}.png").exists()


def test_light_format_faults_are_found():
    prose = "# # Title\n#\n# Story.\n#\n# `mpirun -n 2 python x.py`"
    good = f"{prose}\n\nimport sys\n\n# ## A\n\nx = 1\n\n# ## B\n\n# ## C\n\ny = 2\n"
    assert light_format_faults(good) == []
    for old, new in (("# # T", "# T"), ("# ## C\n\n", ""), ("Story.", "$$ x"), ("# ## B", "# %%\n# B"), ("mpirun", "")):
        assert light_format_faults(good.replace(old, new)) != []


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_example_is_shown_with_what_it_printed(script):
    shown = "\n".join(page.read_text() for page in PAGES)
    assert f"examples/{script.name}" in shown
    assert f"recorded/{script.stem}.txt" in shown
    printed = (DOCS / "recorded" / f"{script.stem}.txt").read_text()
    assert "converged (reason" in printed
    assert "NOT converged" not in printed


# --- names ------------------------------------------------------------------------------------------------------------


def code_on_pages():
    """Yield a name and the source of every piece of Python that the documentation shows."""
    for script in [*EXAMPLES, *DEMOS]:
        yield script.name, script.read_text()
    for page in PAGES:
        for number, (_, opening, body) in enumerate(FENCE.findall(page.read_text())):
            if opening == "python":
                yield f"{page.name}:{number}", body


def importable(module, name):
    """Whether ``from module import name`` works, for a submodule too."""
    return hasattr(importlib.import_module(module), name) or importlib.util.find_spec(f"{module}.{name}") is not None


def unknown_names(source):
    """Return what code takes from pdeopt, or passes to ControlProblem, and does not exist."""
    unknown = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("pdeopt"):
            unknown += [alias.name for alias in node.names if not importable(node.module, alias.name)]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owners = {"pdeopt": (pdeopt,), "problem": (ControlProblem, UnsteadyControlProblem, LinearProblem)}
            known_to = owners.get(node.value.id)
            if known_to is not None and not any(hasattr(owner, node.attr) for owner in known_to):
                unknown.append(node.attr)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "ControlProblem":
            known = ControlProblem.__init__.__annotations__
            unknown += [keyword.arg for keyword in node.keywords if keyword.arg not in known]
    return unknown


def test_code_on_pages_uses_names_that_exist():
    pieces = dict(code_on_pages())
    assert len(pieces) > 8
    assert {name: names for name, source in pieces.items() if (names := unknown_names(source))} == {}
    assert unknown_names("from pdeopt.control import nothing") == ["nothing"]
    assert unknown_names("pdeopt.ControlProblem(aim=1)\npdeopt.nothing\nproblem.nothing") == [
        "aim",
        "nothing",
        "nothing",
    ]


def public_names(path):
    """Return the public functions and classes that a module defines."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    body = ast.parse(path.read_text()).body
    return {node.name for node in body if isinstance(node, definitions) and not node.name.startswith("_")}


def undocumented_modules(reference):
    """Return modules with public names that stand in the reference neither themselves nor through their package."""
    listed = set(re.findall(r"^\.\. automodule:: (\S+)$", reference, re.MULTILINE))
    missing = []
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        package = name.rpartition(".")[0]
        handed_on = set(getattr(importlib.import_module(package), "__all__", ())) if package in listed else set()
        names = public_names(path)
        if names and name not in listed and not names & handed_on:
            missing.append(name)
    return missing


def test_every_public_module_is_in_the_reference():
    reference = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    # The command line has a page of its own.
    assert undocumented_modules(reference) == ["pdeopt.cli"]
    shorter = reference.replace(".. automodule:: pdeopt.control\n", "").replace(".. automodule:: pdeopt.plot\n", "")
    missing = undocumented_modules(shorter)
    assert "pdeopt.control.problem" in missing
    assert "pdeopt.plot" in missing


def test_the_page_on_solvers_has_every_method_and_the_limits_of_the_code():
    page = (DOCS / "guide" / "solvers.md").read_text()
    for method in (*solvers.METHODS, *tao.METHODS):
        assert f"`{method}`" in page
    for dimension, limit in structure.DIRECT_LIMIT.items():
        assert f"{limit:,} " in page, dimension
    for dimension in (2, 3):
        assert f"{state_solvers._STATE_DIRECT_LIMIT[dimension]:,} " in page
    sources = "\n".join(path.read_text() for path in (ROOT / "pdeopt" / "control").glob("*.py"))
    prefixes = re.findall(r'setOptionsPrefix\("(\w+_)"\)|RieszMap\(.*?"(\w+_)"\)|MassSolver\(.*?"(\w+_)"\)', sources)
    assert len(prefixes) >= 5
    for prefix in {name for names in prefixes for name in names if name}:
        assert f"`{prefix}`" in page


# --- what the build puts in -------------------------------------------------------------------------------------------


def test_benchmark_records_become_tables(tmp_path):
    generate = load_generator()
    assert generate.benchmark_tables(tmp_path) == "No full run is recorded yet."
    result = harness.BenchResult("x", [{"table": "Rows", "n": 8}], [harness.Target("1", "a claim", 2.0, 1.0)])
    machine = dict.fromkeys(("cores", "cpu", "dolfinx", "petsc", "mpi", "pdeopt", "commit", "modified", "date"), "")
    record.write_record(tmp_path / "x.json", record.make_record(result, harness.BenchSettings(), machine, 1))
    tables = generate.benchmark_tables(tmp_path)
    assert tables.startswith("## x\n")
    assert "| 1 | a claim | 2 | <= 1 | NO |" in tables


def test_markers_are_replaced(monkeypatch):
    generate = load_generator()
    monkeypatch.setattr(generate, "help_text", lambda command: f"help of {command}")
    page = generate.fill_in((DOCS / "guide" / "commands.md").read_text())
    for command in ("info", "demo", "bench"):
        assert f"$ pdeopt {command} --help\nhelp of {command}\n" in page
    assert "<!-- generated" not in page
    assert "<!-- generated" not in generate.fill_in((DOCS / "benchmarks.md").read_text())
