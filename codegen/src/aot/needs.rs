//! What a processor must have to run a variant, as bits of the words that `cpuid` and `xgetbv` give.

use cranelift_codegen::isa::TargetIsa;

use crate::error::Error;
use crate::isa;

/// The words that are asked for.
pub(super) const WORDS: usize = 6;

/// `ecx` of leaf 1.
pub(super) const BASIC: usize = 0;
/// `ebx` of leaf 7.
pub(super) const EXTENDED_B: usize = 1;
/// `ecx` of leaf 7.
pub(super) const EXTENDED_C: usize = 2;
/// `eax` of leaf 7, subleaf 1.
pub(super) const EXTENDED_1A: usize = 3;
/// `ecx` of leaf 0x8000_0001.
pub(super) const AMD: usize = 4;
/// The registers that the operating system saves: `xgetbv` of register 0, or 0 where there is none.
pub(super) const SAVED: usize = 5;

/// In `BASIC`: the operating system has enabled `xgetbv`.
pub(super) const OSXSAVE: u32 = 1 << 27;

/// Where the bit of each of Cranelift's instruction sets is.
const BITS: [(&str, usize, u32); 19] = [
    ("has_sse3", BASIC, 0),
    ("has_ssse3", BASIC, 9),
    ("has_fma", BASIC, 12),
    ("has_cmpxchg16b", BASIC, 13),
    ("has_sse41", BASIC, 19),
    ("has_sse42", BASIC, 20),
    ("has_popcnt", BASIC, 23),
    ("has_avx", BASIC, 28),
    ("has_bmi1", EXTENDED_B, 3),
    ("has_avx2", EXTENDED_B, 5),
    ("has_bmi2", EXTENDED_B, 8),
    ("has_avx512f", EXTENDED_B, 16),
    ("has_avx512dq", EXTENDED_B, 17),
    ("has_avx512vl", EXTENDED_B, 31),
    ("has_avx512vbmi", EXTENDED_C, 1),
    ("has_avx512vnni", EXTENDED_C, 11),
    ("has_avx512bitalg", EXTENDED_C, 12),
    ("has_avx_vnni", EXTENDED_1A, 4),
    ("has_lzcnt", AMD, 5),
];

/// In `BASIC`: conversions of f16, which code with vectors of 256 bits and more has, and Cranelift no name for.
const F16C: u32 = 1 << 29;

/// In `EXTENDED_B`: AVX-512 F and BW, which every processor with other parts of AVX-512 has that code is made for.
const AVX512F_BW: u32 = 1 << 16 | 1 << 30;

/// In `SAVED`: the 128-bit and 256-bit registers.
const YMM: u32 = 0x06;

/// In `SAVED`: mask registers and the 512-bit registers.
const ZMM: u32 = 0xe0;

/// The bits that must be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs(pub [u32; WORDS]);

impl Needs {
    /// What code for an instruction set of x86-64 needs.
    pub fn new(isa: &dyn TargetIsa) -> Result<Needs, Error> {
        let mut words = [0; WORDS];
        for flag in isa.isa_flags() {
            if flag.as_bool() != Some(true) {
                continue;
            }
            let Some(&(name, word, bit)) = BITS.iter().find(|(name, _, _)| *name == flag.name) else {
                return Err(Error::Module(format!("no bit of `cpuid` is known for {}", flag.name)));
            };
            words[word] |= 1 << bit;
            if name.starts_with("has_avx") || name == "has_fma" {
                words[SAVED] |= YMM;
            }
            if name.starts_with("has_avx512") {
                words[SAVED] |= ZMM;
                words[EXTENDED_B] |= AVX512F_BW;
            }
        }
        if isa::vector_bits(isa) > 128 {
            words[BASIC] |= F16C;
        }
        Ok(Needs(words))
    }

    /// How much of a processor it uses: of two variants that fit, that which uses more is better.
    pub fn rank(&self, isa: &dyn TargetIsa) -> (usize, bool, u32) {
        let bits = self.0.iter().map(|word| word.count_ones()).sum();
        (isa::vector_bits(isa), isa::has_byte_products(isa), bits)
    }
}

#[cfg(test)]
mod tests;
