# Every target installs what it needs and this machine lacks; see scripts/install-missing.

# rustup puts cargo there, and asks for a new shell before it is on the PATH.
export PATH := $(PATH):$(HOME)/.cargo/bin
BUILT := $(or $(CARGO_TARGET_DIR),target)/debug/tenantd

.PHONY: help run build test check bench bench-router

help: ## What can be made
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

run: build ## Build, and start `tenantd dev` (more arguments: make run ARGS="--listen 127.0.0.1:7500")
	@exec ./tenantd dev $(ARGS)

build: ## Build, and link ./tenantd
	@scripts/install-missing run
	cargo build --locked
	@ln -sfn $(BUILT) tenantd

test: ## Run all tests, on a PostgreSQL cluster and an S3 server of their own
	@scripts/install-missing test
	@# Many tests wait for a lease or a lock rather than compute.
	@[ -e .venv ] || export TENANTD_TEST_WITHOUT_PYTHON=yes; set -x; RUST_TEST_THREADS=4 cargo test --locked

check: ## Format, lints, and the lints of the protobufs
	@scripts/install-missing check
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	node_modules/.bin/buf lint proto

bench: bench-router ## Measure everything, side by side with what it is measured against

bench-router: ## Measure the router (only some rows: make bench-router ROWS="resolve zipf")
	@scripts/install-missing bench
	cargo bench --locked --bench router -- $(ROWS)
