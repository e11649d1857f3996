//! Each primitive scalar function as instructions on vectors, where there are some.
//!
//! A value narrower than the body's widest takes the low lanes of a vector of its own type, so
//! conversions widen from there and narrow to there. A bool is a mask whose lanes have any width.

use windlass_ir::{DType, ScalarFn};

use super::Emitter;
use super::scalar::condition;
use crate::ssa::{Condition, Element, Op, Type, Value};

impl Emitter<'_> {
    /// A function as vector instructions, or `None` if there are none for it. `count` is the second
    /// operand if that is the same known constant in every lane.
    pub(super) fn vector_function(
        &mut self,
        region: usize,
        f: ScalarFn,
        dtype: DType,
        args: &[Value],
        count: Option<u64>,
    ) -> Option<Value> {
        let (a, b) = (args[0], args.get(1).copied().unwrap_or(args[0]));
        match f {
            ScalarFn::Select if let Some(op) = self.limit(args) => Some(self.at(region, op, &args[1..])),
            ScalarFn::Select => {
                let (a, b, c) = match dtype {
                    DType::Bool => self.same_masks(region, args[0], args[1], args[2]),
                    _ => (self.mask(region, args[0], dtype.size()), args[1], args[2]),
                };
                Some(self.at(region, Op::Blend, &[a, b, c]))
            }
            ScalarFn::Bitcast(to) => Some(self.as_type(region, self.machine.vector_type(to), a)),
            ScalarFn::Unpack2 => {
                // Bytes lie one after another, as wide vectors have them too.
                let ty = self.func.ty(a);
                let bytes = self.as_type(region, ty.with_element(Element::I8), a);
                let halves = self.typed(region, Op::SignExtend, ty, &[bytes]);
                Some(self.as_type(region, ty.with_element(Element::I32), halves))
            }
            ScalarFn::Cast(to) if to == dtype => Some(a),
            ScalarFn::Cast(to) => self.vector_cast(region, dtype, to, a),
            _ if dtype == DType::Bool => {
                let (a, b, _) = self.same_masks(region, a, b, b);
                if f == ScalarFn::Eq {
                    let differ = self.at(region, Op::Xor, &[a, b]);
                    return Some(self.at(region, Op::Not, &[differ]));
                }
                let (op, args) = match f {
                    ScalarFn::And => (Op::And, [a, b]),
                    ScalarFn::Or => (Op::Or, [a, b]),
                    ScalarFn::Xor | ScalarFn::Ne => (Op::Xor, [a, b]),
                    ScalarFn::Not => return Some(self.at(region, Op::Not, &[a])),
                    ScalarFn::Lt => (Op::AndNot, [b, a]),
                    ScalarFn::Gt => (Op::AndNot, [a, b]),
                    ScalarFn::Le => (Op::Or, [b, self.at(region, Op::Not, &[a])]),
                    ScalarFn::Ge => (Op::Or, [a, self.at(region, Op::Not, &[b])]),
                    _ => unreachable!("{f} is not defined on bool"),
                };
                Some(self.at(region, op, &args))
            }
            ScalarFn::Min | ScalarFn::Max
                if dtype.is_float() && count.is_some_and(|c| is_plain(dtype, c)) =>
            {
                // The constant is neither NaN nor a zero, so one comparison decides: NaN stays.
                let op = if f == ScalarFn::Min { Op::SelectLess } else { Op::SelectGreater };
                Some(self.at(region, op, &[b, a]))
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
        a: Value,
        b: Value,
        count: Option<u64>,
    ) -> Option<Value> {
        let signed = dtype.is_signed_int();
        let size = dtype.size();
        let op = match f {
            ScalarFn::Abs if !signed => return Some(a),
            ScalarFn::Neg => return Some(self.at(region, Op::Neg, &[a])),
            ScalarFn::Abs => return Some(self.at(region, Op::Abs, &[a])),
            ScalarFn::Not => return Some(self.at(region, Op::Not, &[a])),
            ScalarFn::Shl | ScalarFn::Shr if count.is_some_and(|c| c < 8 * size as u64) => {
                let count = self.bits_for(region, count?, Type::I32);
                let op = match (f, signed) {
                    (ScalarFn::Shl, _) => Op::Shl,
                    (_, true) => Op::ShrSigned,
                    (_, false) => Op::ShrUnsigned,
                };
                return Some(self.at(region, op, &[a, count]));
            }
            ScalarFn::Add => Op::Add,
            ScalarFn::Sub => Op::Sub,
            ScalarFn::Mul if size > 1 => Op::Mul,
            ScalarFn::Dot2 => Op::Dot2,
            ScalarFn::Dot4 if self.machine.byte_products => Op::Dot4,
            ScalarFn::Dot4 => return Some(self.dot4(region, a, b)),
            ScalarFn::Min if size < 8 || self.machine.has_longs => {
                if signed {
                    Op::Min
                } else {
                    Op::MinUnsigned
                }
            }
            ScalarFn::Max if size < 8 || self.machine.has_longs => {
                if signed {
                    Op::Max
                } else {
                    Op::MaxUnsigned
                }
            }
            ScalarFn::Min | ScalarFn::Max if signed => {
                let condition = if f == ScalarFn::Min { Condition::Lt } else { Condition::Gt };
                let first = self.at(region, Op::Compare(condition), &[a, b]);
                return Some(self.at(region, Op::Blend, &[first, a, b]));
            }
            ScalarFn::And => Op::And,
            ScalarFn::Or => Op::Or,
            ScalarFn::Xor => Op::Xor,
            ScalarFn::Eq | ScalarFn::Ne | ScalarFn::Lt | ScalarFn::Le | ScalarFn::Gt | ScalarFn::Ge
                if size < 8
                    || signed
                    || self.machine.has_longs
                    || matches!(f, ScalarFn::Eq | ScalarFn::Ne) =>
            {
                Op::Compare(condition(f, signed)?)
            }
            _ => return None,
        };
        Some(self.at(region, op, &[a, b]))
    }

    /// What `a > b ? a : b` of floats is, and the same of less.
    fn limit(&self, args: &[Value]) -> Option<Op> {
        let &[condition, a, b] = args else { return None };
        let compared = self.func.def(condition)?;
        if !self.func.ty(a).is_float() || compared.args.as_slice() != [a, b] {
            return None;
        }
        match compared.op {
            Op::Compare(Condition::Gt) => Some(Op::SelectGreater),
            Op::Compare(Condition::Lt) => Some(Op::SelectLess),
            _ => None,
        }
    }

    /// A mask in lanes of this many bytes.
    pub(super) fn mask(&mut self, region: usize, mask: Value, size: usize) -> Value {
        let ty = self.func.ty(mask).as_int();
        let mask = self.as_type(region, ty, mask);
        self.resized(region, true, size, mask)
    }

    /// Masks in lanes of one width, the widest.
    fn same_masks(&mut self, region: usize, a: Value, b: Value, c: Value) -> (Value, Value, Value) {
        let sizes = [a, b, c].map(|v| self.func.ty(v).element().bytes());
        let widest = sizes.into_iter().max().unwrap_or(1);
        (self.mask(region, a, widest), self.mask(region, b, widest), self.mask(region, c, widest))
    }

    fn vector_cast(&mut self, region: usize, from: DType, to: DType, x: Value) -> Option<Value> {
        let ty = self.machine.vector_type(to);
        match (from, to) {
            (DType::F16, DType::F32) => return Some(self.typed(region, Op::FromHalf, ty, &[x])),
            (DType::F32, DType::F16) => return Some(self.typed(region, Op::ToHalf, ty, &[x])),
            (DType::F16 | DType::BF16, _) | (_, DType::F16 | DType::BF16) => return None,
            _ => {}
        }
        if to == DType::Bool {
            let zero = self.bits_for(region, 0, self.machine.vector_type(from));
            return Some(self.at(region, Op::Compare(Condition::Ne), &[x, zero]));
        }
        if from == DType::Bool {
            let mask = self.mask(region, x, to.size());
            let mask = self.as_type(region, ty, mask);
            let one = windlass_ir::Tensor::from_f64s(to, &[], &[1.0]);
            let mut bits = [0u8; 8];
            bits[..to.size()].copy_from_slice(one.bytes());
            let one = self.bits_for(region, u64::from_ne_bytes(bits), ty);
            return Some(self.at(region, Op::And, &[mask, one]));
        }
        match (from, to) {
            (DType::F32, DType::F64) => Some(self.typed(region, Op::Promote, ty, &[x])),
            (DType::F64, DType::F32) => Some(self.typed(region, Op::Demote, ty, &[x])),
            (DType::F32, DType::I32) => Some(self.typed(region, Op::ToSigned, ty, &[x])),
            (DType::F32, DType::U32) => Some(self.typed(region, Op::ToUnsigned, ty, &[x])),
            (DType::F32, _) if to.size() < 4 => {
                let words = ty.with_element(Element::I32);
                let word = self.typed(region, Op::ToSigned, words, &[x]);
                let (low, high) = to.int_range();
                let low = self.bits_for(region, u64::from(low as u32), words);
                let high = self.bits_for(region, u64::from(high as u32), words);
                let word = self.at(region, Op::Max, &[word, low]);
                let word = self.at(region, Op::Min, &[word, high]);
                Some(self.resized(region, true, to.size(), word))
            }
            (_, DType::F32) if from.size() <= 4 && from.is_int() => {
                let word = self.resized(region, from.is_signed_int(), 4, x);
                let op = if from == DType::U32 { Op::FromUnsigned } else { Op::FromSigned };
                Some(self.typed(region, op, ty, &[word]))
            }
            (DType::F32 | DType::F64, DType::I64) if self.machine.has_longs => {
                Some(self.typed(region, Op::ToSigned, ty, &[x]))
            }
            (DType::I64, DType::F32 | DType::F64) if self.machine.has_longs => {
                Some(self.typed(region, Op::FromSigned, ty, &[x]))
            }
            _ if from.is_int() && to.is_int() => {
                Some(self.resized(region, from.is_signed_int(), to.size(), x))
            }
            _ => None,
        }
    }

    /// The low lanes of integers, extended or cut to lanes of this many bytes.
    fn resized(&mut self, region: usize, signed: bool, size: usize, x: Value) -> Value {
        let ty = self.func.ty(x);
        let op = match ty.element().bytes().cmp(&size) {
            std::cmp::Ordering::Equal => return x,
            std::cmp::Ordering::Less if signed => Op::SignExtend,
            std::cmp::Ordering::Less => Op::ZeroExtend,
            std::cmp::Ordering::Greater => Op::Truncate,
        };
        self.typed(region, op, ty.with_element(Element::int(size)), &[x])
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
