"""What is shipped: two lists of packages that agree, an import that stays light, source without dangerous calls."""

import ast
import importlib
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import pdeopt

pytestmark = pytest.mark.alone

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "pdeopt").rglob("*.py"))

# conda-forge's name where it is not pip's.
CONDA_NAMES = {
    "dolfinx-solver-real": "fenics-dolfinx",
    "gmsh": "python-gmsh",
    "matplotlib": "matplotlib-base",
    "torch": "pytorch",
    "cyipopt-wheels": "cyipopt",
}
# What the wheel carries inside, and what a conda environment needs besides: no requirement of pdeopt's own.
CONDA_ONLY = {"python", "pip", "make", "c-compiler", "mpich", "petsc", "petsc4py", "slepc4py"}
# Another distribution of the same package, with versions of its own.
OWN_VERSIONS = {"cyipopt"}
# Module of a pinned distribution where it is not the name with underscores.
MODULES = {"pyadjoint-ad": "pyadjoint"}


def pip_requirements() -> dict[str, SpecifierSet]:
    """Return all requirements of pyproject.toml, core and extras, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for group in project["optional-dependencies"].values() for line in group)]
    requirements: dict[str, SpecifierSet] = {}
    for line in lines:
        requirement = Requirement(line)
        assert requirements.setdefault(requirement.name, requirement.specifier) == requirement.specifier, line
    return requirements


def conda_environment() -> tuple[dict[str, str], dict[str, SpecifierSet], list[str]]:
    """Return environment.yml's conda packages, its pip packages, and its channels."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda: dict[str, str] = {}
    pip: dict[str, SpecifierSet] = {}
    for entry in environment["dependencies"]:
        if isinstance(entry, dict):
            pip |= {r.name: r.specifier for r in map(Requirement, entry["pip"])}
        else:
            name, version = re.fullmatch(r"([A-Za-z0-9_.-]+)\s*(.*)", entry).groups()
            assert name not in conda, f"{name} stands twice in environment.yml"
            conda[name] = version
    return conda, pip, environment["channels"]


# --- the two lists of packages ----------------------------------------------------------------------------------------


def test_conda_environment_has_the_packages_of_pyproject_with_the_same_pins():
    conda, pip, _ = conda_environment()
    for name, specifier in pip_requirements().items():
        conda_name = CONDA_NAMES.get(name, name)
        if conda_name in pip:
            assert pip[conda_name] == specifier, f"{name}: {pip[conda_name]} in environment.yml, {specifier} here"
            continue
        assert conda_name in conda, f"{name} ({conda_name}) is missing from environment.yml"
        if conda_name not in OWN_VERSIONS:
            found = SpecifierSet(conda[conda_name])
            assert found == specifier, f"{name}: {found} in environment.yml, {specifier} in pyproject.toml"


def test_conda_environment_has_nothing_else():
    conda, pip, _ = conda_environment()
    known = {CONDA_NAMES.get(name, name) for name in pip_requirements()} | CONDA_ONLY
    assert (conda.keys() | pip.keys()) - known == set()
    assert conda.keys() & pip.keys() == set()


def test_conda_environment_takes_everything_from_conda_forge_and_petsc_with_real_scalars():
    conda, _, channels = conda_environment()
    assert channels == ["conda-forge"]
    assert conda["petsc"] == "=*=real*"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(conda["python"]) == SpecifierSet(project["requires-python"])


def test_pip_never_resolves_a_second_petsc():
    # Anything that requires these by name would bring another PETSc into the process.
    forbidden = {"petsc4py", "slepc4py", "petsc", "slepc", "fenics-dolfinx"}
    installable = pip_requirements()
    assert installable.keys() & forbidden == set()
    for name in installable:
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        needed = {r.name for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": ""})}
        assert needed & forbidden == set(), f"{name} would pull {needed & forbidden}"


def test_packages_without_dependencies_are_pinned_and_importable():
    lines = (ROOT / "requirements-nodeps.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len(requirements) >= 4
    for requirement in requirements:
        (pin,) = requirement.specifier
        assert pin.operator == "==", f"{requirement} is not pinned"
        assert importlib.metadata.version(requirement.name) == pin.version
        importlib.import_module(MODULES.get(requirement.name, requirement.name.replace("-", "_")))


def test_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert pdeopt.__version__ == project["version"] == citation["version"]


# --- the import -------------------------------------------------------------------------------------------------------


def test_import_is_light():
    code = """
import sys, time
start = time.perf_counter()
import pdeopt
print(time.perf_counter() - start)
print(*sorted({"torch", "dolfinx", "ufl", "petsc4py", "pyvista", "matplotlib", "scipy"} & sys.modules.keys()))
"""
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, loaded = zip(*(run.stdout.split("\n")[:2] for run in runs), strict=True)
    assert set(loaded) == {""}
    assert min(map(float, seconds)) < 0.5


@pytest.mark.parametrize("name", pdeopt.__all__)
def test_public_name_resolves(name):
    assert getattr(pdeopt, name) is not None
    assert name in dir(pdeopt)


def test_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match="ControlProblem"):
        _ = pdeopt.ControlProblm


# --- the source -------------------------------------------------------------------------------------------------------

# Formats that run code when they are read, and everything that reaches the network.
FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("urllib", "urllib3", "requests", "httpx", "aiohttp", "socket", "http", "ftplib", "smtplib", "telnetlib"),
}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load"}


