# Two commands matter: `make quickstart` and `make test`. Everything that is downloaded or built lives outside the
# checkout, in $LAMPYRIS_CACHE (default ~/.cache/lampyris).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
LAMPYRIS_CACHE ?= $(HOME)/.cache/lampyris
export LAMPYRIS_CACHE
export CARGO_TARGET_DIR ?= $(LAMPYRIS_CACHE)/target
BIN := $(CARGO_TARGET_DIR)/debug
# Every cargo call goes through this: it names libtorch, and torch-sys rebuilds whenever that name changes.
CARGO := LIBTORCH=$$(scripts/libtorch.sh) cargo

.PHONY: help quickstart build test lint test-long bench-peer clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

build: ## both programs: lampyris and lampyris-rank
	$(CARGO) build --workspace --bins

quickstart: ## set everything up and train a small DeepSeek-style MoE on real text
	@scripts/quickstart.sh

lint: ## rustfmt and clippy, warnings are errors
	cargo fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings

test: build ## everything that CI runs
	$(MAKE) lint
	$(CARGO) test --workspace --no-fail-fast

test-long: build ## longer grids, fuzzing, peers (downloads transformers)
	$(CARGO) test --workspace --no-fail-fast -- --include-ignored

bench-peer: build ## a step of reference_moe beside transformers' (downloads torch and transformers)
	@LIBTORCH=$$(scripts/libtorch.sh) scripts/bench_step.sh

clean: ## remove build outputs (the libtorch folder stays)
	rm -rf $(CARGO_TARGET_DIR)
