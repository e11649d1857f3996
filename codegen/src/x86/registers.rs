//! What the assembler and debuggers call registers.

use cranelift_codegen::gimli::{self, X86_64};
use iced_x86::Register;
use regalloc2::PReg;

use super::inst::Width;

/// A general register by its number.
pub fn general(number: usize, width: Width) -> Register {
    let first = match width {
        Width::B1 => return BYTES[number],
        Width::B2 => Register::AX,
        Width::B4 => Register::EAX,
        Width::B8 | Width::X | Width::Y | Width::Z => Register::RAX,
    };
    first + number as u32
}

/// The low bytes of the general registers, which do not stand in a row.
const BYTES: [Register; 16] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::SPL,
    Register::BPL,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
];

/// The number that debuggers have for a general register.
pub fn dwarf(register: Register) -> gimli::Register {
    const NUMBERS: [gimli::Register; 16] = [
        X86_64::RAX,
        X86_64::RCX,
        X86_64::RDX,
        X86_64::RBX,
        X86_64::RSP,
        X86_64::RBP,
        X86_64::RSI,
        X86_64::RDI,
        X86_64::R8,
        X86_64::R9,
        X86_64::R10,
        X86_64::R11,
        X86_64::R12,
        X86_64::R13,
        X86_64::R14,
        X86_64::R15,
    ];
    NUMBERS[register as usize - Register::RAX as usize]
}

/// The part of an allocated register that an instruction names.
pub fn physical(preg: PReg, width: Width) -> Register {
    let number = preg.hw_enc();
    match width {
        Width::X => Register::XMM0 + number as u32,
        Width::Y => Register::YMM0 + number as u32,
        Width::Z => Register::ZMM0 + number as u32,
        Width::B1 | Width::B2 | Width::B4 | Width::B8 => general(number, width),
    }
}
