#!/usr/bin/env bash
# Compares training steps with other systems on this machine, in one run; see training.py for the arguments.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=target/venv-training/bin/python
[ -x "$python" ] || python3 -m venv target/venv-training
"$python" -m pip install --quiet --disable-pip-version-check --requirement tests/peers/training-requirements.txt
cargo build --release --package windlass-tests --example training --locked
exec "$python" tests/peers/training.py --windlass target/release/examples/training "$@"
