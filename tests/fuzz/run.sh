#!/usr/bin/env bash
# Builds the coverage-guided targets and runs them: tests/fuzz/run.sh SECONDS
#
# The compiler of rust-toolchain.toml is enough: LLVM's coverage pass is among its stable options, and libFuzzer comes as
# source with a crate. Each target first runs with a fault planted in what it expects and has to find it.
set -euo pipefail

cd "$(dirname "$0")/../.."
readonly seconds="${1:?seconds for each target}"
readonly output="$PWD/target/fuzz"
command -v c++ >/dev/null || { printf 'fuzz: libFuzzer is C++: install g++ or clang\n' >&2; exit 1; }
host="$(rustc --version --verbose | sed -n 's/^host: //p')"
readonly host

# As cargo-fuzz sets them. A target triple is named so that build scripts go without.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
cargo build --locked --release --manifest-path tests/fuzz/Cargo.toml --target-dir "$output" --target "$host"

for source in tests/fuzz/src/bin/*.rs; do
    target="$(basename "$source" .rs)"
    program="$output/$host/release/$target"
    seeds="tests/fuzz/seeds/$target"
    corpus="$output/corpus/$target"
    mkdir -p "$corpus" "$output/artifacts"
    if NIGHTLATCH_FUZZ_PLANT=1 "$program" "$seeds" -runs=0 -artifact_prefix="$output/artifacts/planted-" \
        >"$output/planted-$target.log" 2>&1; then
        printf 'fuzz: %s did not find a planted fault: it checks nothing\n' "$target" >&2
        exit 1
    fi
    grep -q 'panicked at' "$output/planted-$target.log" \
        || { cat "$output/planted-$target.log" >&2; exit 1; }
    "$program" "$corpus" "$seeds" -max_total_time="$seconds" -max_len=4096 -print_final_stats=1 \
        -artifact_prefix="$output/artifacts/$target-"
done
