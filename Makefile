# `make` lists what there is. Each target sets up what it needs; what is there already is left alone.

SHELL := /bin/bash
.DEFAULT_GOAL := help

TARGET := $(or $(CARGO_TARGET_DIR),target)
SETUP := integration-tests/setup
VERSIONS := 14 15 16 17 18

# Which PostgreSQL the tests run against, such as `make test TIDEGATE_PG=18`; the machine's own where none is named.
TIDEGATE_PG ?=
export TIDEGATE_PG
ifeq ($(TIDEGATE_PG),)
unexport TIDEGATE_PG
endif

.PHONY: help demo test check bench test-matrix fmt postgres grpcurl pgbouncer cargo-deny

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: postgres ## a temporary PostgreSQL, a small shop, its changes as they come; DEMO_ARGS='--changes 20' ends after 20
	cargo build --workspace --bins
	@$(TARGET)/debug/tidegate demo $(DEMO_ARGS)

test: postgres grpcurl pgbouncer ## every test, against one version of PostgreSQL; TIDEGATE_PG=18 chooses it
	cargo build --workspace --all-targets
	cargo test --workspace

check: cargo-deny ## formatting, lints, documentation, structure, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D rustdoc::broken_intra_doc_links' cargo doc --workspace --no-deps --document-private-items
	cargo test --workspace --test tidy
	$(TARGET)/tools/bin/cargo-deny --all-features check licenses bans sources

bench: postgres ## every benchmark case in release, or CASE=drain|latency|memory|fanout|mirror|shapes|shape-join|…; fails where a target is missed
	cargo build --release --workspace --bins
	@$(TARGET)/release/bench $(CASE)

test-matrix: grpcurl pgbouncer ## the tests against PostgreSQL 14, 15, 16, 17 and 18
	cargo build --workspace --all-targets
	@for version in $(VERSIONS); do \
	  $(SETUP)/postgres.sh $$version && echo "== PostgreSQL $$version" && \
	  TIDEGATE_PG=$$version cargo test --workspace || exit 1; \
	done

fmt: ## formats the code
	cargo fmt --all

postgres: ## server programs of PostgreSQL, where there are none
	@$(SETUP)/postgres.sh $(TIDEGATE_PG)

grpcurl: ## grpcurl, for the tests
	@$(SETUP)/grpcurl.sh

pgbouncer: ## PgBouncer, for one test; where it cannot be had, that test is skipped
	@$(SETUP)/pgbouncer.sh

cargo-deny: ## cargo-deny, for `make check`
	@$(SETUP)/cargo-deny.sh
