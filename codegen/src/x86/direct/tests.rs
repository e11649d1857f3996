//! Every row of the tables, with operands of all kinds that it takes, against the assembler of all instructions.

use std::collections::HashMap;
use std::fs;

use iced_x86::{Code, Encoder, EncodingKind, Instruction, OpCodeOperandKind as Kind, OpKind, Register};

use super::{encode, form};
use crate::x86::encode::memory;

/// Numbers of registers, with and without each bit that encodings treat apart.
const NUMBERS: [u32; 6] = [0, 4, 5, 7, 12, 13];

/// The same of vectors in AVX-512.
const VECTORS: [u32; 5] = [0, 5, 13, 18, 31];

/// An operand of an instruction.
#[derive(Clone, Copy, Debug)]
enum Operand {
    Register(Register),
    Memory(Register, Register, u8, i64),
    Byte(u8),
    Int(i32),
    Long(i32),
    Quad(u64),
    Near(u64),
}

/// Operands of a kind, of AVX-512 or not.
fn operands(kind: Kind, evex: bool) -> Vec<Operand> {
    let row = |first: Register| NUMBERS.map(|n| Operand::Register(first + n)).to_vec();
    let vectors = |first: Register| match evex {
        true => VECTORS.map(|n| Operand::Register(first + n)).to_vec(),
        false => row(first),
    };
    let masks = || [1, 6, 7].map(|n| Operand::Register(Register::K0 + n)).to_vec();
    let low = [Register::AL, Register::BL, Register::SPL, Register::DIL, Register::R8L, Register::R15L]
        .map(Operand::Register);
    let addresses = || {
        let bases = [Register::RAX, Register::RSP, Register::RBP, Register::R12, Register::R13];
        let indices = [(Register::None, 1), (Register::RBP, 8), (Register::R12, 4)];
        let places = bases.iter().flat_map(|&base| indices.map(|(index, scale)| (base, index, scale)));
        let all = places.flat_map(|(base, index, scale)| {
            [0, 60, 64, -128, 127, 128, -8192, 8128, -70_000]
                .map(|offset| Operand::Memory(base, index, scale, offset))
        });
        all.chain([Operand::Memory(Register::RIP, Register::None, 1, 0x1000)]).collect::<Vec<_>>()
    };
    match kind {
        Kind::r8_reg => low.to_vec(),
        Kind::r8_or_mem => [low.to_vec(), addresses()].concat(),
        Kind::r16_reg => row(Register::AX),
        Kind::r16_or_mem => [row(Register::AX), addresses()].concat(),
        Kind::r32_reg | Kind::r32_vvvv | Kind::r32_rm | Kind::r32_opcode => row(Register::EAX),
        Kind::r32_or_mem => [row(Register::EAX), addresses()].concat(),
        Kind::r64_reg | Kind::r64_vvvv | Kind::r64_rm | Kind::r64_opcode => row(Register::RAX),
        Kind::r64_or_mem => [row(Register::RAX), addresses()].concat(),
        Kind::xmm_reg | Kind::xmm_vvvv | Kind::xmm_rm | Kind::xmm_is4 => vectors(Register::XMM0),
        Kind::xmm_or_mem => [vectors(Register::XMM0), addresses()].concat(),
        Kind::ymm_reg | Kind::ymm_vvvv | Kind::ymm_rm | Kind::ymm_is4 => vectors(Register::YMM0),
        Kind::ymm_or_mem => [vectors(Register::YMM0), addresses()].concat(),
        Kind::zmm_reg | Kind::zmm_vvvv | Kind::zmm_rm => vectors(Register::ZMM0),
        Kind::zmm_or_mem => [vectors(Register::ZMM0), addresses()].concat(),
        Kind::k_reg | Kind::k_rm => masks(),
        Kind::mem => addresses(),
        Kind::imm8 => vec![Operand::Byte(0x9c)],
        Kind::imm32 => vec![Operand::Int(-5)],
        Kind::imm32sex64 => vec![Operand::Long(-5)],
        Kind::imm64 => vec![Operand::Quad(0x0123_4567_89ab_cdef)],
        Kind::br64_1 => [0, 60].map(Operand::Near).to_vec(),
        Kind::br64_4 => [0, 60, 70_000].map(Operand::Near).to_vec(),
        other => panic!("operands of kind {other:?}"),
    }
}

