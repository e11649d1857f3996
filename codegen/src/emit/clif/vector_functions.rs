//! Each primitive scalar function as instructions on vectors, where there are some.
//!
//! A value narrower than the body's widest takes the low lanes of a vector of its own type, so
//! conversions widen from there and narrow to there. A bool is a mask whose lanes have any width.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{self, InstBuilder, types};
use windlass_ir::{DType, ScalarFn};

use super::Emitter;
use super::lanes::vector_type;
use super::scalar::int_condition;

impl Emitter<'_> {
    /// A function as vector instructions, or `None` if there are none for it. `count` is the second
    /// operand if that is the same known constant in every lane.
    pub(super) fn vector_function(
        &mut self,
        region: usize,
        f: ScalarFn,
        dtype: DType,
        args: &[ir::Value],
        count: Option<u64>,
    ) -> Option<ir::Value> {
        let (a, b) = (args[0], args.get(1).copied().unwrap_or(args[0]));
        match f {
            ScalarFn::Select => {
                let (a, b, c) = match dtype {
                    DType::Bool => self.same_masks(region, args[0], args[1], args[2]),
                    _ => (self.mask(region, args[0], dtype.size()), args[1], args[2]),
                };
                let condition = self.as_type(region, self.func.dfg.value_type(b), a);
                Some(self.at(region, |ins| ins.bitselect(condition, b, c)))
            }
            ScalarFn::Bitcast(to) => Some(self.as_type(region, vector_type(to), a)),
            ScalarFn::Cast(to) if to == dtype => Some(a),
            ScalarFn::Cast(to) => self.vector_cast(region, dtype, to, a),
            _ if dtype == DType::Bool => {
                let (a, b, _) = self.same_masks(region, a, b, b);
                if f == ScalarFn::Eq {
                    let differ = self.at(region, |ins| ins.bxor(a, b));
                    return Some(self.at(region, |ins| ins.bnot(differ)));
                }
                Some(self.at(region, |ins| match f {
                    ScalarFn::And => ins.band(a, b),
                    ScalarFn::Or => ins.bor(a, b),
                    ScalarFn::Xor | ScalarFn::Ne => ins.bxor(a, b),
                    ScalarFn::Not => ins.bnot(a),
                    ScalarFn::Lt => ins.band_not(b, a),
                    ScalarFn::Gt => ins.band_not(a, b),
                    ScalarFn::Le => ins.bor_not(b, a),
                    ScalarFn::Ge => ins.bor_not(a, b),
                    _ => unreachable!("{f} is not defined on bool"),
                }))
            }
            ScalarFn::Min | ScalarFn::Max
                if dtype.is_float() && count.is_some_and(|c| is_plain(dtype, c)) =>
            {
                // The constant is neither NaN nor a zero, so one comparison decides: NaN stays. This is the
                // form that is selected as one instruction.
                let first = match f {
                    ScalarFn::Min => self.at(region, |ins| ins.fcmp(FloatCC::LessThan, b, a)),
                    _ => self.at(region, |ins| ins.fcmp(FloatCC::LessThan, a, b)),
                };
                let first = self.as_type(region, vector_type(dtype), first);
                Some(self.at(region, |ins| ins.bitselect(first, b, a)))
            }
            _ if dtype.is_float() => self.float_function(region, f, args),
            _ => self.vector_int_function(region, f, dtype, a, b, count),
        }
    }

    fn vector_int_function(
        &mut self,
        region: usize,
        f: ScalarFn,
        dtype: DType,
        a: ir::Value,
        b: ir::Value,
        count: Option<u64>,
    ) -> Option<ir::Value> {
        let signed = dtype.is_signed_int();
        let size = dtype.size();
        Some(match f {
            ScalarFn::Add => self.at(region, |ins| ins.iadd(a, b)),
            ScalarFn::Sub => self.at(region, |ins| ins.isub(a, b)),
            ScalarFn::Mul if size > 1 => self.at(region, |ins| ins.imul(a, b)),
            ScalarFn::Min if size < 8 => {
                self.at(region, |ins| if signed { ins.smin(a, b) } else { ins.umin(a, b) })
            }
            ScalarFn::Max if size < 8 => {
                self.at(region, |ins| if signed { ins.smax(a, b) } else { ins.umax(a, b) })
            }
            ScalarFn::Neg => self.at(region, |ins| ins.ineg(a)),
            ScalarFn::Abs if !signed => a,
            ScalarFn::Abs => self.at(region, |ins| ins.iabs(a)),
            ScalarFn::And => self.at(region, |ins| ins.band(a, b)),
            ScalarFn::Or => self.at(region, |ins| ins.bor(a, b)),
            ScalarFn::Xor => self.at(region, |ins| ins.bxor(a, b)),
            ScalarFn::Not => self.at(region, |ins| ins.bnot(a)),
            ScalarFn::Shl | ScalarFn::Shr if count.is_some_and(|c| c < 8 * size as u64) => {
                let count = self.bits_for(region, count?, types::I32);
                self.at(region, |ins| match (f, signed) {
                    (ScalarFn::Shl, _) => ins.ishl(a, count),
                    (_, true) => ins.sshr(a, count),
                    (_, false) => ins.ushr(a, count),
                })
            }
            ScalarFn::Eq | ScalarFn::Ne | ScalarFn::Lt | ScalarFn::Le | ScalarFn::Gt | ScalarFn::Ge
                if size < 8 || signed || matches!(f, ScalarFn::Eq | ScalarFn::Ne) =>
            {
                let condition = int_condition(f, signed)?;
                self.at(region, |ins| ins.icmp(condition, a, b))
            }
            _ => return None,
        })
    }

    /// A mask in lanes of this many bytes.
    pub(super) fn mask(&mut self, region: usize, mask: ir::Value, size: usize) -> ir::Value {
        let have = self.func.dfg.value_type(mask).lane_type().bytes() as usize;
        let ints = [types::I8X16, types::I16X8, types::I32X4, types::I64X2];
        let int = ints[have.trailing_zeros() as usize];
        let mask = self.as_type(region, int, mask);
        match have.cmp(&size) {
            std::cmp::Ordering::Equal => mask,
            std::cmp::Ordering::Less => {
                let wider = self.at(region, |ins| ins.swiden_low(mask));
                self.mask(region, wider, size)
            }
            std::cmp::Ordering::Greater => {
                let narrower = match have {
                    8 => self.low_halves(region, mask),
                    _ => self.at(region, |ins| ins.snarrow(mask, mask)),
                };
                self.mask(region, narrower, size)
            }
        }
    }

    /// The low halves of two 64-bit lanes, as the low 32-bit lanes.
    fn low_halves(&mut self, region: usize, vector: ir::Value) -> ir::Value {
        let low: [ir::Value; 2] = [0u8, 1].map(|lane| {
            let word = self.at(region, |ins| ins.extractlane(vector, lane));
            self.at(region, |ins| ins.ireduce(types::I32, word))
        });
        let first = self.at(region, |ins| ins.splat(types::I32X4, low[0]));
        self.at(region, |ins| ins.insertlane(first, low[1], 1))
    }

    /// Masks in lanes of one width, the widest.
    fn same_masks(
        &mut self,
        region: usize,
        a: ir::Value,
        b: ir::Value,
        c: ir::Value,
    ) -> (ir::Value, ir::Value, ir::Value) {
        let sizes = [a, b, c].map(|v| self.func.dfg.value_type(v).lane_type().bytes() as usize);
        let widest = sizes.into_iter().max().unwrap_or(1);
        (self.mask(region, a, widest), self.mask(region, b, widest), self.mask(region, c, widest))
    }

    fn vector_cast(&mut self, region: usize, from: DType, to: DType, x: ir::Value) -> Option<ir::Value> {
        if matches!(from, DType::F16 | DType::BF16) || matches!(to, DType::F16 | DType::BF16) {
            return None;
        }
        if to == DType::Bool {
            let zero = self.bits_for(region, 0, vector_type(from));
            return Some(self.at(region, |ins| match from.is_float() {
                true => ins.fcmp(FloatCC::NotEqual, x, zero),
                false => ins.icmp(IntCC::NotEqual, x, zero),
            }));
        }
        if from == DType::Bool {
            let mask = self.mask(region, x, to.size());
            let ty = vector_type(to);
            let mask = self.as_type(region, ty, mask);
            let one = windlass_ir::Tensor::from_f64s(to, &[], &[1.0]);
            let mut bits = [0u8; 8];
            bits[..to.size()].copy_from_slice(one.bytes());
            let one = self.bits_for(region, u64::from_ne_bytes(bits), ty);
            return Some(self.at(region, |ins| ins.band(mask, one)));
        }
        match (from, to) {
            (DType::F32, DType::F64) => Some(self.at(region, |ins| ins.fvpromote_low(x))),
            (DType::F64, DType::F32) => Some(self.at(region, |ins| ins.fvdemote(x))),
            (DType::F32, DType::I32) => Some(self.at(region, |ins| ins.fcvt_to_sint_sat(types::I32X4, x))),
            (DType::F32, DType::U32) => Some(self.at(region, |ins| ins.fcvt_to_uint_sat(types::I32X4, x))),
            (DType::F32, _) if to.size() < 4 => {
                let word = self.at(region, |ins| ins.fcvt_to_sint_sat(types::I32X4, x));
                let (low, high) = to.int_range();
                let low = self.bits_for(region, u64::from(low as u32), types::I32X4);
                let high = self.bits_for(region, u64::from(high as u32), types::I32X4);
                let word = self.at(region, |ins| ins.smax(word, low));
                let word = self.at(region, |ins| ins.smin(word, high));
                Some(self.narrow(region, 4, to.size(), word))
            }
            (_, DType::F32) if from.size() <= 4 && from.is_int() => {
                let word = self.widen(region, from, 4, x);
                Some(self.at(region, |ins| match from {
                    DType::U32 => ins.fcvt_from_uint(types::F32X4, word),
                    _ => ins.fcvt_from_sint(types::F32X4, word),
                }))
            }
            _ if from.is_int() && to.is_int() => Some(match from.size() <= to.size() {
                true => self.widen(region, from, to.size(), x),
                false => self.narrow(region, from.size(), to.size(), x),
            }),
            _ => None,
        }
    }

    /// The low lanes of integers, extended to lanes of this many bytes.
    fn widen(&mut self, region: usize, from: DType, size: usize, x: ir::Value) -> ir::Value {
        let mut x = x;
        let mut have = from.size();
        while have < size {
            x = self.at(region, |ins| match from.is_signed_int() {
                true => ins.swiden_low(x),
                false => ins.uwiden_low(x),
            });
            have *= 2;
        }
        x
    }

    /// The low lanes of integers, cut to lanes of this many bytes.
    fn narrow(&mut self, region: usize, from: usize, size: usize, x: ir::Value) -> ir::Value {
        let (mut x, mut have) = (x, from);
        while have > size {
            x = match have {
                8 => self.low_halves(region, x),
                _ => {
                    // Keep the low half of each lane, which the saturating instruction then leaves alone.
                    let ty = if have == 4 { types::I32X4 } else { types::I16X8 };
                    let mask = self.bits_for(region, if have == 4 { 0xffff } else { 0xff }, ty);
                    let low = self.at(region, |ins| ins.band(x, mask));
                    self.at(region, |ins| ins.unarrow(low, low))
                }
            };
            have /= 2;
        }
        x
    }
}

/// Whether the bits are a number other than zero.
fn is_plain(dtype: DType, bits: u64) -> bool {
    let value = match dtype {
        DType::F32 => f64::from(f32::from_bits(bits as u32)),
        _ => f64::from_bits(bits),
    };
    !value.is_nan() && value != 0.0
}
