//! The instruction of an operation for each element type.

use iced_x86::Code::{self, *};

use crate::ssa::{Condition, Element, Op, Type};

/// The instruction for floats of a type: on f32 and f64 scalars, and on vectors of them.
pub fn float(ty: Type, codes: [Code; 4]) -> Code {
    let at = usize::from(ty.element() == Element::F64) + 2 * usize::from(ty.is_vector());
    codes[at]
}

/// The instruction for vectors of integers of 8, 16, 32 and 64 bits.
pub fn integer(ty: Type, codes: [Code; 4]) -> Option<Code> {
    let code = codes[ty.element().bytes().trailing_zeros() as usize];
    (code != INVALID).then_some(code)
}

/// An instruction of two operands, the second a register or memory.
pub fn two(op: Op, ty: Type) -> Option<Code> {
    if ty.is_float() {
        return Some(float(
            ty,
            match op {
                Op::Add => [
                    VEX_Vaddss_xmm_xmm_xmmm32,
                    VEX_Vaddsd_xmm_xmm_xmmm64,
                    VEX_Vaddps_ymm_ymm_ymmm256,
                    VEX_Vaddpd_ymm_ymm_ymmm256,
                ],
                Op::Sub => [
                    VEX_Vsubss_xmm_xmm_xmmm32,
                    VEX_Vsubsd_xmm_xmm_xmmm64,
                    VEX_Vsubps_ymm_ymm_ymmm256,
                    VEX_Vsubpd_ymm_ymm_ymmm256,
                ],
                Op::Mul => [
                    VEX_Vmulss_xmm_xmm_xmmm32,
                    VEX_Vmulsd_xmm_xmm_xmmm64,
                    VEX_Vmulps_ymm_ymm_ymmm256,
                    VEX_Vmulpd_ymm_ymm_ymmm256,
                ],
                Op::Div => [
                    VEX_Vdivss_xmm_xmm_xmmm32,
                    VEX_Vdivsd_xmm_xmm_xmmm64,
                    VEX_Vdivps_ymm_ymm_ymmm256,
                    VEX_Vdivpd_ymm_ymm_ymmm256,
                ],
                // The second operand where one is NaN or both are zeros.
                Op::SelectLess => [
                    VEX_Vminss_xmm_xmm_xmmm32,
                    VEX_Vminsd_xmm_xmm_xmmm64,
                    VEX_Vminps_ymm_ymm_ymmm256,
                    VEX_Vminpd_ymm_ymm_ymmm256,
                ],
                Op::SelectGreater => [
                    VEX_Vmaxss_xmm_xmm_xmmm32,
                    VEX_Vmaxsd_xmm_xmm_xmmm64,
                    VEX_Vmaxps_ymm_ymm_ymmm256,
                    VEX_Vmaxpd_ymm_ymm_ymmm256,
                ],
                Op::ZipLow => {
                    [INVALID, INVALID, VEX_Vunpcklps_ymm_ymm_ymmm256, VEX_Vunpcklpd_ymm_ymm_ymmm256]
                }
                Op::ZipHigh => {
                    [INVALID, INVALID, VEX_Vunpckhps_ymm_ymm_ymmm256, VEX_Vunpckhpd_ymm_ymm_ymmm256]
                }
                Op::And => [
                    VEX_Vandps_xmm_xmm_xmmm128,
                    VEX_Vandpd_xmm_xmm_xmmm128,
                    VEX_Vandps_ymm_ymm_ymmm256,
                    VEX_Vandpd_ymm_ymm_ymmm256,
                ],
                Op::Or => [
                    VEX_Vorps_xmm_xmm_xmmm128,
                    VEX_Vorpd_xmm_xmm_xmmm128,
                    VEX_Vorps_ymm_ymm_ymmm256,
                    VEX_Vorpd_ymm_ymm_ymmm256,
                ],
                Op::Xor => [
                    VEX_Vxorps_xmm_xmm_xmmm128,
                    VEX_Vxorpd_xmm_xmm_xmmm128,
                    VEX_Vxorps_ymm_ymm_ymmm256,
                    VEX_Vxorpd_ymm_ymm_ymmm256,
                ],
                _ => return None,
            },
        ));
    }
    let codes = match op {
        Op::Add => [
            VEX_Vpaddb_ymm_ymm_ymmm256,
            VEX_Vpaddw_ymm_ymm_ymmm256,
            VEX_Vpaddd_ymm_ymm_ymmm256,
            VEX_Vpaddq_ymm_ymm_ymmm256,
        ],
        Op::Sub => [
            VEX_Vpsubb_ymm_ymm_ymmm256,
            VEX_Vpsubw_ymm_ymm_ymmm256,
            VEX_Vpsubd_ymm_ymm_ymmm256,
            VEX_Vpsubq_ymm_ymm_ymmm256,
        ],
        Op::Mul => [INVALID, VEX_Vpmullw_ymm_ymm_ymmm256, VEX_Vpmulld_ymm_ymm_ymmm256, INVALID],
        Op::Dot2 => [INVALID, INVALID, VEX_Vpmaddwd_ymm_ymm_ymmm256, INVALID],
        Op::Min => {
            [VEX_Vpminsb_ymm_ymm_ymmm256, VEX_Vpminsw_ymm_ymm_ymmm256, VEX_Vpminsd_ymm_ymm_ymmm256, INVALID]
        }
        Op::Max => {
            [VEX_Vpmaxsb_ymm_ymm_ymmm256, VEX_Vpmaxsw_ymm_ymm_ymmm256, VEX_Vpmaxsd_ymm_ymm_ymmm256, INVALID]
        }
        Op::MinUnsigned => {
            [VEX_Vpminub_ymm_ymm_ymmm256, VEX_Vpminuw_ymm_ymm_ymmm256, VEX_Vpminud_ymm_ymm_ymmm256, INVALID]
        }
        Op::MaxUnsigned => {
            [VEX_Vpmaxub_ymm_ymm_ymmm256, VEX_Vpmaxuw_ymm_ymm_ymmm256, VEX_Vpmaxud_ymm_ymm_ymmm256, INVALID]
        }
        Op::And => [VEX_Vpand_ymm_ymm_ymmm256; 4],
        Op::Or => [VEX_Vpor_ymm_ymm_ymmm256; 4],
        Op::Xor => [VEX_Vpxor_ymm_ymm_ymmm256; 4],
        Op::Compare(Condition::Eq) => [
            VEX_Vpcmpeqb_ymm_ymm_ymmm256,
            VEX_Vpcmpeqw_ymm_ymm_ymmm256,
            VEX_Vpcmpeqd_ymm_ymm_ymmm256,
            VEX_Vpcmpeqq_ymm_ymm_ymmm256,
        ],
        Op::Compare(Condition::Gt) => [
            VEX_Vpcmpgtb_ymm_ymm_ymmm256,
            VEX_Vpcmpgtw_ymm_ymm_ymmm256,
            VEX_Vpcmpgtd_ymm_ymm_ymmm256,
            VEX_Vpcmpgtq_ymm_ymm_ymmm256,
        ],
        _ => return None,
    };
    integer(ty, codes)
}

