//! Listings: the machine code that a kernel becomes, below the lines it is for.

use windlass_codegen::{Target, asm_text};
use windlass_ir::loops::{parse_kernel, verify_kernel};
use windlass_tests::golden::{self, Command};

/// `asm --vectors BITS`: a kernel's function for x86-64-v4, with vectors of so many bits.
fn asm(command: &Command, input: &str) -> Result<String, String> {
    let kernel = parse_kernel(input).map_err(|error| error.to_string())?;
    verify_kernel(&kernel).map_err(|error| error.to_string())?;
    let target = Target::parse(Target::TRIPLES[0]).map_err(|error| error.to_string())?;
    let target = Target { cpu: Some("x86-64-v4".to_string()), ..target };
    let bits = command.options("--vectors").first().and_then(|bits| bits.parse().ok());
    asm_text(&kernel, &target, bits).map_err(|error| error.to_string())
}

#[test]
fn golden_asm() {
    golden::check("asm", asm);
}
