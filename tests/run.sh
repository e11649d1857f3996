#!/usr/bin/env bash
# Runs every test: makes the test material if it is absent, then the test binaries, then the documentation's
# examples, then the tests on random graphs once more with graphs that no run has had before. With arguments,
# which go to `cargo nextest run`, the fresh graphs are left out.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
nextest=0.9.143

# The system's cargo-nextest if there is one, else a pinned one of our own in target/tools.
if ! cargo nextest --version >/dev/null 2>&1; then
    export PATH="$PWD/target/tools/bin:$PATH"
    if ! cargo nextest --version >/dev/null 2>&1; then
        echo "installing cargo-nextest $nextest into target/tools" >&2
        cargo install cargo-nextest --version "$nextest" --locked --root target/tools >&2
    fi
fi

tests/material.sh
(
    # Fixed seeds first, whatever seed the fresh graphs are to have.
    [ $# -gt 0 ] || unset WINDLASS_SEED WINDLASS_GRAPHS
    cargo nextest run --workspace "$@"
)
cargo test --workspace --doc

if [ $# -eq 0 ]; then
    # 32 random bits: no two runs are likely to try the same graphs.
    export WINDLASS_SEED="${WINDLASS_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}"
    export WINDLASS_GRAPHS="${WINDLASS_GRAPHS:-500}"
    repeat="WINDLASS_SEED=$WINDLASS_SEED WINDLASS_GRAPHS=$WINDLASS_GRAPHS"
    repeat="$repeat cargo nextest run -p windlass-tests --test generated_code --test generated_passes"
    echo "$WINDLASS_GRAPHS fresh random graphs; to repeat: $repeat" >&2
    if ! cargo nextest run --workspace -E 'binary(generated_code) | binary(generated_passes)'; then
        echo "fresh random graphs failed; to repeat: $repeat" >&2
        exit 1
    fi
fi
