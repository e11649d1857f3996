#!/usr/bin/env bash
# Makes the Python environment target/venv that the scripts of this folder run with, and prints its path.
# Does nothing when it is already made from the same requirements.txt. WINDLASS_VENV names another place;
# PYTHON another interpreter (3.11 or newer).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${WINDLASS_VENV:-$here/../../target/venv}
python=${PYTHON:-python3}
stamp=$venv/requirements.installed

if [ -x "$venv/bin/python" ] && cmp -s "$here/requirements.txt" "$stamp" && "$venv/bin/python" -c ''; then
    (cd "$venv" && pwd)
    exit 0
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup.sh: $python is older than Python 3.11 (set PYTHON to a newer one)" >&2
    exit 1
}

if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
    echo "setup.sh: $venv exists and is no Python environment; not replacing it" >&2
    exit 1
fi
rm -rf "$venv"
mkdir -p "$(dirname "$venv")"

# Debian splits ensurepip into python3-venv. Without it, the system's own pip fills the environment.
if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv "$venv"
    pip=("$venv/bin/python" -m pip)
elif "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --without-pip "$venv"
    pip=("$python" -m pip --python "$venv/bin/python")
else
    echo "setup.sh: $python has neither ensurepip nor pip (on Debian: apt-get install python3-venv)" >&2
    exit 1
fi

"${pip[@]}" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt" >&2
cp "$here/requirements.txt" "$stamp"
(cd "$venv" && pwd)
