//! Instructions to bytes, for those that kernels are made of. An assembler of all instructions makes tables of them
//! before it writes the first, which takes longer than writing a small model's code.
//!
//! ```text
//! [66 or F2 or F3] [REX] [0F, 0F 38, 0F 3A] opcode [ModRM [SIB] [displacement]] [immediate]      general
//! VEX of 2 or 3 bytes                       opcode [ModRM [SIB] [displacement]] [immediate]      AVX2
//! EVEX of 4 bytes                           opcode [ModRM [SIB] [displacement]] [immediate]      AVX-512
//! ```
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, chapter 2. Tests hold every row of
//! the tables, [general and AVX2](table) and [AVX-512](wide), to the assembler's bytes, and every instruction that the
//! files beside this one name to a row.

mod table;
#[cfg(test)]
mod tests;
mod wide;

use iced_x86::{Code, Instruction, OpKind, Register};

/// How the bytes of an instruction begin, and the width of what it works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// On 8 or 32 bits, or on 64 by default.
    I32,
    /// On 16 bits.
    I16,
    /// On 64 bits, as REX.W says.
    I64,
    /// VEX, 128 bits or a scalar; and with the bit W.
    V128,
    V128W,
    /// VEX, 256 bits; and with the bit W.
    V256,
    V256W,
    /// EVEX, 128 bits or a scalar, 256 bits, 512 bits; and with the bit W. With the bytes of memory that it reads or
    /// writes, which are the unit of a displacement of one byte.
    E128(u8),
    E128W(u8),
    E256(u8),
    E512(u8),
    E512W(u8),
}

/// The opcode's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Map {
    One,
    F,
    F38,
    F3A,
}

impl Map {
    /// Its number in VEX and EVEX.
    fn number(self) -> u8 {
        match self {
            Map::One => 0,
            Map::F => 1,
            Map::F38 => 2,
            Map::F3A => 3,
        }
    }
}

/// The prefix that is a part of the opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefix {
    Bare,
    P66,
    F3,
    F2,
}

impl Prefix {
    /// Its number in VEX and EVEX.
    fn number(self) -> u8 {
        match self {
            Prefix::Bare => 0,
            Prefix::P66 => 1,
            Prefix::F3 => 2,
            Prefix::F2 => 3,
        }
    }
}

/// What encodes each operand, in their order: ModRM's register (R), its register or memory (M), VEX's register (V), the
/// opcode's low bits (O), the high half of a byte behind (4). Immediates come behind. Where ModRM's register is no operand,
/// a digit stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Roles {
    Alone,
    O,
    Rm,
    Mr,
    Rvm,
    Rmv,
    Rvm4,
    M(u8),
    Vm(u8),
    /// A distance of a byte, and of 4.
    NearByte,
    Near,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    kind: Kind,
    map: Map,
    prefix: Prefix,
    opcode: u8,
    roles: Roles,
}

/// What stands in ModRM's register or memory.
#[derive(Clone, Copy)]
enum Place {
    Register(u8),
    Memory { base: Base, index: Option<u8>, scale: u8, displacement: i32 },
}

#[derive(Clone, Copy)]
enum Base {
    Register(u8),
    /// The end of the instruction.
    Rip,
}

/// Appends an instruction of code that starts at address 0. Where its displacement is, or else its end; none of one that
/// is not listed here, of which nothing is written.
pub(super) fn encode(instruction: &Instruction, bytes: &mut Vec<u8>) -> Option<usize> {
    let start = bytes.len();
    let written = write(instruction, bytes);
    if written.is_none() {
        bytes.truncate(start);
    }
    written
}

