//! What the processor's flags can be asked, and the instructions that ask it.

use iced_x86::Code::{self, *};

/// A question to the flags that a comparison left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// Equal.
    E,
    /// Not equal.
    Ne,
    /// Less, signed.
    L,
    /// Less or equal, signed.
    Le,
    /// Greater, signed.
    G,
    /// Greater or equal, signed.
    Ge,
    /// Below, unsigned.
    B,
    /// Below or equal, unsigned.
    Be,
    /// Above, unsigned, or greater, of floats.
    A,
    /// Above or equal, unsigned, or greater or equal, of floats.
    Ae,
}

impl Flags {
    /// Whether it does not hold.
    pub fn opposite(self) -> Flags {
        match self {
            Flags::E => Flags::Ne,
            Flags::Ne => Flags::E,
            Flags::L => Flags::Ge,
            Flags::Le => Flags::G,
            Flags::G => Flags::Le,
            Flags::Ge => Flags::L,
            Flags::B => Flags::Ae,
            Flags::Be => Flags::A,
            Flags::A => Flags::Be,
            Flags::Ae => Flags::B,
        }
    }

    /// The instructions that jump if it holds, any distance and a short one; that set a byte to it; and that move 32
    /// or 64 bits if it holds.
    fn codes(self) -> [Code; 5] {
        match self {
            Flags::E => [Je_rel32_64, Je_rel8_64, Sete_rm8, Cmove_r32_rm32, Cmove_r64_rm64],
            Flags::Ne => [Jne_rel32_64, Jne_rel8_64, Setne_rm8, Cmovne_r32_rm32, Cmovne_r64_rm64],
            Flags::L => [Jl_rel32_64, Jl_rel8_64, Setl_rm8, Cmovl_r32_rm32, Cmovl_r64_rm64],
            Flags::Le => [Jle_rel32_64, Jle_rel8_64, Setle_rm8, Cmovle_r32_rm32, Cmovle_r64_rm64],
            Flags::G => [Jg_rel32_64, Jg_rel8_64, Setg_rm8, Cmovg_r32_rm32, Cmovg_r64_rm64],
            Flags::Ge => [Jge_rel32_64, Jge_rel8_64, Setge_rm8, Cmovge_r32_rm32, Cmovge_r64_rm64],
            Flags::B => [Jb_rel32_64, Jb_rel8_64, Setb_rm8, Cmovb_r32_rm32, Cmovb_r64_rm64],
            Flags::Be => [Jbe_rel32_64, Jbe_rel8_64, Setbe_rm8, Cmovbe_r32_rm32, Cmovbe_r64_rm64],
            Flags::A => [Ja_rel32_64, Ja_rel8_64, Seta_rm8, Cmova_r32_rm32, Cmova_r64_rm64],
            Flags::Ae => [Jae_rel32_64, Jae_rel8_64, Setae_rm8, Cmovae_r32_rm32, Cmovae_r64_rm64],
        }
    }

    /// Jumps if it holds.
    pub fn jump(self, short: bool) -> Code {
        self.codes()[usize::from(short)]
    }

    /// Sets a byte to 0 or 1.
    pub fn set(self) -> Code {
        self.codes()[2]
    }

    /// Moves if it holds.
    pub fn cmov(self, wide: bool) -> Code {
        self.codes()[3 + usize::from(wide)]
    }
}
