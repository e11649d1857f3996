//! Machine code as text, each stretch of it below the line of the kernel that it is for.
//!
//! ```text
//! kernel -> SSA, instructions know their line -> code, with a table of lines -> decoded for the listing
//! ```
//!
//! The table is made only if the emitter was asked for lines, and the code is the same with it and without. A line comes
//! again wherever its code does: at the place that a load was moved to, in each copy of an unrolled loop, in the scalar
//! loop behind a vector loop. Scalar functions are expanded on the way, and all of an expansion is for the line of
//! the function.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;

use cranelift_codegen::Context;
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, OpKind};
use iced_x86::{SymbolResolver, SymbolResult};
use target_lexicon::Architecture;
use windlass_ir::loops::{Kernel, print_lines};

use crate::compile::{Backend, Code, Memory, lower};
use crate::emit::emit_with_lines;
use crate::error::Error;
use crate::isa::{self, SharedIsa, Target};
use crate::ssa::Line;
use crate::{cranelift, ssa};

/// Where in the code each line starts, in the order of the code.
pub type Lines = Vec<(u32, Line)>;

/// The machine instructions of a kernel, with vectors of at most so many bits. For x86-64, each stretch of them stands
/// below the line of the kernel's text that it is for, a comment; for other targets they are as Cranelift prints them.
pub fn asm_text(kernel: &Kernel, target: &Target, vector_bits: Option<usize>) -> Result<String, Error> {
    let isa: SharedIsa = isa::build(target, false, false)?;
    let backend = Backend::new(&*isa, vector_bits).for_kernel(kernel);
    let ssa = emit_with_lines(kernel, backend.machine(&*isa))?;
    match target.triple.architecture {
        Architecture::X86_64 => {
            let code = backend.compile(&ssa, &isa, &kernel.name, &mut Memory::new(Arc::default()))?;
            Ok(listing(&code, &print_lines(kernel)))
        }
        _ => other_text(kernel, &ssa, &isa),
    }
}

/// Instructions before they are bytes: there is no decoder for them.
fn other_text(kernel: &Kernel, ssa: &ssa::Function, isa: &SharedIsa) -> Result<String, Error> {
    let mut context = Context::for_function(cranelift::function(ssa, &**isa));
    let compiled = lower(&mut context, &**isa, true).map_err(|e| Error::Compile {
        kernel: kernel.name.clone(),
        message: cranelift_codegen::print_errors::pretty_error(&context.func, e),
    })?;
    Ok(compiled.vcode.unwrap_or_default())
}

/// Code as text.
fn listing(code: &Code, names: &[String]) -> String {
    let instructions: Vec<Instruction> =
        Decoder::with_ip(64, &code.bytes[..code.end], 0, DecoderOptions::NONE).into_iter().collect();
    let (mut blocks, mut constants) = (BTreeMap::new(), BTreeMap::new());
    for instruction in &instructions {
        if instruction.op0_kind() == OpKind::NearBranch64 {
            blocks.insert(instruction.near_branch_target(), 0);
        }
        if instruction.is_ip_rel_memory_operand() {
            let size = constants.entry(instruction.ip_rel_memory_address()).or_insert(0);
            *size = instruction.memory_size().size().max(*size);
        }
    }
    let mut symbols = HashMap::new();
    for (at, (&address, _)) in blocks.iter().enumerate() {
        symbols.insert(address, format!("block{at}"));
    }
    for (at, (&address, _)) in constants.iter().enumerate() {
        symbols.insert(address, format!("const{at}"));
    }
    let symbols = Arc::new(symbols);
    let mut formatter = IntelFormatter::with_options(Some(Box::new(Symbols(symbols.clone()))), None);
    formatter.options_mut().set_rip_relative_addresses(false);
    formatter.options_mut().set_show_branch_size(false);
    let mut out = String::new();
    let mut lines = code.lines.iter().peekable();
    for instruction in &instructions {
        if let Some(label) = symbols.get(&instruction.ip()) {
            let _ = writeln!(out, "{label}:");
        }
        while let Some((_, line)) = lines.next_if(|(start, _)| u64::from(*start) <= instruction.ip()) {
            let name = names.get(line.as_u32() as usize).map_or("", String::as_str);
            let _ = writeln!(out, "; {name}");
        }
        out.push_str("    ");
        formatter.format(instruction, &mut out);
        out.push('\n');
    }
    for (address, size) in constants {
        let bytes = code.bytes.get(address as usize..).unwrap_or_default();
        let words: Vec<String> = bytes[..size.min(bytes.len())].chunks(4).map(word).collect();
        let _ = match words.iter().all(|word| *word == words[0]) {
            true => writeln!(out, "{}: {} times {}", symbols[&address], words.len(), words[0]),
            false => writeln!(out, "{}: {}", symbols[&address], words.join(" ")),
        };
    }
    out
}