fn write(instruction: &Instruction, bytes: &mut Vec<u8>) -> Option<usize> {
    let form = form(instruction.code())?;
    let number = |at: u32| number(instruction.op_register(at));
    let place = |at: u32| place(instruction, at);
    let (reg, vex, rm) = match form.roles {
        Roles::Alone | Roles::Near | Roles::NearByte => (0, 0, None),
        Roles::O => (0, 0, Some(place(0)?)),
        Roles::Rm => (number(0)?, 0, Some(place(1)?)),
        Roles::Mr => (number(1)?, 0, Some(place(0)?)),
        Roles::Rvm | Roles::Rvm4 => (number(0)?, number(1)?, Some(place(2)?)),
        Roles::Rmv => (number(0)?, number(2)?, Some(place(1)?)),
        Roles::M(digit) => (digit, 0, Some(place(0)?)),
        Roles::Vm(digit) => (digit, number(0)?, Some(place(1)?)),
    };
    // The numbers' fourth bits, and a register's fifth.
    let (b, x) = match rm {
        Some(Place::Register(register)) => (register >> 3 & 1, register >> 4),
        Some(Place::Memory { base: Base::Register(base), index, .. }) => (base >> 3, index.unwrap_or(0) >> 3),
        Some(Place::Memory { base: Base::Rip, .. }) | None => (0, 0),
    };
    let wide = matches!(form.kind, Kind::V128W | Kind::V256W | Kind::E128W(_) | Kind::E512W(_));
    let not = |bit: u8| bit & 1 ^ 1;
    // In what a displacement of a byte counts.
    let mut unit = 1;
    match form.kind {
        Kind::I32 | Kind::I16 | Kind::I64 => {
            if form.kind == Kind::I16 {
                bytes.push(0x66);
            }
            match form.prefix {
                Prefix::Bare => {}
                Prefix::P66 => bytes.push(0x66),
                Prefix::F3 => bytes.push(0xf3),
                Prefix::F2 => bytes.push(0xf2),
            }
            let rex = u8::from(form.kind == Kind::I64) << 3 | (reg >> 3) << 2 | x << 1 | b;
            // The low bytes of rsp, rbp, rsi and rdi are named with REX alone.
            let low = |at| {
                instruction.op_kind(at) == OpKind::Register
                    && matches!(
                        instruction.op_register(at),
                        Register::SPL | Register::BPL | Register::SIL | Register::DIL
                    )
            };
            if rex != 0 || (0..instruction.op_count()).any(low) {
                bytes.push(0x40 | rex);
            }
            match form.map {
                Map::One => {}
                Map::F => bytes.push(0x0f),
                Map::F38 => bytes.extend([0x0f, 0x38]),
                Map::F3A => bytes.extend([0x0f, 0x3a]),
            }
        }
        Kind::V128 | Kind::V128W | Kind::V256 | Kind::V256W => {
            // There are sixteen registers.
            let third = if let Some(Place::Register(register)) = rm { register } else { 0 };
            if (reg | vex | third) > 15 {
                return None;
            }
            let long = matches!(form.kind, Kind::V256 | Kind::V256W);
            let prefix = form.prefix.number();
            let last = u8::from(wide) << 7 | (!vex & 15) << 3 | u8::from(long) << 2 | prefix;
            if form.map == Map::F && !wide && x == 0 && b == 0 {
                bytes.extend([0xc5, not(reg >> 3) << 7 | last]);
            } else {
                let map = form.map.number();
                bytes.extend([0xc4, not(reg >> 3) << 7 | not(x) << 6 | not(b) << 5 | map, last]);
            }
        }
        Kind::E128(size) | Kind::E128W(size) | Kind::E256(size) | Kind::E512(size) | Kind::E512W(size) => {
            unit = i32::from(size);
            let length = match form.kind {
                Kind::E512(_) | Kind::E512W(_) => 2,
                Kind::E256(_) => 1,
                _ => 0,
            };
            let mask = match instruction.op_mask() {
                Register::None => 0,
                mask => self::number(mask)?,
            };
            let zeros = u8::from(instruction.zeroing_masking());
            let high = not(reg >> 3) << 7 | not(x) << 6 | not(b) << 5 | not(reg >> 4) << 4;
            bytes.extend([
                0x62,
                high | form.map.number(),
                u8::from(wide) << 7 | (!vex & 15) << 3 | 1 << 2 | form.prefix.number(),
                zeros << 7 | length << 5 | not(vex >> 4) << 3 | mask,
            ]);
        }
    }
    let mut displaced = None;
    match (form.roles, rm) {
        (Roles::O, Some(Place::Register(register))) => bytes.push(form.opcode | register & 7),
        (_, rm) => {
            bytes.push(form.opcode);
            if let Some(rm) = rm {
                displaced = modrm(reg, rm, unit, bytes);
            }
        }
    }
    match form.roles {
        Roles::Near | Roles::NearByte => {
            let size = if form.roles == Roles::Near { 4 } else { 1 };
            let end = bytes.len() + size;
            let distance = (instruction.near_branch64() as i64 - end as i64) as i32;
            if i8::try_from(distance).is_err() && size == 1 {
                return None;
            }
            bytes.extend_from_slice(&distance.to_le_bytes()[..size]);
        }
        Roles::Rvm4 => bytes.push(number(3)? << 4),
        _ => {}
    }
    for at in 0..instruction.op_count() {
        match instruction.op_kind(at) {
            OpKind::Immediate8 => bytes.push(instruction.immediate8()),
            OpKind::Immediate32 => bytes.extend(instruction.immediate32().to_le_bytes()),
            OpKind::Immediate32to64 => bytes.extend((instruction.immediate32to64() as i32).to_le_bytes()),
            OpKind::Immediate64 => bytes.extend(instruction.immediate64().to_le_bytes()),
            _ => {}
        }
    }
    Some(displaced.unwrap_or(bytes.len()))
}

