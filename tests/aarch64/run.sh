#!/bin/bash
# Builds the cipher for aarch64, without a C toolchain, and compares it on an emulated processor: tests/aarch64/run.sh
set -euo pipefail
cd "$(dirname "$0")"

target=aarch64-unknown-linux-musl
linker=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/rust-lld

command -v qemu-aarch64 >/dev/null || {
    echo "aarch64: installing qemu-user" >&2
    apt-get update >/dev/null
    apt-get install -y --no-install-recommends qemu-user >/dev/null
}
rustup target list --installed | grep -qx "$target" || rustup target add "$target"

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-../../target/aarch64}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=$linker
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUSTFLAGS="-C linker-flavor=ld.lld -C link-self-contained=yes"
cargo build --locked --release --target "$target"
exec qemu-aarch64 -cpu max "$CARGO_TARGET_DIR/$target/release/aarch64-tests"