def dotted_name(node: ast.expr) -> str:
    """Return ``torch.load`` for the expression of that name, an empty string for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            return f"{dotted_name(value)}.{attribute}"
    return ""


def violations(source: str) -> list[str]:
    """Return what a source file does that no file of the package may do."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [f"import {a.name}" for a in names if a.name.split(".")[0] in FORBIDDEN_MODULES]
            case ast.ImportFrom(module=module, names=names, level=level):
                if level == 0 and (module or "").split(".")[0] in FORBIDDEN_MODULES:
                    found.append(f"from {module} import")
                found += [f"from {module} import *" for a in names if a.name == "*"]
                found += [f"from {module} import {a.name}" for a in names if f"{module}.{a.name}" in FORBIDDEN_CALLS]
            case ast.Call(func=function, keywords=keywords):
                name = dotted_name(function).removeprefix("builtins.")
                if name in FORBIDDEN_CALLS:
                    found.append(f"{name}(...)")
                for keyword in keywords:
                    is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                    if keyword.arg == "shell" and not is_false:
                        found.append("shell=True")
                    if keyword.arg == "allow_pickle" and not is_false:
                        found.append("allow_pickle=True")
            case ast.ExceptHandler(type=None):
                found.append("bare except")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_has_no_dangerous_construct(path):
    assert violations(path.read_text()) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "import urllib.request",
        "from http.client import HTTPConnection",
        "from torch import load",
        "import torch\ntorch.load('weights.pt')",
        "eval('1 + 1')",
        "builtins.exec('x = 1')",
        "yaml.load(text)",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "numpy.load(path, allow_pickle=True)",
        "from ufl import *",
        "try:\n    f()\nexcept:\n    pass",
        "def inner():\n    import socket",
    ],
)
def test_the_search_finds_what_is_planted(planted):
    assert len(violations(planted)) == 1


def test_the_search_lets_the_harmless_pass():
    assert violations("yaml.safe_load(t)\nmodel.eval()\nsubprocess.run(['ls'], shell=False)\nfrom . import http") == []


# --- the bootstrap ----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """Return a copy of what tools/bootstrap.sh reads, and an environment with none of this machine's interpreters."""
    for name in ("pyproject.toml", "requirements-nodeps.txt", "tools/bootstrap.sh"):
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "checkout" / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "home").mkdir()
    for tool in ("sh", "cat", "cksum", "tr", "dirname", "mkdir", "rm", "flock", "sleep"):
        found = shutil.which(tool)
        if found:
            (tmp_path / "bin" / tool).symlink_to(found)
    script(tmp_path / "bin" / "cc", "exit 0")
    return tmp_path


def script(path: pathlib.Path, body: str) -> pathlib.Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def interpreter(path: pathlib.Path, log: pathlib.Path, pip_status: int = 0) -> pathlib.Path:
    """Write a stand-in for a new enough Python: it makes environments of copies of itself, and notes pip's calls."""
    return script(
        path,
        f"""
case "$1 $2" in
  "-c "*) exit 0 ;;
  "--version "*) echo "Python 3.99" ;;
  "-m venv") mkdir -p "$3/bin" && cat "$0" >"$3/bin/python" && chmod +x "$3/bin/python" ;;
  "-m pip") echo "$0 $*" >>"{log}"; [ "$3" = --version ] || exit {pip_status} ;;
esac""",
    )


