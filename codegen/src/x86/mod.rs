//! SSA to x86-64 with 256-bit vectors: AVX2 and FMA, as in `x86-64-v3`.
//!
//! ```text
//! SSA -> machine instructions (lower, scalar, vector) -> registers (allocate) -> bytes (encode)
//! ```
//!
//! A whole kernel becomes one function of the System V convention that calls nothing. Its constants stand
//! behind its code. What a kernel means does not change with the width: vectors do to eight lanes what they do to four.

mod allocate;
mod convert;
mod encode;
mod flags;
mod inst;
mod integers;
mod lanes;
mod lower;
mod pool;
mod scalar;
mod table;
mod vector;

use crate::emit::Machine;
use crate::ssa::Function;

/// What the emitter has to know.
pub const MACHINE: Machine = Machine { vector_bytes: vector::BYTES, little_endian: true };

/// Code is aligned to this, so that the constants behind it are aligned to their size.
pub const ALIGN: u64 = 32;

/// The code of a function, and its text if there is a place for it.
pub fn compile(
    ssa: &Function,
    context: &mut regalloc2::Ctx,
    text: Option<&mut String>,
) -> Result<Vec<u8>, String> {
    let (code, pool) = lower::lower(ssa, vector::BYTES)?;
    let output = allocate::allocate(&code, context).map_err(|e| e.to_string())?;
    encode::encode(ssa, &code, output, &pool, text)
}