fn set(instruction: &mut Instruction, at: u32, operand: Operand) {
    let kind = match operand {
        Operand::Register(_) => OpKind::Register,
        Operand::Memory(base, index, scale, offset) => {
            return memory(instruction, at, base, index, scale, offset);
        }
        Operand::Byte(_) => OpKind::Immediate8,
        Operand::Int(_) => OpKind::Immediate32,
        Operand::Long(_) => OpKind::Immediate32to64,
        Operand::Quad(_) => OpKind::Immediate64,
        Operand::Near(_) => OpKind::NearBranch64,
    };
    instruction.set_op_kind(at, kind);
    match operand {
        Operand::Register(register) => instruction.set_op_register(at, register),
        Operand::Byte(value) => instruction.set_immediate8(value),
        Operand::Int(value) => instruction.set_immediate32(value as u32),
        Operand::Long(value) => instruction.set_immediate32to64(i64::from(value)),
        Operand::Quad(value) => instruction.set_immediate64(value),
        Operand::Near(target) => instruction.set_near_branch64(target),
        Operand::Memory(..) => {}
    }
}

/// Checks an instruction with all ways to fill its operands from `at` on. How many there are.
fn check(instruction: Instruction, choices: &[Vec<Operand>], at: u32) -> usize {
    if let Some(operands) = choices.get(at as usize) {
        let filled = operands.iter().map(|&operand| {
            let mut instruction = instruction;
            set(&mut instruction, at, operand);
            check(instruction, choices, at + 1)
        });
        return filled.sum();
    }
    let op_code = instruction.code().op_code();
    let masks = match op_code.can_use_op_mask_register() {
        true => [Register::None, Register::K1, Register::K6].as_slice(),
        false => &[Register::None],
    };
    let zeroing = |mask: Register| mask != Register::None && op_code.can_use_zeroing_masking();
    let mut checked = 0;
    for &mask in masks {
        for zeros in [false, true].into_iter().take(1 + usize::from(zeroing(mask))) {
            // What is written to memory cannot be zero where the mask is.
            if zeros && instruction.op0_kind() == OpKind::Memory {
                continue;
            }
            let mut masked = instruction;
            masked.set_op_mask(mask);
            masked.set_zeroing_masking(zeros);
            compare(&masked);
            checked += 1;
        }
    }
    checked
}

/// Holds an instruction's bytes to the assembler's.
fn compare(instruction: &Instruction) {
    let mut encoder = Encoder::new(64);
    encoder.encode(instruction, 0).unwrap_or_else(|e| panic!("{instruction:?}: {e}"));
    let offsets = encoder.get_constant_offsets();
    let mut expected = encoder.take_buffer();
    let mut found = Vec::new();
    let place = encode(instruction, &mut found).unwrap_or_else(|| panic!("{instruction:?} is refused"));
    if offsets.has_displacement() && instruction.memory_base() != Register::None {
        assert_eq!(place, offsets.displacement_offset(), "{instruction:?}");
    }
    if instruction.is_ip_rel_memory_operand() {
        // What is written here is the constant's place, later on.
        expected[offsets.displacement_offset()..][..4].copy_from_slice(&0x1000u32.to_le_bytes());
    }
    assert_eq!(found, expected, "{instruction:?}");
}

#[test]
fn bytes_are_those_of_the_assembler() {
    let mut checked = 0;
    let mut rows = 0;
    for code in Code::values().filter(|&code| form(code).is_some()) {
        let op_code = code.op_code();
        let evex = op_code.encoding() == EncodingKind::EVEX;
        let choices: Vec<_> = (0..op_code.op_count()).map(|at| operands(op_code.op_kind(at), evex)).collect();
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        checked += check(instruction, &choices, 0);
        rows += 1;
    }
    assert!(rows > 500 && checked > 1_000_000, "{rows} rows, {checked} instructions");
}

#[test]
fn every_instruction_that_is_chosen_has_a_row() {
    let names: HashMap<String, Code> = Code::values().map(|code| (format!("{code:?}"), code)).collect();
    let mut named = 0;
    for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/x86")).unwrap() {
        let path = file.unwrap().path();
        let Some("rs") = path.extension().and_then(|extension| extension.to_str()) else { continue };
        let text = fs::read_to_string(&path).unwrap();
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let Some(&code) = names.get(word).filter(|&&code| code != Code::INVALID) else { continue };
            assert!(form(code).is_some(), "{word} in {}", path.display());
            named += 1;
        }
    }
    assert!(named > 500, "{named} instructions");
}

#[test]
fn what_is_not_listed_is_refused() {
    let mut instruction = Instruction::default();
    instruction.set_code(Code::Nopd);
    let mut bytes = vec![1, 2];
    assert_eq!(encode(&instruction, &mut bytes), None);
    assert_eq!(bytes, [1, 2]);
}

#[test]
fn registers_that_vex_cannot_name_are_refused() {
    let mut instruction = Instruction::default();
    instruction.set_code(Code::VEX_Vaddps_ymm_ymm_ymmm256);
    for at in 0..3 {
        (0..3).for_each(|at| set(&mut instruction, at, Operand::Register(Register::YMM15)));
        assert!(encode(&instruction, &mut Vec::new()).is_some());
        set(&mut instruction, at, Operand::Register(Register::YMM16));
        assert_eq!(encode(&instruction, &mut Vec::new()), None);
    }
}
