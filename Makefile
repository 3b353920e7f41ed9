# The commands of the README. Everything runs from .venv, which is made from the lock.
PYTHON ?= python3
# Where torch alone comes from, such as its wheels without CUDA, for machines without a GPU:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Leave it out where pip has a mirror of its own (pip config list) and torch is to come from there, with CUDA.
TORCH_INDEX ?=
BIN := .venv/bin
SOURCES := workflow/scripts tests bench demo docs .github

.PHONY: demo report test test-all lint format docs bench bench-gpu bench-families drill soak fuzz owner clean

demo: .venv/installed
	$(BIN)/snakemake -s workflow/Snakefile -d demo --cores 2 --quiet rules
	@$(BIN)/python demo/show_results.py demo/results

# Snakemake's report of the run in DIR, as DIR/report.html; runs what is missing first.
DIR ?= demo
report: .venv/installed
	$(BIN)/snakemake -s workflow/Snakefile -d $(DIR) --cores 2 --quiet rules
	$(BIN)/snakemake -s workflow/Snakefile -d $(DIR) --report report.html
	@echo "$(DIR)/report.html (and $(DIR)/results/report.html, the figures on one page)"

# One real run for every promise: about 20 minutes on two cores.
test: lint
	$(BIN)/pytest -n 2 --dist loadscope -m "not thorough"

# Everything; CI runs this.
test-all: test
	$(BIN)/pytest -n 2 --dist loadscope -m thorough

lint: .venv/installed
	$(BIN)/ruff check --quiet $(SOURCES)
	$(BIN)/ruff format --quiet --check $(SOURCES)
	$(BIN)/mypy workflow/scripts
	$(BIN)/snakefmt --check workflow examples
	$(BIN)/snakemake -s workflow/Snakefile -d demo --lint

format: .venv/installed
	$(BIN)/ruff check --quiet --fix $(SOURCES)
	$(BIN)/ruff format --quiet $(SOURCES)
	$(BIN)/snakefmt workflow examples
	cd workflow/scripts && find entry.py holdfast -name '*.py' | LC_ALL=C sort > holdfast.files

# The pages of docs/ as HTML, in docs/_build.
docs: .venv/installed
	$(BIN)/sphinx-build --quiet --fail-on-warning docs docs/_build

# The figures of docs/performance.md, each with the limit or the peer measured in the same run.
bench: .venv/installed
	PYTHONPATH=workflow/scripts $(BIN)/python bench/cpu.py

# The same on a CUDA machine, with that machine's own torch; needs no network.
bench-gpu:
	PYTHONPATH=workflow/scripts python3 bench/gpu.py

# Encoders of several families beside transformers' classes, on DEVICE: cpu, or cuda with that machine's own torch.
MODELS ?= esmc_tiny prot_t5_tiny
DEVICE ?= cpu
bench-families:
	PYTHONPATH=workflow/scripts $(if $(filter cuda,$(DEVICE)),python3,$(BIN)/python) bench/families.py $(MODELS) --device $(DEVICE)

# Kill the real workflow KILLS times at random moments and compare its results with an undisturbed run's.
KILLS ?= 24
drill: .venv/installed
	$(BIN)/python tests/drills/drill.py --kills $(KILLS)

# Send JOBS small jobs through one pool; writes docs/soak.tsv and docs/soak.svg.
JOBS ?= 10000
soak: .venv/installed
	$(BIN)/python tests/drills/soak.py --jobs $(JOBS)

# Fuzz one parser (tests/fuzz/parsers.py names them) for SECONDS.
PARSER ?= fasta
SECONDS ?= 600
fuzz: .venv/installed
	$(BIN)/python tests/fuzz/fuzz.py $(PARSER) --seconds $(SECONDS)

# Write who owns the repository on GitHub into every text that says so; OWNER= takes it out.
OWNER ?=
owner:
	$(PYTHON) .github/owner.py $(OWNER)

clean:
	rm -rf docs/_build demo/report.html demo/results demo/resources demo/logs demo/benchmarks demo/.holdfast demo/.snakemake \
		$(addprefix .test/,results resources logs benchmarks .holdfast .snakemake)

.venv/installed: envs/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --index-url $(TORCH_INDEX) $$(grep '^torch==' envs/lock.txt))
	$(BIN)/pip install --quiet --disable-pip-version-check -r envs/lock.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
