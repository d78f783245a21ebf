# Nightlatch: what a developer, a newcomer and the CI machine type. `make help` lists the targets.
#
# A fresh machine needs Rust (rustup reads rust-toolchain.toml), a C compiler and make. `make test` brings the rest:
# tests/clients.sh installs the real clients that the system tests drive, and the test runner.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo build test image packages package-test image-test conformance soak clients lint fmt advisories fuzz miri aarch64 bench bench-index bench-cipher bench-pool bench-wipe bench-nbd bench-s3

# Tools that tests/clients.sh builds live under the build directory, beside everything else that `cargo clean` removes.
TOOLS := $(CURDIR)/target/tools
export PATH := $(TOOLS)/bin:$(PATH)

# Extra arguments, as in `make demo DEMO="--json"` or `make test TEST="-E 'package(pool)'"`.
DEMO ?=
TEST ?=
# The image that `make image` builds.
PROFILE ?= server
# Seconds that each way of fuzzing takes under `make fuzz`.
FUZZ_SECONDS ?= 60
# A toolchain with the component miri, which no stable one has.
MIRI_TOOLCHAIN ?= nightly
# Seconds that each randomised suite takes under `make soak`.
SOAK_SECONDS ?= 1800

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Build the release programs and show a node being unlocked, serving, losing power and forgetting
	cargo build --locked --release -p node -p keyholder -p cli --bins
	./target/release/nightlatch demo $(DEMO)

build: ## Build every program as the tests use it
	cargo build --locked --workspace --bins

# The programs are built with the tests: each has tests of its own that run it.
test: clients ## Install the test clients and run every test
	cargo nextest run --locked --workspace $(TEST)
	cargo test --locked --workspace --doc --quiet

image: ## Build the appliance's image for PROFILE (server) from this tree, unsigned, into target/image/PROFILE
	rm -rf target/image/$(PROFILE)
	cargo run --locked --release -p cli --bin nightlatch -- image build $(PROFILE) target/image/$(PROFILE)

packages: ## Debian packages and a tarball of the release, the same bytes each time, into target/packages
	tests/clients.sh packages
	rm -rf target/packages
	systemd/packages/build.sh target/packages

package-test: clients build ## Build the packages twice, install, upgrade and purge them on a throw-away copy of this root (root; minutes)
	tests/clients.sh packages
	cargo nextest run --locked -p system-tests --profile packages $(TEST)

image-test: clients build ## Boot the image every way there is, in emulated machines: power cuts, tampering, Secure Boot (minutes)
	cargo nextest run --locked --workspace --profile image $(TEST)

conformance: build ## The public S3 suite against the demonstration: what passed and failed, by name (fetches the suite)
	tests/conformance/run.sh

soak: clients ## Every test, the randomised and crash suites for as long as SOAK_SECONDS each (half an hour)
	NIGHTLATCH_SOAK_SECONDS=$(SOAK_SECONDS) NIGHTLATCH_KILL_ROUNDS=200 \
		cargo nextest run --locked --workspace --profile soak $(TEST)

fuzz: ## Coverage-guided fuzzing of cipher and NBD head, and random batches on every cipher kernel, FUZZ_SECONDS each (a minute)
	tests/fuzz/run.sh $(FUZZ_SECONDS)
	NIGHTLATCH_SOAK_SECONDS=$(FUZZ_SECONDS) cargo test --locked -p aes-xts --test oracles -- --nocapture every_kernel

miri: ## The portable cipher under Miri, where a toolchain has it: MIRI_TOOLCHAIN (nightly)
	cargo +$(MIRI_TOOLCHAIN) miri test --locked -p aes-xts --test portable

aarch64: ## The cipher's aarch64 kernel on an emulated processor beside xts-mode and the portable one (installs qemu-user)
	tests/aarch64/run.sh

clients: ## Install the real clients that the system tests drive (idempotent)
	tests/clients.sh test

lint: ## Formatting, clippy with warnings denied, licences, bans and sources
	tests/clients.sh lint
	cargo fmt --all --check
	cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
	cargo fmt --manifest-path tests/aarch64/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo deny --locked check bans licenses sources

fmt: ## Format the tree
	cargo fmt --all

advisories: ## Known vulnerabilities in what the lock file names (fetches the advisory database)
	tests/clients.sh lint
	cargo deny --locked check advisories

bench: bench-cipher bench-index bench-pool bench-wipe bench-nbd bench-s3 ## Every bench; each writes target/bench/NAME.json

bench-cipher: ## Every cipher kernel beside AWS-LC, OpenSSL (the system's and the newest), GCM, hashes and the bound
	cargo run --locked --release -p benches --features rivals --bin cipher

bench-index: ## The index engine (redb) beside sled: durable puts in batches, gets, scan
	cargo run --locked --release -p benches --bin index

bench-pool: ## The pool, and a volume under its key, beside the device below: reads, writes, flushes, snapshots
	cargo run --locked --release -p benches --features storage --bin pool

bench-wipe: ## From power loss, lease end, line, kernel event or order to keys gone, all cores busy: 10,000 rounds each (root)
	cargo build --locked --release -p node -p keyholder --bins
	cargo run --locked --release -p benches --features custody --bin wipe

bench-nbd: ## Our NBD head, encrypted, beside nbdkit, qemu-nbd and nbd-server, in clear and LUKS: unix, TCP, TLS; memory and disk (root)
	tests/clients.sh bench
	cargo run --locked --release -p benches --features network-block --bin nbd

bench-s3: ## Our S3 head and store, encrypted and durable, beside garage, SeaweedFS and s3s-fs: 4K, 1M, 64M; 1, 8, 32 clients
	tests/clients.sh bench-s3
	cargo run --locked --release -p benches --features object-store --bin s3
