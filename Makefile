# What people and continuous integration run. A missing tool fails; nothing is skipped.

.PHONY: check format-check lint audit docs test bench

check: format-check lint docs audit test

format-check:
	cargo fmt --all --check

lint:
	cargo clippy --workspace --all-targets --locked -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# What the tree itself must hold to: the lock file matches, unsafe code is where it may be.
audit:
	cargo metadata --locked --format-version 1 >/dev/null
	tests/audit.sh

test:
	tests/run.sh

bench:
	cargo bench --workspace
