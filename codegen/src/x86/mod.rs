//! SSA to x86-64 with vectors of 256 bits (AVX2, FMA and BMI2, as in `x86-64-v3`) or of 512 (AVX-512 F, BW, DQ and VL,
//! as in `x86-64-v4`).
//!
//! ```text
//! SSA -> machine instructions (lower, scalar, vector) -> registers (allocate) -> bytes (encode)
//! ```
//!
//! A whole kernel becomes one function of the System V convention that calls nothing. Its constants stand
//! behind its code. What a kernel means does not change with the width: wider vectors do to more lanes what narrower
//! ones do to fewer.
//!
//! Instructions are chosen as AVX2 has them, and each is written in its AVX-512 form ([`evex`](evex::evex)) for the
//! wider vectors; only comparisons, blends and what moves lanes are chosen by the width.

mod allocate;
mod convert;
mod direct;
mod encode;
mod evex;
mod flags;
mod inst;
mod integers;
mod lanes;
mod lower;
mod masks;
mod memory;
mod pool;
mod registers;
mod scalar;
mod table;
mod vector;

pub use self::allocate::Allocations;
use crate::emit::Machine;
use crate::frames::Rules;
use crate::listing::Lines;
use crate::ssa::Function;

/// How many masks of lanes a function may have: there are eight registers, one of which means no mask, and one is for
/// comparisons.
pub const MASKS: usize = 6;

/// What a function becomes.
pub struct Assembled {
    /// Its code, and behind it its constants.
    pub bytes: Vec<u8>,
    /// Where the code ends.
    pub end: usize,
    /// Where the code of each line starts.
    pub lines: Lines,
    /// How it is left through its caller.
    pub rules: Rules,
}

/// The code of a function with the vectors of a machine, of 32 or 64 bytes. Code is aligned to a vector, so that the
/// constants behind it are aligned to their size.
pub fn compile(ssa: &Function, machine: Machine, known: &Allocations) -> Result<Assembled, String> {
    let (code, pool) = lower::lower(ssa, machine)?;
    let output = allocate::allocate(&code, known)?;
    encode::encode(ssa, &code, &output, &pool)
}
