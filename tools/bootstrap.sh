#!/bin/sh
# Print the path of an interpreter that has what a make target needs, and make it so first.
#
#   tools/bootstrap.sh demo|test|docs     PYTHON=...  the interpreter to make .venv with
#
# The active conda environment is used when DOLFINx is in it; otherwise .venv is made from the first interpreter that
# runs, is new enough and can make environments. Everything but the path goes to standard error.
set -eu

group=${1:?usage: tools/bootstrap.sh demo|test|docs}
case $group in
  demo) extras= ;;
  test) extras='[test,adjoint,learn,rivals,remesh,reduced]' ;;
  docs) extras='[docs]' ;;
  *) echo "tools/bootstrap.sh: unknown group '$group' (demo, test, docs)" >&2; exit 2 ;;
esac
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
venv=$root/.venv

fail() {
  echo "pdeopt: $*" >&2
  exit 1
}

# A name proves nothing: pyenv's shims exist for versions that are not active and exit with 127.
usable() {
  "$1" -c 'import sys; sys.version_info >= (3, 12) or sys.exit(1); import venv, ensurepip' >/dev/null 2>&1
}

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    usable "$PYTHON" || fail "PYTHON=$PYTHON does not run, is older than 3.12, or lacks venv and ensurepip"
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.12 python3.13 python3.14 \
    "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*/bin/python "${HOME:-}"/.pyenv/versions/*/bin/python; do
    if usable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python >= 3.12 with venv and ensurepip found: install one, or name it with PYTHON=/path/to/python"
}

compiler=
for name in ${CC:-} cc gcc clang; do
  if command -v "$name" >/dev/null 2>&1; then compiler=$name; break; fi
done
[ -n "$compiler" ] || fail "no C compiler found (cc, gcc, clang): DOLFINx compiles its forms when they are first used"

# One bootstrap at a time in a checkout. The lock goes with the process (and its pip), however that ends.
if command -v flock >/dev/null 2>&1; then
  exec 9<pyproject.toml
  flock 9
fi

hash=$(cat pyproject.toml requirements-nodeps.txt tools/bootstrap.sh | cksum | tr ' ' '-')

# --- an active conda environment that has DOLFINx ---------------------------------------------------------------------
if [ -n "${CONDA_PREFIX:-}" ] && [ -z "${PYTHON:-}" ] && [ -x "$CONDA_PREFIX/bin/python" ]; then
  python=$CONDA_PREFIX/bin/python
  if "$python" -c 'from mpi4py import MPI; import dolfinx' >/dev/null 2>&1; then
    stamp=$CONDA_PREFIX/.pdeopt-$group-$(echo "$root" | cksum | tr ' ' '-')
    if [ "$(cat "$stamp" 2>/dev/null)" != "$hash" ]; then
      echo "pdeopt: using the conda environment $CONDA_PREFIX" >&2
      "$python" -m pip install -qq --no-deps -e . >&2
      [ "$group" != test ] || "$python" -m pip install -qq --no-deps -r requirements-nodeps.txt >&2
      echo "$hash" >"$stamp"
    fi
    echo "$python"
    exit
  fi
fi

# --- .venv ------------------------------------------------------------------------------------------------------------
python=$venv/bin/python
changing=$venv/.pdeopt-changing # there while pip works: what is found with it was interrupted and may be half-made

if [ -x "$python" ] && [ ! -e "$changing" ]; then
  for stamp in "$venv/.pdeopt-$group" "$venv/.pdeopt-test"; do
    # The test packages contain the demo's; only the documentation's stand apart.
    [ "$group" != docs ] || stamp=$venv/.pdeopt-docs
    if [ "$(cat "$stamp" 2>/dev/null)" = "$hash" ]; then
      echo "$python"
      exit
    fi
  done
fi

trap 'exit 130' INT
trap 'exit 143' TERM HUP
if [ -e "$changing" ] || ! usable "$python" || ! "$python" -m pip --version >/dev/null 2>&1; then
  base=$(find_python)
  echo "pdeopt: making .venv with $("$base" --version) (once, half a minute; two minutes with torch for the tests)" >&2
  rm -rf "$venv"
  mkdir "$venv"
  : >"$changing"
  "$base" -m venv "$venv" >&2
fi
: >"$changing"
status=0
"$python" -m pip install -qq --no-compile --disable-pip-version-check -e ".$extras" >&2 || status=$?
if [ "$status" = 0 ] && [ "$group" = test ]; then
  "$python" -m pip install -qq --no-compile --disable-pip-version-check --no-deps -r requirements-nodeps.txt >&2 || status=$?
fi
# The demo compiles the few modules that it imports; the tests start many processes, and want all of them ready.
if [ "$status" = 0 ] && [ "$group" = test ]; then
  "$python" -m compileall -q -j 2 "$venv/lib" >/dev/null 2>&1 || true # some packages ship templates that do not compile
fi
# pip that ends by itself, also with an error, leaves whole packages; only one that was stopped does not.
rm -f "$changing"
[ "$status" = 0 ] || fail "pip could not install what 'make $group' needs (its message is above)"
echo "$hash" >"$venv/.pdeopt-$group"
echo "$python"