/// A constant's bytes as a number.
fn word(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

/// Names of blocks and constants.
struct Symbols(Arc<HashMap<u64, String>>);

impl SymbolResolver for Symbols {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _: u32,
        _: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        // Other numbers, such as displacements, are not places in the code.
        let is_place = instruction.near_branch_target() != 0 || instruction.is_ip_rel_memory_operand();
        self.0.get(&address).filter(|_| is_place).map(|name| SymbolResult::with_str(address, name))
    }
}

#[cfg(test)]
mod tests {
    use windlass_ir::loops::parse_kernel;

    use super::*;
    use crate::emit::emit;

    const KERNEL: &str = "
        kernel k(x: f32[40] in, y: f32[37] out) {
          local acc: f32[8] register
          vector for i0 in 0..8 {
            v0 = load x[i0]
            acc[i0] = v0
          }
          for i1 in 0..4 {
            vector for i2 in 0..8 {
              v1 = load acc[i2]
              v2 = load x[8*i1 + i2]
              v3 = fma v1 v2 v1
              acc[i2] = v3
            }
          }
          vector for i3 in 0..37 {
            v4 = load x[i3] if i3 - 3 in 0..30
            v5 = tanh v4
            y[i3] = v5
          }
        }";

    #[test]
    fn code_is_the_same_with_lines_and_without() {
        let kernel = parse_kernel(KERNEL).unwrap();
        let names = print_lines(&kernel);
        let target = Target::parse("x86_64-unknown-linux-gnu").unwrap();
        let isa: SharedIsa =
            isa::build(&Target { cpu: Some("x86-64-v4".to_string()), ..target }, true, false).unwrap();
        for bits in [128, 256, 512] {
            let backend = Backend::new(&*isa, Some(bits));
            let machine = backend.machine(&*isa);
            let [plain, traced] = [emit(&kernel, machine), emit_with_lines(&kernel, machine)].map(|ssa| {
                backend.compile(&ssa.unwrap(), &isa, "k", &mut Memory::new(Arc::default())).unwrap()
            });
            assert!(plain.bytes == traced.bytes, "{bits} bits");
            assert!(plain.lines.is_empty());
            // Every statement has code, but for the loads that became part of another's instruction, and what is only
            // of registers.
            let lines = &traced.lines;
            assert!(lines.is_sorted_by_key(|(start, _)| *start), "{bits} bits");
            for name in ["kernel k", "for i1", "v3 = fma", "v5 = tanh", "y[i3] = v5"] {
                let line = names.iter().position(|line| line.trim().starts_with(name)).unwrap();
                let found = lines.iter().any(|(_, found)| found.as_u32() as usize == line);
                assert!(found, "{bits} bits: {name}");
            }
        }
    }

    #[test]
    fn kernels_for_narrower_vectors_have_them() {
        let target = Target::parse("x86_64-unknown-linux-gnu").unwrap();
        let target = Target { cpu: Some("x86-64-v4".to_string()), ..target };
        let mut kernel = parse_kernel(KERNEL).unwrap();
        assert!(asm_text(&kernel, &target, None).unwrap().contains("zmm"));
        kernel.vector_bits = Some(256);
        let narrow = asm_text(&kernel, &target, None).unwrap();
        assert!(narrow.contains("ymm") && !narrow.contains("zmm"), "{narrow}");
        assert!(!asm_text(&kernel, &target, Some(128)).unwrap().contains("ymm"));
    }

    #[test]
    fn displacements_are_numbers() {
        // Every number that a block's address can be is a displacement too.
        let text = "
            kernel k(x: u8[1200] in, y: u8[1200] out) {
              for i0 in 0..4 {
                unroll for i1 in 0..300 {
                  v0 = load x[300*i0 + i1]
                  y[300*i0 + i1] = v0
                }
              }
            }";
        let kernel = parse_kernel(text).unwrap();
        let target = Target::parse("x86_64-unknown-linux-gnu").unwrap();
        let listed = asm_text(&kernel, &target, None).unwrap();
        let named = |line: &&str| line.contains('[') && line.contains("block") && !line.starts_with(';');
        assert!(listed.contains("block0:"));
        assert_eq!(listed.lines().find(named), None);
    }

    #[test]
    fn other_targets_are_listed_too() {
        let kernel = parse_kernel(KERNEL).unwrap();
        for triple in Target::TRIPLES {
            let text = asm_text(&kernel, &Target::parse(triple).unwrap(), None).unwrap();
            assert!(text.contains("block0:"), "{triple}: {text}");
        }
    }
}
