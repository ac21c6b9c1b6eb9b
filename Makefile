# Two commands do everything: `make demo` and `make test`. Both make .venv and install with constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs mutants soak reports clean

demo: .venv/demo
	$(BIN)/cl-bench run --methods sdlora,coda
	$(BIN)/cl-bench report --results results/runs

# Two processes, a file of tests each at a time, in the order of tests/conftest.py, not by the number of tests; tiny
# matrices are faster on one thread.
test: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, in site/: open site/index.html. Any warning, such as a dead link, is an error; with --quiet,
# mkdocs would count none.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# One-line mistakes in the maths, each of which tests must notice; in copies of the tree.
mutants: .venv/test
	$(BIN)/python -m tools.mutants

# The long campaigns, for hours: runs, workers and parents of sweeps killed at nearly two hundred random points, every
# variant of a row, a leak and a wrong method, and the audit of every method on the whole benchmark, which replaces the
# table in docs/audit.md.
soak: .venv/test
	CL_BENCH_KILLS=12 $(BIN)/python -m pytest -s tests/training/test_resume.py
	CL_BENCH_SOAK=1 $(BIN)/python -m pytest tests/studies/test_audit.py tests/golden tests/reporting/test_hostile_records.py \
		tests/running/test_suites.py tests/streams/test_list_files.py tests/docs/test_tutorial.py
	$(BIN)/cl-bench audit --all --whole --ceiling 'joint[epochs=20],joint[train=lora,epochs=20]' --out docs/audit.md

# The rendered copies of the reference results; a test compares their texts and numbers with what is stored. The page,
# reports/reference/index.html, holds all of them once more in 6 MB, so git does not track it.
reports: .venv/demo
	rm -rf reports/reference
	$(BIN)/cl-bench report --results results/reference --out reports/reference --pictures png > /dev/null
	$(BIN)/python -m tools.shrink_pictures reports/reference

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@ .venv/demo

.venv/docs: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv site results/runs reports/index.html reports/tables reports/figures
