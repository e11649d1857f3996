//! Functions of an object that ask the processor what it is.
//!
//! Cranelift has no instruction for it, so two functions without a branch are assembled here; what is asked, and what
//! follows from it, is written in Cranelift's IR.

use cranelift_codegen::cursor::{Cursor, FuncCursor};
use cranelift_codegen::gimli::X86_64;
use cranelift_codegen::gimli::write::CallFrameInstruction;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    self, AbiParam, BlockArg, Function, InstBuilder, MemFlagsData, Signature, StackSlotData, StackSlotKind,
    types,
};
use cranelift_codegen::isa::CallConv;
use cranelift_module::{FuncId, Linkage, Module};
use iced_x86::Code::{self, *};
use iced_x86::{Encoder, Instruction, MemoryOperand, Register};

use super::entry::begin;
use super::needs::{AMD, BASIC, EXTENDED_1A, EXTENDED_B, EXTENDED_C, Needs, OSXSAVE, SAVED, WORDS};
use super::unit::Unit;
use crate::error::Error;
use crate::frames::{Frame, Rules};

/// The functions that ask.
#[derive(Clone, Copy)]
pub(super) struct Processor {
    /// `void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t answer[4])`
    cpuid: FuncId,
    /// `uint32_t xgetbv(void)`, of register 0
    xgetbv: FuncId,
}

impl Processor {
    /// Defines them. Their names begin with that of the model.
    pub fn define(unit: &mut Unit, name: &str) -> Result<Processor, Error> {
        let call_conv = unit.call_conv();
        let mut signature = Signature::new(call_conv);
        signature.params.extend([types::I32, types::I32, types::I64].map(AbiParam::new));
        let cpuid = assemble(unit, &format!("{name}_cpuid"), &signature, cpuid(call_conv))?;
        let mut signature = Signature::new(call_conv);
        signature.returns.push(AbiParam::new(types::I32));
        let xgetbv = assemble(unit, &format!("{name}_xgetbv"), &signature, xgetbv())?;
        Ok(Processor { cpuid, xgetbv })
    }

    /// Asks for all words. The cursor then stands in another block.
    pub fn ask(&self, unit: &mut Unit, cursor: &mut FuncCursor<'_>) -> [ir::Value; WORDS] {
        let slot = StackSlotData::new(StackSlotKind::ExplicitSlot, 16, 3);
        let slot = cursor.func.create_sized_stack_slot(slot);
        let cpuid = unit.module.declare_func_in_func(self.cpuid, cursor.func);
        let xgetbv = unit.module.declare_func_in_func(self.xgetbv, cursor.func);
        let flags = MemFlagsData::trusted();
        // The answer's registers: eax, ebx, ecx.
        let ask = |cursor: &mut FuncCursor<'_>, leaf: u32, subleaf: i64| {
            let answer = cursor.ins().stack_addr(types::I64, slot, 0);
            let leaf = cursor.ins().iconst(types::I32, i64::from(leaf));
            let subleaf = cursor.ins().iconst(types::I32, subleaf);
            cursor.ins().call(cpuid, &[leaf, subleaf, answer]);
            [0, 4, 8].map(|at| cursor.ins().load(types::I32, flags, answer, at))
        };
        // Of a leaf that there is not, the answer is that of another: it counts for nothing.
        let reaches = |cursor: &mut FuncCursor<'_>, last: ir::Value, leaf: u32, word: ir::Value| {
            let leaf = cursor.ins().iconst(types::I32, i64::from(leaf));
            let there = cursor.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, last, leaf);
            let nothing = cursor.ins().iconst(types::I32, 0);
            cursor.ins().select(there, word, nothing)
        };
        let mut words = [None; WORDS];
        let [last, ..] = ask(cursor, 0, 0);
        let [.., basic] = ask(cursor, 1, 0);
        words[BASIC] = Some(basic);
        let [last_subleaf, b, c] = ask(cursor, 7, 0);
        let [last_subleaf, b, c] = [last_subleaf, b, c].map(|word| reaches(cursor, last, 7, word));
        (words[EXTENDED_B], words[EXTENDED_C]) = (Some(b), Some(c));
        let [a, ..] = ask(cursor, 7, 1);
        words[EXTENDED_1A] = Some(reaches(cursor, last_subleaf, 1, a));
        let [last, ..] = ask(cursor, 0x8000_0000, 0);
        let [.., amd] = ask(cursor, 0x8000_0001, 0);
        words[AMD] = Some(reaches(cursor, last, 0x8000_0001, amd));
        // Where the system has not enabled it, `xgetbv` is an undefined instruction.
        let [enabled, done] = [(); 2].map(|()| cursor.func.dfg.make_block());
        let saved = cursor.func.dfg.append_block_param(done, types::I32);
        let none = cursor.ins().iconst(types::I32, 0);
        let bit = cursor.ins().iconst(types::I32, i64::from(OSXSAVE));
        let bit = cursor.ins().band(basic, bit);
        cursor.ins().brif(bit, enabled, &[], done, &[BlockArg::Value(none)]);
        cursor.func.layout.append_block(enabled);
        cursor.goto_bottom(enabled);
        let call = cursor.ins().call(xgetbv, &[]);
        let found = cursor.func.dfg.first_result(call);
        cursor.ins().jump(done, &[BlockArg::Value(found)]);
        cursor.func.layout.append_block(done);
        cursor.goto_bottom(done);
        words[SAVED] = Some(saved);
        words.map(|word| word.unwrap_or(none))
    }
}

