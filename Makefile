# Two commands on a fresh machine with Python 3.11 or 3.12: `make demo` and `make test`.
PYTHON ?= python3
CORES ?= 2
DEMO_DIR ?= .
SMALL_DIR ?= .test/run
PIN_DIR ?= envs

BIN := .venv/bin
SNAKEMAKE := $(BIN)/snakemake --snakefile $(CURDIR)/Snakefile --cores $(CORES)
INSTALLED := .venv/.installed
TESTABLE := .venv/.testable
CLUSTER := .venv/.cluster
APT := DEBIAN_FRONTEND=noninteractive timeout 240 apt-get

.PHONY: help demo small test lint docs fast-test workflow-test fault-test cluster-test install slurm settings-table constraints conda-pins clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## Make .venv from requirements.txt and constraints.txt

$(INSTALLED): requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	sys.exit(0 if v in ((3, 11), (3, 12)) else f"Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}: call make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -r requirements.txt
	touch $@

$(TESTABLE): $(INSTALLED) requirements-dev.txt
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -r requirements.txt -r requirements-dev.txt
	touch $@

demo: $(INSTALLED)  ## Run the whole workflow on the simulated study and build report.html
	@$(BIN)/python -m compileall -q histogep
	$(SNAKEMAKE) --directory $(DEMO_DIR) --configfile config/config.yaml
	$(SNAKEMAKE) --directory $(DEMO_DIR) --configfile config/config.yaml --report $(DEMO_DIR)/.report.new.html
	mv -f $(DEMO_DIR)/.report.new.html $(DEMO_DIR)/report.html
	@echo "Report: $(DEMO_DIR)/report.html"

small: $(INSTALLED)  ## Run the whole workflow on three tiny slides (.test/), in two minutes
	$(SNAKEMAKE) --directory $(SMALL_DIR) --configfile .test/config.yaml

test: lint docs fast-test workflow-test  ## Everything that can fail: lint, documents, fast tests, whole workflows

lint: $(TESTABLE)  ## ruff, snakefmt, borders between rooms, types, snakemake --lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/lint-imports > .venv/lint-imports.log || { cat .venv/lint-imports.log; exit 1; }
	$(BIN)/mypy --no-error-summary
	$(BIN)/snakemake --lint

docs: $(TESTABLE)  ## Build the documentation into site/; a broken link or name fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

fast-test: $(TESTABLE)  ## Library and script tests, one file a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not workflow" -n $(CORES) --dist loadfile

workflow-test: $(TESTABLE)  ## Tests that run Snakemake itself
	$(BIN)/python -m pytest -m workflow -n $(CORES) --dist loadgroup --no-loadscope-reorder

fault-test: $(TESTABLE)  ## Kill, fill, cut and lock what Snakemake runs (about 8 minutes; some need root)
	HISTOGEP_FAULT_TESTS=1 $(BIN)/python -m pytest tests/runs/test_faults_workflow.py

# Beside .venv, not in it: with the plugin there every start of Snakemake would look for a cluster.
$(CLUSTER): $(TESTABLE) requirements-slurm.txt requirements-cluster-generic.txt
	$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python -c constraints.txt --target .venv/cluster \
	-r requirements-slurm.txt -r requirements-cluster-generic.txt
	touch $@

slurm: $(CLUSTER)  ## Debian's SLURM and the executor plugins, for the tests that need them (root)
	@command -v slurmctld > /dev/null || { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends \
	slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins; } || echo "SLURM cannot be installed: skipped"

cluster-test: slurm  ## A small study on a SLURM of one machine (root, Debian; about 25 minutes)
	@{ command -v slurmdbd && command -v mariadbd; } > /dev/null || { $(APT) update -qq && \
	$(APT) install -y -qq --no-install-recommends slurmdbd slurm-wlm-mysql-plugin mariadb-server; } \
	|| echo "SLURM's accounting cannot be installed: skipped"
	HISTOGEP_CLUSTER_TESTS=all $(BIN)/python -m pytest -rs tests/cluster/test_cluster.py tests/cluster/test_cluster_accounting.py

settings-table: $(INSTALLED)  ## Rewrite the table of settings in config/README.md
	@table=$$($(BIN)/python -m histogep.study.settings config/schemas/config.schema.yaml) && \
	sed -i '/<!-- made by/q' config/README.md && printf '\n%s\n' "$$table" >> config/README.md

constraints: $(INSTALLED)  ## Pin the newest set of packages that resolves on Python 3.11 and 3.12
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --upgrade \
	requirements.txt requirements-dev.txt requirements-slurm.txt requirements-cluster-generic.txt -o constraints.txt

conda-pins: $(patsubst envs/%.yaml,$(PIN_DIR)/%.linux-64.pin.txt,$(wildcard envs/*.yaml))  ## Pin the conda environments of envs/ (needs conda)

$(PIN_DIR)/%.linux-64.pin.txt: envs/%.yaml
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	conda env create --quiet --file $< --prefix "$$folder/env" && \
	conda list --explicit --md5 --prefix "$$folder/env" > "$$folder/pins" && mv "$$folder/pins" $@

clean:  ## Remove results, logs and benchmarks of the default study
	rm -rf results logs benchmarks report.html .snakemake