/// The encoding of an instruction; none of one that is not listed.
fn form(code: Code) -> Option<Form> {
    table::form(code).or_else(|| wide::form(code))
}

/// The number of a register in encodings.
fn number(register: Register) -> Option<u8> {
    let register = register as u32;
    // Rows of registers in the assembler's list: the low bytes, first those of ax to bx, then those of sp to r15.
    let rows = [
        (Register::AL, 0, 4),
        (Register::SPL, 4, 12),
        (Register::AX, 0, 16),
        (Register::EAX, 0, 16),
        (Register::RAX, 0, 16),
        (Register::XMM0, 0, 32),
        (Register::YMM0, 0, 32),
        (Register::ZMM0, 0, 32),
        (Register::K0, 0, 8),
    ];
    let within = |&(first, number, count): &(Register, u32, u32)| {
        let at = register.checked_sub(first as u32)?;
        (at < count).then_some((number + at) as u8)
    };
    rows.iter().rev().find_map(within)
}

fn place(instruction: &Instruction, at: u32) -> Option<Place> {
    match instruction.op_kind(at) {
        OpKind::Register => Some(Place::Register(number(instruction.op_register(at))?)),
        OpKind::Memory => Some(Place::Memory {
            base: match instruction.memory_base() {
                Register::RIP => Base::Rip,
                base => Base::Register(number(base)?),
            },
            index: match instruction.memory_index() {
                Register::None => None,
                index => Some(number(index)?),
            },
            scale: instruction.memory_index_scale().trailing_zeros() as u8,
            displacement: i32::try_from(instruction.memory_displacement64() as i64).ok()?,
        }),
        _ => None,
    }
}

/// Appends ModRM and what belongs to it. Where the displacement is, if there is one.
fn modrm(reg: u8, rm: Place, unit: i32, bytes: &mut Vec<u8>) -> Option<usize> {
    let reg = (reg & 7) << 3;
    match rm {
        Place::Register(register) => {
            bytes.push(0xc0 | reg | register & 7);
            None
        }
        Place::Memory { base: Base::Rip, displacement, .. } => {
            bytes.push(reg | 5);
            bytes.extend(displacement.to_le_bytes());
            Some(bytes.len() - 4)
        }
        Place::Memory { base: Base::Register(base), index, scale, displacement } => {
            // rbp and r13 have no form without a displacement; rsp and r12 have none without SIB.
            let units = i8::try_from(displacement / unit).ok().filter(|_| displacement % unit == 0);
            let (displacement, size) = match units {
                Some(0) if base & 7 != 5 => (0, 0),
                Some(units) => (i32::from(units), 1),
                None => (displacement, 4),
            };
            let mode = [0, 0x40, 0, 0, 0x80][size] | reg;
            match index {
                None if base & 7 != 4 => bytes.push(mode | base & 7),
                _ => bytes.extend([mode | 4, scale << 6 | (index.unwrap_or(4) & 7) << 3 | base & 7]),
            }
            bytes.extend_from_slice(&displacement.to_le_bytes()[..size]);
            (size > 0).then_some(bytes.len() - size)
        }
    }
}
