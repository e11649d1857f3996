//! Loads and stores of vectors, and of scalars in vector registers.

use iced_x86::Code::*;
use regalloc2::VReg;

use super::inst::{Arg, Mem, Width};
use super::lower::{Lower, byte};
use super::vector::part_of;
use crate::ssa::Type;

impl Lower<'_> {
    pub fn store_vector(&mut self, memory: Mem<VReg>, bytes: usize, of: Type, value: VReg) {
        if let Some(only) = self.mask_for(bytes, of) {
            let code = match of.element().bytes() {
                1 => EVEX_Vmovdqu8_zmmm512_k1z_zmm,
                2 => EVEX_Vmovdqu16_zmmm512_k1z_zmm,
                4 => EVEX_Vmovups_zmmm512_k1z_zmm,
                _ => EVEX_Vmovupd_zmmm512_k1z_zmm,
            };
            return self.push(code, &[Arg::Mem(memory), Arg::Use(value, self.whole), only]);
        }
        let (code, width) = match bytes {
            _ if part_of(bytes) == self.whole => (VEX_Vmovups_ymmm256_ymm, self.whole),
            32 => (EVEX_Vmovups_ymmm256_k1z_ymm, Width::Y),
            16 => (VEX_Vmovups_xmmm128_xmm, Width::X),
            8 => (VEX_Vmovsd_m64_xmm, Width::X),
            4 => (VEX_Vmovss_m32_xmm, Width::X),
            2 if self.is_wide() => {
                // As many steps as `vpextrw` takes, whose scaled displacement some emulators get wrong.
                let word = self.fresh(Type::I32);
                self.push(VEX_Vmovd_rm32_xmm, &[Arg::Def(word, Width::B4), Arg::Use(value, Width::X)]);
                return self.push(Mov_rm16_r16, &[Arg::Mem(memory), Arg::Use(word, Width::B2)]);
            }
            2 => {
                let args = [Arg::Mem(memory), Arg::Use(value, Width::X), byte(0)];
                return self.push(VEX_Vpextrw_r32m16_xmm_imm8, &args);
            }
            _ => {
                let args = [Arg::Mem(memory), Arg::Use(value, Width::X), byte(0)];
                return self.push(VEX_Vpextrb_r32m8_xmm_imm8, &args);
            }
        };
        self.push(code, &[Arg::Mem(memory), Arg::Use(value, width)]);
    }

    pub fn load_vector(&mut self, memory: Mem<VReg>, bytes: usize, of: Type, to: VReg) {
        if let Some(only) = self.mask_for(bytes, of) {
            let code = match of.element().bytes() {
                1 => EVEX_Vmovdqu8_zmm_k1z_zmmm512,
                2 => EVEX_Vmovdqu16_zmm_k1z_zmmm512,
                4 => EVEX_Vmovups_zmm_k1z_zmmm512,
                _ => EVEX_Vmovupd_zmm_k1z_zmmm512,
            };
            return self.push(code, &[Arg::Def(to, self.whole), Arg::Mem(memory), only]);
        }
        let (code, width) = match bytes {
            _ if part_of(bytes) == self.whole => (VEX_Vmovups_ymm_ymmm256, self.whole),
            32 => (EVEX_Vmovups_ymm_k1z_ymmm256, Width::Y),
            16 => (VEX_Vmovups_xmm_xmmm128, Width::X),
            8 => (VEX_Vmovsd_xmm_m64, Width::X),
            4 => (VEX_Vmovss_xmm_m32, Width::X),
            _ => {
                let code =
                    if bytes == 2 { VEX_Vpinsrw_xmm_xmm_r32m16_imm8 } else { VEX_Vpinsrb_xmm_xmm_r32m8_imm8 };
                let zero = self.zero(Type::F32);
                let args = [Arg::Def(to, Width::X), Arg::Use(zero, Width::X), Arg::Mem(memory), byte(0)];
                return self.push(code, &args);
            }
        };
        self.push(code, &[Arg::Def(to, width), Arg::Mem(memory)]);
    }

    /// Loads the lanes of 4 bytes that a mask has ones in.
    pub fn load_where(&mut self, memory: Mem<VReg>, mask: VReg, to: VReg) {
        let (mask, whole) = (Arg::Use(mask, self.whole), Arg::Def(to, self.whole));
        if !self.is_wide() {
            return self.push(VEX_Vmaskmovps_ymm_ymm_m256, &[whole, mask, Arg::Mem(memory)]);
        }
        self.push(EVEX_Vpmovd2m_kr_zmm, &[Arg::Mask, mask]);
        self.push(EVEX_Vmovups_zmm_k1z_zmmm512, &[whole, Arg::Mem(memory), Arg::OnlyWhere]);
    }

    /// The mask for the lanes that some bytes are, unless so many are loaded and stored without.
    fn mask_for(&mut self, bytes: usize, ty: Type) -> Option<Arg> {
        (!bytes.is_power_of_two()).then(|| Arg::Only(self.mask_of(bytes / ty.element().bytes())))
    }
}