/// Defines `int32_t NAME(uint32_t word...)`: the position, counted from 1, of the first variant all of whose bits are
/// set in the words, or -1.
pub(super) fn define_decision(
    unit: &mut Unit,
    symbol: &str,
    linkage: Linkage,
    variants: &[Needs],
) -> Result<FuncId, Error> {
    let mut signature = Signature::new(unit.call_conv());
    signature.params.extend([AbiParam::new(types::I32); WORDS]);
    signature.returns.push(AbiParam::new(types::I32));
    let id = unit.declare(symbol, linkage, &signature)?;
    let mut func = Function::with_name_signature(ir::UserFuncName::default(), signature);
    let (block, words) = begin(&mut func);
    let mut cursor = FuncCursor::new(&mut func).at_bottom(block);
    let mut chosen = cursor.ins().iconst(types::I32, i64::from(u32::MAX));
    for (position, needs) in variants.iter().enumerate().rev() {
        let mut missing = cursor.ins().iconst(types::I32, 0);
        for (&word, &needed) in words.iter().zip(&needs.0).filter(|(_, needed)| **needed != 0) {
            let needed = cursor.ins().iconst(types::I32, i64::from(needed));
            let found = cursor.ins().band(word, needed);
            let lacking = cursor.ins().bxor(found, needed);
            missing = cursor.ins().bor(missing, lacking);
        }
        let own = cursor.ins().iconst(types::I32, position as i64 + 1);
        chosen = cursor.ins().select(missing, chosen, own);
    }
    cursor.ins().return_(&[chosen]);
    unit.define(id, func, symbol)?;
    Ok(id)
}

/// An instruction, and how the function is left from behind it on, if that changes.
type Step = (Instruction, Option<CallFrameInstruction>);

/// `cpuid` keeps what callers want back, `rbx`, in a register and uses no stack.
fn cpuid(call_conv: CallConv) -> Vec<Step> {
    let (leaf, subleaf, answer) = match call_conv {
        CallConv::WindowsFastcall => (Register::ECX, Register::EDX, Register::R8),
        _ => (Register::EDI, Register::ESI, Register::RDX),
    };
    let store = |at: i64, from| {
        let to = MemoryOperand::with_base_displ(Register::R8, at);
        (Instruction::with2(Mov_rm32_r32, to, from).unwrap_or_default(), None)
    };
    let (keep, kept) =
        (CallFrameInstruction::Register(X86_64::RBX, X86_64::R9), CallFrameInstruction::Restore(X86_64::RBX));
    vec![
        (two(Mov_r64_rm64, Register::R8, answer), None),
        (two(Mov_r64_rm64, Register::R9, Register::RBX), Some(keep)),
        (two(Mov_r32_rm32, Register::EAX, leaf), None),
        (two(Mov_r32_rm32, Register::ECX, subleaf), None),
        (Instruction::with(Cpuid), None),
        store(0, Register::EAX),
        store(4, Register::EBX),
        store(8, Register::ECX),
        store(12, Register::EDX),
        (two(Mov_r64_rm64, Register::RBX, Register::R9), Some(kept)),
        (Instruction::with(Retnq), None),
    ]
}

fn xgetbv() -> Vec<Step> {
    [two(Xor_r32_rm32, Register::ECX, Register::ECX), Instruction::with(Xgetbv), Instruction::with(Retnq)]
        .map(|instruction| (instruction, None))
        .to_vec()
}

fn two(code: Code, to: Register, from: Register) -> Instruction {
    Instruction::with2(code, to, from).unwrap_or_default()
}

fn assemble(unit: &mut Unit, symbol: &str, signature: &Signature, steps: Vec<Step>) -> Result<FuncId, Error> {
    let mut encoder = Encoder::new(64);
    let mut at = 0;
    let mut rules = Rules::new();
    for (instruction, rule) in steps {
        let length = encoder.encode(&instruction, at);
        at += length.map_err(|e| Error::Module(format!("{symbol}: {e}")))? as u64;
        rules.extend(rule.map(|rule| (at as u32, rule)));
    }
    unit.define_code(symbol, signature, 16, &encoder.take_buffer(), Frame::Rules(rules))
}

