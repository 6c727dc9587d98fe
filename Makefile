# The entry: every target is a few calls of cargo and of xtask (Rust, in xtask/). `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# local: a cluster on this machine; current: the current kubeconfig context.
CLUSTER ?= local
# Set to 1 to build the engine's image for NVIDIA GPUs too.
CUDA ?=
# Registry and path for images, for example registry.example/team.
PUSH ?=
# Registry and path that the demo takes images from with CLUSTER=current.
REGISTRY ?= $(PUSH)
PYTHON ?= python3
# Seconds of `make fuzz` in all.
FUZZ_SECONDS ?= 3600
# Options of bench-engine, for example --rounds 5.
BENCH ?=

CARGO_TEST := cargo test --release --locked
# By name out of the whole workspace: another selection of packages has other features, which builds everything again.
CLUSTER_TESTS := $(addprefix --test ,alerts cache chaos chart clients dashboards drains faults history input installations life lock notifications path rollouts scaling traces traps)
section = @printf '\n==== %s ====\n' "$(1)"

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: need-cluster-tools ## The whole path: cluster, operator, model, chat, metrics, autoscaling, alert (CLUSTER=current for your own)
	cargo xtask demo --cluster $(CLUSTER) $(if $(REGISTRY),--registry $(REGISTRY))

.PHONY: demo-down
demo-down: need-rust ## Remove everything that the demo started
	cargo xtask demo-down --cluster $(CLUSTER)

.PHONY: chaos
chaos: need-cluster-tools ## Faults on the local cluster, and which alerts fire and resolve when (FULL=1: default thresholds, a quarter of an hour; ONLY=name)
	cargo xtask chaos $(if $(FULL),--full) $(addprefix --only ,$(ONLY))

.PHONY: test
test: lint test-code test-cluster ## Everything: lint, tests of the code, end-to-end tests on the local cluster
	$(call section,make test: everything passed (lint; tests of the code; tests on the cluster))

.PHONY: test-code
test-code: need-rust ## Tests that need no cluster: pure, snapshots, mock API server, HTTP, golden logits
	$(call section,tests of the code)
	$(CARGO_TEST) --workspace

# A cluster that this target starts is stopped again, unless a test failed outside of CI: then it stays for a look.
.PHONY: test-cluster
test-cluster: need-cluster-tools ## End-to-end and chart tests on the local cluster
	$(call section,local cluster and images)
	@ours=no; if cargo xtask cluster status | grep -q 'No cluster runs'; then ours=yes; fi; \
	finish() { if [ $$ours = yes ]; then cargo xtask cluster down; fi; }; \
	if [ "$${CI:-}" = true ]; then trap finish EXIT; fi; \
	cargo xtask cluster up; \
	cargo xtask images --load; \
	printf '\n==== %s ====\n' 'tests on the cluster'; \
	$(CARGO_TEST) --workspace $(CLUSTER_TESTS) -- --ignored --nocapture --test-threads=1; \
	trap - EXIT; finish

# Apart from the others: it brings 300 MB of packages.
.PHONY: test-browser
test-browser: need-cluster-tools ## The Chainlit example in a headless Chromium, in front of the engine (needs a running local cluster for one of its tests)
	cargo build --release --locked --workspace --bins
	$(CARGO_TEST) --workspace --test chainlit -- --ignored --nocapture --test-threads=1

