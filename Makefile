# Every target first asks tools/bootstrap.sh for an interpreter that has what the target needs: it makes .venv, or uses
# the active conda environment, and prints the path. PYTHON=... names the interpreter to make .venv with.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test lint coverage docs clean distclean
export PYTHON

help:
	@echo "make demo      control a heat sink on two ranks"
	@echo "make test      ruff, mypy, import-linter and the tests on one, two and three ranks"
	@echo "make lint      the same without the tests"
	@echo "make coverage  the tests with branch coverage, all ranks together"
	@echo "make docs      the documentation, into docs/_build/html"
	@echo "make clean     remove what runs leave behind; make distclean removes .venv too"

demo:
	@python=$$(sh tools/bootstrap.sh demo) && \
	"$$(dirname "$$python")/mpiexec" -n 2 "$$python" demos/heat_sink_control.py

# Three launches for all tests of a number of ranks, since MPICH has about 2,000 communicators for each: plain `pytest`
# works too, with one launch for each test. Two processes share the tests on one rank, but for those that start processes
# under MPI or take the time.
FIRST := tests/bench tests/conjugate_directions tests/control tests/fem
SECOND := tests/learn tests/optimise tests/problems
REST := $(patsubst %,--ignore=%,$(FIRST) $(SECOND))

test: lint
	@python=$$(sh tools/bootstrap.sh test) && mpiexec="$$(dirname "$$python")/mpiexec" && \
	"$$python" -m pytest -m "parallel[1] and not alone" -n 2 --dist worksteal && \
	"$$python" -m pytest -m "parallel[1] and alone" && \
	for ranks in 2 3; do for part in "$(FIRST)" "$(SECOND)" "$(REST)"; do \
	  "$$mpiexec" -n $$ranks "$$python" -m pytest -m "parallel[$$ranks]" $$part || exit 1; \
	done; done

lint:
	@python=$$(sh tools/bootstrap.sh test) && bin=$$(dirname "$$python") && \
	"$$python" -m ruff check && \
	"$$python" -m ruff format --check && \
	"$$python" -m mypy && \
	"$$bin/lint-imports"

coverage:
	@python=$$(sh tools/bootstrap.sh test) && mpiexec="$$(dirname "$$python")/mpiexec" && \
	"$$python" -m coverage erase && \
	"$$python" -m coverage run -m pytest -m "parallel[1]" && \
	for ranks in 2 3; do for part in "$(FIRST)" "$(SECOND)" "$(REST)"; do \
	  "$$mpiexec" -n $$ranks "$$python" -m coverage run -m pytest -m "parallel[$$ranks]" $$part || exit 1; \
	done; done && \
	"$$python" -m coverage combine --quiet && \
	"$$python" -m coverage report

docs:
	@python=$$(sh tools/bootstrap.sh docs) && \
	"$$python" -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf build dist out_* docs/_build docs/demos .coverage .coverage.* \
	  .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find pdeopt tests demos docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv pdeopt.egg-info