/// A shift of vector lanes by a constant.
pub fn shift(op: Op, ty: Type) -> Option<Code> {
    integer(
        ty,
        match op {
            Op::Shl => [INVALID, VEX_Vpsllw_ymm_ymm_imm8, VEX_Vpslld_ymm_ymm_imm8, VEX_Vpsllq_ymm_ymm_imm8],
            Op::ShrUnsigned => {
                [INVALID, VEX_Vpsrlw_ymm_ymm_imm8, VEX_Vpsrld_ymm_ymm_imm8, VEX_Vpsrlq_ymm_ymm_imm8]
            }
            _ => [INVALID, VEX_Vpsraw_ymm_ymm_imm8, VEX_Vpsrad_ymm_ymm_imm8, INVALID],
        },
    )
}

/// The instruction that widens the low lanes of a vector.
pub fn extend(signed: bool, from: Type, to: Type) -> Option<Code> {
    Some(match (signed, from.element().bytes(), to.element().bytes()) {
        (true, 1, 2) => VEX_Vpmovsxbw_ymm_xmmm128,
        (true, 1, 4) => VEX_Vpmovsxbd_ymm_xmmm64,
        (true, 1, 8) => VEX_Vpmovsxbq_ymm_xmmm32,
        (true, 2, 4) => VEX_Vpmovsxwd_ymm_xmmm128,
        (true, 2, 8) => VEX_Vpmovsxwq_ymm_xmmm64,
        (true, 4, 8) => VEX_Vpmovsxdq_ymm_xmmm128,
        (false, 1, 2) => VEX_Vpmovzxbw_ymm_xmmm128,
        (false, 1, 4) => VEX_Vpmovzxbd_ymm_xmmm64,
        (false, 1, 8) => VEX_Vpmovzxbq_ymm_xmmm32,
        (false, 2, 4) => VEX_Vpmovzxwd_ymm_xmmm128,
        (false, 2, 8) => VEX_Vpmovzxwq_ymm_xmmm64,
        (false, 4, 8) => VEX_Vpmovzxdq_ymm_xmmm128,
        _ => return None,
    })
}