# Only this workspace's crates are instrumented.
.PHONY: fuzz
fuzz: need-rust ## Search for crashes with libFuzzer in everything that reads what outsiders send (FUZZ_SECONDS=3600 in all)
	@command -v c++ >/dev/null || { echo 'a C++ compiler is missing: apt-get install build-essential'; exit 1; }
	RUSTC_WORKSPACE_WRAPPER='$(CURDIR)/engine/fuzz/instrument.sh' cargo build --release --locked --package qwen-fuzz --features libfuzzer --bin qwen-fuzz
	@targets=($$(ls engine/fuzz/corpus)); \
	for target in "$${targets[@]}"; do \
	  printf '\n==== fuzz %s ====\n' "$$target"; \
	  mkdir -p "target/fuzz/$$target"; \
	  FUZZ_TARGET="$$target" target/release/qwen-fuzz "target/fuzz/$$target" "engine/fuzz/corpus/$$target" \
	    -artifact_prefix="target/fuzz/$$target-" -max_total_time=$$(($(FUZZ_SECONDS) / $${#targets[@]})) \
	    -rss_limit_mb=2048 -timeout=30 -max_len=8192 -print_final_stats=1; \
	done

.PHONY: lint
lint: need-rust ## Format, clippy, licences and advisories
	$(call section,lint)
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	@$(MAKE) deny

# Advisories come from a git repository that not every network reaches; the rest of the check needs no network.
.PHONY: deny
deny: need-rust ## Licences, sources and, where their database can be reached, advisories of dependencies
	@export PATH="$(CURDIR)/target/tools/bin:$$PATH"; \
	if ! command -v cargo-deny >/dev/null; then \
	  echo 'NOT CHECKED: licences and advisories of dependencies, for want of cargo-deny. To have them: make tools'; \
	elif timeout 60 cargo deny --log-level error fetch db; then \
	  cargo deny --locked check; \
	else \
	  echo 'NOT CHECKED: advisories, their database cannot be reached from here'; \
	  cargo deny --locked check bans licenses sources; \
	fi

.PHONY: tools
tools: need-rust ## Install cargo-deny into target/tools
	cargo install --locked --root target/tools cargo-deny

.PHONY: images
images: need-rust ## Build the images of operator and engine (PUSH=registry/path pushes them, CUDA=1 makes the engine's for GPUs too)
	@if [ -n "$(PUSH)" ]; then command -v go >/dev/null || { echo 'go is missing: pushing needs it, see https://go.dev/doc/install'; exit 1; }; fi
	@if [ -n "$(CUDA)" ]; then command -v nvcc >/dev/null || { echo "nvcc is missing: install CUDA's toolkit, 13.0 or newer, and put its bin folder on the PATH"; exit 1; }; fi
	cargo xtask images $(if $(PUSH),--push $(PUSH)) $(if $(CUDA),--cuda)

.PHONY: cluster-up
cluster-up: need-cluster-tools ## Start the local cluster
	cargo xtask cluster up

.PHONY: cluster-down
cluster-down: need-rust ## Stop the local cluster and remove what it left on the machine
	cargo xtask cluster down

.PHONY: generate
generate: need-rust ## Write the generated files again: CRDs in crds/ and in the chart, page of fields, API document, tables of metrics
	@mkdir -p crds target
	cargo run --quiet --release --locked --bin qwen-operator -- crds > target/crds.yaml
	mkdir -p crds charts/qwen-operator/files
	mv target/crds.yaml crds/qwen-operator.yaml
	cp crds/qwen-operator.yaml charts/qwen-operator/files/crds.yaml
	cargo run --quiet --release --locked --bin qwen-operator -- fields > docs/fields.md
	cargo run --quiet --release --locked --bin qwen-operator -- own-alerts > charts/qwen-operator/files/alerts.yaml
	mkdir -p charts/qwen-operator/files/dashboards
	for of in fleet operator; do cargo run --quiet --release --locked --bin qwen-operator -- dashboard $$of > charts/qwen-operator/files/dashboards/qwen-$$of.json; done
	UPDATE_EXPECT=1 $(CARGO_TEST) --workspace --test metrics

.PHONY: test-gpu
test-gpu: need-rust ## The engine's tests of its numbers on this machine's NVIDIA GPU (needs CUDA's toolkit)
	QWEN_TEST_DEVICE=cuda $(CARGO_TEST) -p qwen-engine --features cuda --target-dir target/cuda --test golden --test oracle
	QWEN_TEST_DEVICE=cuda $(CARGO_TEST) -p qwen-engine --features cuda --target-dir target/cuda --lib attention

.PHONY: golden
golden: ## Make the golden logits again with transformers (pinned Python packages, a virtual environment in target/)
	$(PYTHON) -m venv target/golden
	target/golden/bin/python -m pip install --quiet -r engine/tests/golden/requirements.txt
	target/golden/bin/python engine/tests/golden/make.py

.PHONY: bench-engine
bench-engine: need-rust ## Measure the engine on this machine's CPU, about ten minutes; the report goes to docs/benchmarks
	cargo xtask bench-engine $(BENCH)

.PHONY: bench-operator
bench-operator: need-cluster-tools ## Measure the operator with 300 and 1,000 services on pretended nodes, about ten minutes; the report goes to docs/benchmarks
	cargo xtask bench-operator $(BENCH)

.PHONY: need-rust
need-rust:
	@command -v cargo >/dev/null || { echo 'cargo is missing: install a Rust toolchain with rustup, see https://rustup.rs'; exit 1; }
	@command -v cc >/dev/null || { echo 'a C compiler is missing: apt-get install build-essential'; exit 1; }

.PHONY: need-cluster-tools
need-cluster-tools: need-rust
	@if [ "$(CLUSTER)" = local ]; then command -v go >/dev/null || { echo 'go is missing: the local cluster is built with it, see https://go.dev/doc/install'; exit 1; }; \
	else command -v kubectl >/dev/null && command -v helm >/dev/null || { echo 'CLUSTER=current needs kubectl and helm on the PATH'; exit 1; }; fi
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'python3 with venv is missing: apt-get install python3 python3-venv'; exit 1; }