#[cfg(all(test, target_arch = "x86_64", unix))]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::isa::{self, Target};

    /// Holds the words to what the compiler's own functions say, then decides for the words of each line.
    const MAIN: &str = r#"
#include <cpuid.h>
#include <stdint.h>
#include <stdio.h>
void ask(uint32_t *words);
int decide(uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t);
static uint32_t leaf(uint32_t leaf, uint32_t subleaf, int at) {
    uint32_t r[4];
    if (!__get_cpuid_count(leaf, subleaf, r, r + 1, r + 2, r + 3)) return 0;
    return r[at];
}
int main(void) {
    uint32_t w[6] = {0}, saved = 0, high;
    ask(w);
    if (leaf(1, 0, 2) >> 27 & 1) __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    uint32_t last = leaf(7, 0, 0);
    uint32_t own[6] = {leaf(1, 0, 2), leaf(7, 0, 1), leaf(7, 0, 2), last ? leaf(7, 1, 0) : 0,
                       leaf(0x80000001, 0, 2), saved};
    for (int i = 0; i < 6; i++) if (w[i] != own[i]) return 2 + i;
    while (scanf("%x %x %x %x %x %x", w, w + 1, w + 2, w + 3, w + 4, w + 5) == 6)
        printf("%d\n", decide(w[0], w[1], w[2], w[3], w[4], w[5]));
    return 0;
}
"#;

    fn object(needs: &[Needs]) -> Vec<u8> {
        let mut unit = Unit::new(isa::least(&Target::host().triple, true).unwrap(), "processor").unwrap();
        define_decision(&mut unit, "decide", Linkage::Export, needs).unwrap();
        let processor = Processor::define(&mut unit, "own").unwrap();
        let mut signature = Signature::new(unit.call_conv());
        signature.params.push(AbiParam::new(types::I64));
        let id = unit.declare("ask", Linkage::Export, &signature).unwrap();
        let mut func = Function::with_name_signature(ir::UserFuncName::default(), signature);
        let (block, params) = begin(&mut func);
        let mut cursor = FuncCursor::new(&mut func).at_bottom(block);
        for (at, word) in processor.ask(&mut unit, &mut cursor).into_iter().enumerate() {
            cursor.ins().store(MemFlagsData::trusted(), word, params[0], 4 * at as i32);
        }
        cursor.ins().return_(&[]);
        unit.define(id, func, "ask").unwrap();
        unit.finish().unwrap()
    }

    #[test]
    fn processors_that_lack_anything_get_the_next_variant() {
        let needs = ["cascadelake", "x86-64-v4", "x86-64-v3"].map(|cpu| {
            let target = Target { cpu: Some(cpu.to_string()), ..Target::host() };
            Needs::new(&*isa::build(&target, false, true).unwrap()).unwrap()
        });
        // A processor with everything, with only what the best variant needs, without each bit of that, and with
        // everything but one bit.
        let everything = Needs([u32::MAX; WORDS]);
        let mut processors = vec![everything, Needs::default(), needs[0], needs[1], needs[2]];
        for (word, bit) in (0..WORDS).flat_map(|word| (0..32).map(move |bit| (word, 1u32 << bit))) {
            for full in [needs[0], everything] {
                let mut words = full.0;
                words[word] &= !bit;
                processors.push(Needs(words));
            }
        }
        let folder = std::env::temp_dir().join(format!("windlass-processor-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("processor.o"), object(&needs)).unwrap();
        std::fs::write(folder.join("main.c"), MAIN).unwrap();
        let cc = Command::new("cc")
            .args(["-Wall", "-Werror", "main.c", "processor.o", "-o", "main"])
            .current_dir(&folder)
            .output()
            .expect("the tests of object files need a C compiler, `cc`");
        assert!(cc.status.success(), "{}", String::from_utf8_lossy(&cc.stderr));
        let mut main =
            Command::new(folder.join("main")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = main.stdin.take().unwrap();
        for Needs(words) in &processors {
            writeln!(input, "{}", words.map(|word| format!("{word:x}")).join(" ")).unwrap();
        }
        drop(input);
        let output = main.wait_with_output().unwrap();
        assert!(output.status.success(), "word {:?} differs from the compiler's", output.status.code());
        let found: Vec<i32> =
            String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(found.len(), processors.len());
        assert_eq!(found[..5], [1, -1, 1, 2, 3]);
        for (Needs(words), found) in processors.iter().zip(&found) {
            let fits = |needs: &Needs| needs.0.iter().zip(words).all(|(need, word)| need & !word == 0);
            let expected = needs.iter().position(fits).map_or(-1, |position| position as i32 + 1);
            assert_eq!(*found, expected, "{words:x?}");
        }
        assert!([1, 2, 3, -1].iter().all(|result| found.contains(result)));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
