#!/usr/bin/env bash
# Runs every test: makes the test material if it is absent, then the test binaries, then the documentation's
# examples. Arguments go to `cargo nextest run`.
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
cargo nextest run --workspace "$@"
cargo test --workspace --doc
