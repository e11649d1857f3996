#!/usr/bin/env bash
# Compares Windlass with other engines on this machine, in one run; see compare.py for the arguments.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tests/material.sh
target/venv/bin/pip install --quiet --disable-pip-version-check --requirement tests/peers/requirements.txt
cargo build --release --package windlass --locked
cargo build --release --locked --manifest-path tests/peers/engines/Cargo.toml --target-dir target/peers
exec target/venv/bin/python tests/peers/compare.py "$@"