def bootstrap(checkout: pathlib.Path, group: str = "demo", **extra: str) -> subprocess.CompletedProcess[str]:
    """Run tools/bootstrap.sh of a copied checkout with nothing but its own tools on PATH."""
    environment = {"PATH": str(checkout / "bin"), "HOME": str(checkout / "home"), **extra}
    command = ["/bin/sh", str(checkout / "checkout" / "tools" / "bootstrap.sh"), group]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@pytest.fixture
def chmod_on_path(checkout):
    (checkout / "bin" / "chmod").symlink_to(shutil.which("chmod"))


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """Return the only line that a failed bootstrap printed."""
    assert result.returncode != 0
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return line


def test_bootstrap_says_in_one_line_that_no_interpreter_was_found(checkout):
    assert "no Python >= 3.12" in one_line(bootstrap(checkout))
    assert not (checkout / "checkout" / ".venv").exists()


def test_bootstrap_counts_no_interpreter_that_does_not_run(checkout):
    script(checkout / "bin" / "python3.13", "echo 'command not found' >&2; exit 127")  # as a shim does
    script(checkout / "bin" / "python3", "exit 1")  # as an older one does when it compares its version
    assert "no Python >= 3.12" in one_line(bootstrap(checkout))
    assert "does not run" in one_line(bootstrap(checkout, PYTHON=str(checkout / "bin" / "python3")))


def test_bootstrap_says_in_one_line_that_no_compiler_was_found(checkout):
    (checkout / "bin" / "cc").unlink()
    assert "no C compiler" in one_line(bootstrap(checkout))


@pytest.mark.usefixtures("chmod_on_path")
def test_bootstrap_finds_the_interpreter_behind_a_dead_shim_and_reuses_what_it_made(checkout):
    log = checkout / "pip.log"
    script(checkout / "bin" / "python3.13", "exit 127")
    interpreter(checkout / "home/.pyenv/versions/3.99.0/bin/python", log)
    venv_python = checkout / "checkout" / ".venv" / "bin" / "python"

    first = bootstrap(checkout)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == str(venv_python)
    assert "-e ." in log.read_text()

    log.unlink()
    start = time.monotonic()
    second = bootstrap(checkout)
    assert time.monotonic() - start < 3
    assert second.stdout == first.stdout
    assert second.stderr == ""
    assert not log.exists()  # pip was not called again

    with (checkout / "checkout" / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert bootstrap(checkout).returncode == 0
    assert "-e ." in log.read_text()

    assert bootstrap(checkout, "test").returncode == 0
    assert "requirements-nodeps.txt" in log.read_text()


@pytest.mark.usefixtures("chmod_on_path")
def test_bootstrap_stops_at_an_error_of_pip_and_counts_no_half_made_environment(checkout):
    log = checkout / "pip.log"
    python = checkout / "home/.pyenv/versions/3.99.0/bin/python"
    interpreter(python, log, pip_status=1)
    assert bootstrap(checkout).returncode == 1
    assert "-e ." in log.read_text()
    assert bootstrap(checkout).returncode == 1  # still not complete

    # A pip that is killed leaves its mark, and the next call starts afresh.
    venv = checkout / "checkout" / ".venv"
    (venv / ".pdeopt-changing").touch()
    (venv / "left-behind").touch()
    interpreter(python, log)
    assert bootstrap(checkout).returncode == 0
    assert not (venv / "left-behind").exists()
    assert not (venv / ".pdeopt-changing").exists()


@pytest.mark.usefixtures("chmod_on_path")
def test_bootstrap_uses_the_active_conda_environment_that_has_dolfinx(checkout):
    log = checkout / "pip.log"
    python = interpreter(checkout / "conda/bin/python", log)
    result = bootstrap(checkout, CONDA_PREFIX=str(checkout / "conda"))
    assert result.stdout.strip() == str(python)
    assert "--no-deps -e ." in log.read_text()
    assert not (checkout / "checkout" / ".venv").exists()


def test_bootstrap_finds_a_real_interpreter_on_this_machine(checkout):
    # The search itself with real interpreters, without making an environment: `mkdir` fails first.
    script(checkout / "nothing" / "mkdir", "exit 1")
    real = {"PYTHON": sys.executable, "PATH": f"{checkout / 'nothing'}{os.pathsep}{checkout / 'bin'}"}
    result = bootstrap(checkout, **real)
    assert f"making .venv with Python {sys.version_info.major}.{sys.version_info.minor}" in result.stderr
    assert result.returncode != 0
