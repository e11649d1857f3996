#!/usr/bin/env bash
# Checks that need no tool but git: where unsafe code may be, how files open, what sentences may not stand.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
failed=0
complain() { # complain TITLE LINES
    if [ -n "$2" ]; then
        printf '%s:\n%s\n' "$1" "$2" >&2
        failed=1
    fi
}

sources() { git ls-files -- "$@" | grep -v '/generated\.rs$' || true; }

complain "crates without #![forbid(unsafe_code)]" "$(
    for crate in ir frontend passes windlass tests; do
        grep -q '^#!\[forbid(unsafe_code)\]' "$crate/src/lib.rs" || echo "$crate/src/lib.rs"
    done
)"
complain "unsafe blocks without a SAFETY comment in the lines above" "$(
    sources 'codegen/*.rs' 'runtime/*.rs' | while read -r file; do
        awk -v file="$file" '
            /unsafe *\{/ && (before ~ /SAFETY/) == 0 && $0 !~ /SAFETY/ { print file ":" NR ": " $0 }
            { third = second; second = first; first = $0; before = third second first }
        ' "$file"
    done
)"
complain "source files that do not open with //!" "$(
    sources '*.rs' | grep '/src/' | while read -r file; do
        [ "$(head -c 3 "$file")" = '//!' ] || echo "$file"
    done
)"
complain "allow attributes without a reason (use #[expect(lint, reason = ..)])" "$(
    sources '*.rs' | xargs grep -nE '#!?\[allow\(' | grep -v 'reason = ' || true
)"
complain "unfinished code" "$(sources '*.rs' | xargs grep -nE 'todo!\(|unimplemented!\(|dbg!\(|FIXME|XXX' || true)"
complain "ignored tests" "$(sources '*.rs' | xargs grep -nE '#\[ignore' || true)"
exit "$failed"
