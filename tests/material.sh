#!/usr/bin/env bash
# Makes the test material that is not checked in: the Python environment, the ONNX test suite and the whole
# models, in target/. What is there already, made by the same scripts, is kept.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv=$(tests/python/setup.sh)

# make DIR SCRIPT: fills target/DIR by tests/python/SCRIPT unless these very scripts filled it before.
make_material() {
    local dir=target/$1 script=tests/python/$2 stamp
    stamp=$(cat tests/python/requirements.txt "$script" $(find tests/python/models -name '*.py' | sort) | sha256sum)
    if [ "$(cat "$dir/made-by" 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    rm -rf "$dir"
    "$venv/bin/python" "$script" "$dir" >&2
    echo "$stamp" >"$dir/made-by"
}

make_material node_suite node_suite.py
make_material models make_models.py
