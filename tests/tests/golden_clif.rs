//! Emission: the Cranelift code that a kernel becomes.

use windlass_codegen::{Target, clif_text};
use windlass_ir::loops::{parse_kernel, verify_kernel};
use windlass_tests::golden::{self, Command};

/// `clif [--target TRIPLE]`: a kernel's function for the least processor of a target, x86-64 unless
/// another is named.
fn clif(command: &Command, input: &str) -> Result<String, String> {
    let kernel = parse_kernel(input).map_err(|error| error.to_string())?;
    verify_kernel(&kernel).map_err(|error| error.to_string())?;
    let triple = command.options("--target").first().copied().unwrap_or(Target::TRIPLES[0]);
    let target = Target::parse(triple).map_err(|error| error.to_string())?;
    clif_text(&kernel, &target).map_err(|error| error.to_string())
}

#[test]
fn golden_clif() {
    golden::check("clif", clif);
}
