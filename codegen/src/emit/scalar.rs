//! Scalar values, and each primitive scalar function on scalars.

use smallvec::SmallVec;
use windlass_ir::loops::{Buffer, Guard, Index, Let, Rhs, Role, Val};
use windlass_ir::{DType, ScalarFn};

use super::{Emitter, Number, scalar_type};
use crate::error::Error;
use crate::ssa::{Condition, Op, Type, Value};

impl Emitter<'_> {
    /// The value of a scalar.
    pub(super) fn scalar(&self, val: Val) -> Result<Value, Error> {
        match self.scalars[val].expand() {
            Some(value) => Ok(value),
            None => self.error(format!("{val} is used before it is defined")),
        }
    }

    pub(super) fn scalar_let(&mut self, binding: &Let) -> Result<(), Error> {
        let Let { val, rhs } = binding;
        let dtype = self.kernel.vals[*val];
        self.constants[*val] = None;
        let value = match rhs {
            Rhs::Load { buffer, index, guards } => self.scalar_load(*buffer, index, guards)?,
            Rhs::Const(bits) => {
                self.constants[*val] = Some(*bits);
                self.bits(*bits, scalar_type(dtype))
            }
            Rhs::Index(index) => {
                let number = self.index(index)?;
                if let Number::Known(n) = number {
                    self.constants[*val] = Some(n as u64);
                }
                self.number(number)
            }
            Rhs::Inside(guards) => {
                let holds = self.guards(guards)?.unwrap_or(Number::Known(1));
                match holds {
                    Number::Known(n) => {
                        self.constants[*val] = Some(n as u64);
                        self.bits(n as u64, Type::I8)
                    }
                    Number::Value(value) => value,
                }
            }
            Rhs::Apply(f, args) => {
                let from = self.kernel.vals[*args.last().expect("a function has operands")];
                let args: SmallVec<[Value; 3]> =
                    args.iter().map(|&a| self.scalar(a)).collect::<Result<_, _>>()?;
                let region = self.hoisted(&args);
                self.scalar_apply(region, *f, from, &args)?
            }
        };
        self.scalars[*val] = value.into();
        Ok(())
    }

    pub(super) fn scalar_load(
        &mut self,
        buffer: Buffer,
        index: &Index,
        guards: &[Guard],
    ) -> Result<Value, Error> {
        let data = &self.kernel.buffers[buffer];
        let ty = scalar_type(data.dtype);
        let condition = self.guards(guards)?;
        if let Some(Number::Known(_)) = condition {
            return Ok(self.bits(0, ty));
        }
        if data.role == Role::Register {
            if condition.is_some() {
                return self.error("a guarded load from a register buffer");
            }
            let at = self.register_position(buffer, index)?;
            return Ok(self.read_register(buffer, at));
        }
        let address = self.address(buffer, index)?;
        let address = match condition {
            Some(Number::Value(condition)) => (self.guarded_address(address, condition), 0),
            Some(Number::Known(_)) | None => address,
        };
        let loaded = self.load(buffer, address, ty, ty.bytes());
        Ok(match data.dtype {
            // Any byte but 0 is true.
            DType::Bool => {
                let region = self.home[loaded] as usize;
                let zero = self.bits_at(0, 0, Type::I8);
                self.cached(region, Op::Compare(Condition::Ne), Type::I8, &[loaded, zero])
            }
            _ => loaded,
        })
    }

    /// Loads the low bytes of a value as they stand in memory. What this kernel only reads is read once.
    pub(super) fn load(
        &mut self,
        buffer: Buffer,
        (address, offset): (Value, i32),
        ty: Type,
        bytes: usize,
    ) -> Value {
        let load = Op::Load { offset, bytes: bytes as u8 };
        match self.kernel.buffers[buffer].role {
            Role::In => self.cached(self.load_region(address), load, ty, &[address]),
            Role::Out | Role::InOut | Role::Register | Role::Stack => {
                self.typed(self.top_index(), load, ty, &[address])
            }
        }
    }

    pub(super) fn scalar_store(&mut self, buffer: Buffer, index: &Index, val: Val) -> Result<(), Error> {
        let value = self.scalar(val)?;
        self.store_scalar(buffer, index, value)
    }

    pub(super) fn store_scalar(&mut self, buffer: Buffer, index: &Index, value: Value) -> Result<(), Error> {
        if self.kernel.buffers[buffer].role == Role::Register {
            let at = self.register_position(buffer, index)?;
            self.write_register(buffer, at, value);
            return Ok(());
        }
        let (address, offset) = self.address(buffer, index)?;
        let bytes = self.func.ty(value).bytes() as u8;
        self.effect(Op::Store { offset, bytes }, &[value, address]);
        Ok(())
    }

    pub(super) fn prefetch(&mut self, buffer: Buffer, index: &Index) -> Result<(), Error> {
        let (address, offset) = self.address(buffer, index)?;
        self.effect(Op::Prefetch { offset }, &[address]);
        Ok(())
    }

    /// A primitive function on scalars of type `dtype` (the last operand's).
    pub(super) fn scalar_apply(
        &mut self,
        region: usize,
        f: ScalarFn,
        dtype: DType,
        args: &[Value],
    ) -> Result<Value, Error> {
        let unknown = Error::Function { kernel: self.kernel.name.clone(), function: f, dtype };
        let result = match f {
            ScalarFn::Select => Some(self.at(region, Op::Select, &[args[0], args[1], args[2]])),
            ScalarFn::Bitcast(to) => Some(self.scalar_bitcast(region, to, args[0])),
            ScalarFn::Cast(to) if to == dtype => Some(args[0]),
            ScalarFn::Cast(to) => self.scalar_cast(region, dtype, to, args[0]),
            _ if dtype == DType::Bool => self.bool_function(region, f, args),
            _ if matches!(dtype, DType::F16 | DType::BF16) => None,
            _ if dtype.is_float() => self.float_function(region, f, args),
            _ => self.int_function(region, f, dtype, args),
        };
        result.ok_or(unknown)
    }

    fn scalar_bitcast(&mut self, region: usize, to: DType, x: Value) -> Value {
        let ty = scalar_type(to);
        match self.func.ty(x) == ty {
            true => x,
            false => self.typed(region, Op::Bitcast, ty, &[x]),
        }
    }

    fn bool_function(&mut self, region: usize, f: ScalarFn, args: &[Value]) -> Option<Value> {
        let (a, b) = (args[0], args.get(1).copied().unwrap_or(args[0]));
        let one = self.bits_at(0, 1, Type::I8);
        Some(match f {
            ScalarFn::And => self.at(region, Op::And, &[a, b]),
            ScalarFn::Or => self.at(region, Op::Or, &[a, b]),
            ScalarFn::Xor => self.at(region, Op::Xor, &[a, b]),
            ScalarFn::Not => self.at(region, Op::Xor, &[a, one]),
            _ => self.at(region, Op::Compare(condition(f, false)?), &[a, b]),
        })
    }

    /// A float function, on scalars or on vectors.
    pub(super) fn float_function(&mut self, region: usize, f: ScalarFn, args: &[Value]) -> Option<Value> {
        let op = match f {
            ScalarFn::Add => Op::Add,
            ScalarFn::Sub => Op::Sub,
            ScalarFn::Mul => Op::Mul,
            ScalarFn::Div => Op::Div,
            ScalarFn::Min => Op::Min,
            ScalarFn::Max => Op::Max,
            ScalarFn::Fma => Op::Fma,
            ScalarFn::Neg => Op::Neg,
            ScalarFn::Abs => Op::Abs,
            ScalarFn::Sqrt => Op::Sqrt,
            ScalarFn::Floor => Op::Floor,
            ScalarFn::Ceil => Op::Ceil,
            ScalarFn::Trunc => Op::Trunc,
            ScalarFn::Round => Op::Nearest,
            _ => Op::Compare(condition(f, true)?),
        };
        Some(self.at(region, op, args))
    }

    fn int_function(&mut self, region: usize, f: ScalarFn, dtype: DType, args: &[Value]) -> Option<Value> {
        let (a, b) = (args[0], args.get(1).copied().unwrap_or(args[0]));
        let ty = scalar_type(dtype);
        let signed = dtype.is_signed_int();
        let zero = self.bits_at(0, 0, ty);
        Some(match f {
            ScalarFn::Add => self.at(region, Op::Add, &[a, b]),
            ScalarFn::Sub => self.at(region, Op::Sub, &[a, b]),
            ScalarFn::Mul => self.at(region, Op::Mul, &[a, b]),
            ScalarFn::Div => self.int_division(region, ty, signed, a, b),
            ScalarFn::Unpack2 => self.unpack2(region, a),
            ScalarFn::Dot2 => self.dot2(region, a, b),
            ScalarFn::Dot4 => self.dot4(region, a, b),
            ScalarFn::Min | ScalarFn::Max => {
                let order = if f == ScalarFn::Min { ScalarFn::Lt } else { ScalarFn::Gt };
                let condition = condition(order, signed)?;
                let first = self.at(region, Op::Compare(condition), &[a, b]);
                self.at(region, Op::Select, &[first, a, b])
            }
            ScalarFn::Neg => self.at(region, Op::Neg, &[a]),
            ScalarFn::Abs if !signed => a,
            ScalarFn::Abs => {
                let negative = self.at(region, Op::Compare(Condition::Lt), &[a, zero]);
                let opposite = self.at(region, Op::Neg, &[a]);
                self.at(region, Op::Select, &[negative, opposite, a])
            }
            ScalarFn::And => self.at(region, Op::And, &[a, b]),
            ScalarFn::Or => self.at(region, Op::Or, &[a, b]),
            ScalarFn::Xor => self.at(region, Op::Xor, &[a, b]),
            ScalarFn::Not => self.at(region, Op::Not, &[a]),
            ScalarFn::Shl | ScalarFn::Shr => {
                let width = self.bits_at(0, u64::from(ty.lane_bits()), ty);
                let last = self.bits_at(0, u64::from(ty.lane_bits() - 1), ty);
                let inside = self.at(region, Op::Compare(Condition::Below), &[b, width]);
                if f == ScalarFn::Shr && signed {
                    // Past the width only the sign is left, as after shifting by width - 1.
                    let count = self.at(region, Op::Select, &[inside, b, last]);
                    return Some(self.at(region, Op::ShrSigned, &[a, count]));
                }
                let shift = if f == ScalarFn::Shl { Op::Shl } else { Op::ShrUnsigned };
                let shifted = self.at(region, shift, &[a, b]);
                self.at(region, Op::Select, &[inside, shifted, zero])
            }
            _ => {
                let condition = condition(f, signed)?;
                self.at(region, Op::Compare(condition), &[a, b])
            }
        })
    }

    /// A word whose halves are the bytes of an i16, with their signs.
    fn unpack2(&mut self, region: usize, x: Value) -> Value {
        let [byte, half, rest] = [8, 16, 24].map(|bits| self.bits_at(0, bits, Type::I32));
        let word = self.typed(region, Op::SignExtend, Type::I32, &[x]);
        let high = self.at(region, Op::ShrSigned, &[word, byte]);
        let high = self.at(region, Op::Shl, &[high, half]);
        let low = self.at(region, Op::Shl, &[word, rest]);
        let low = self.at(region, Op::ShrSigned, &[low, rest]);
        let mask = self.bits_at(0, 0xffff, Type::I32);
        let low = self.at(region, Op::And, &[low, mask]);
        self.at(region, Op::Or, &[high, low])
    }

    /// The sum of the products of the words' low halves and of their high halves.
    fn dot2(&mut self, region: usize, a: Value, b: Value) -> Value {
        if self.func.ty(a).is_vector() {
            return self.at(region, Op::Dot2, &[a, b]);
        }
        let half = self.bits_at(0, 16, Type::I32);
        let [high_a, high_b] = [a, b].map(|word| self.at(region, Op::ShrSigned, &[word, half]));
        let [low_a, low_b] = [a, b].map(|word| {
            let raised = self.at(region, Op::Shl, &[word, half]);
            self.at(region, Op::ShrSigned, &[raised, half])
        });
        let low = self.at(region, Op::Mul, &[low_a, low_b]);
        let high = self.at(region, Op::Mul, &[high_a, high_b]);
        self.at(region, Op::Add, &[low, high])
    }

    /// The sum of the products of the words' bytes, of `a` unsigned and of `b` signed, on scalars or on vectors.
    pub(super) fn dot4(&mut self, region: usize, a: Value, b: Value) -> Value {
        let ty = self.func.ty(a);
        let bytes = self.bits_for(region, 0x00ff_00ff, ty);
        // A signed byte is 128 less than the unsigned one with its top bit flipped.
        let signs = self.bits_for(region, 0x0080_0080, ty);
        let count = self.bits_for(region, 8, Type::I32);
        let mut parts = [[a, b], [a, b]];
        for word in &mut parts[1] {
            *word = self.at(region, Op::ShrUnsigned, &[*word, count]);
        }
        let [even, odd] = parts.map(|[a, b]| {
            let (a, b) = (self.at(region, Op::And, &[a, bytes]), self.at(region, Op::And, &[b, bytes]));
            let b = self.at(region, Op::Xor, &[b, signs]);
            let (product, excess) = (self.dot2(region, a, b), self.dot2(region, a, signs));
            self.at(region, Op::Sub, &[product, excess])
        });
        self.at(region, Op::Add, &[even, odd])
    }

    /// `a / b`, 0 for a divisor of 0, wrapping for MIN / -1. The instruction itself gets a divisor that
    /// it takes.
    fn int_division(&mut self, region: usize, ty: Type, signed: bool, a: Value, b: Value) -> Value {
        let (zero, one) = (self.bits_at(0, 0, ty), self.bits_at(0, 1, ty));
        let by_zero = self.at(region, Op::Compare(Condition::Eq), &[b, zero]);
        let divisor = self.at(region, Op::Select, &[by_zero, one, b]);
        if !signed {
            let quotient = self.at(region, Op::DivUnsigned, &[a, divisor]);
            return self.at(region, Op::Select, &[by_zero, zero, quotient]);
        }
        let minus_one = self.bits_at(0, u64::MAX >> (64 - ty.lane_bits()), ty);
        let by_minus_one = self.at(region, Op::Compare(Condition::Eq), &[b, minus_one]);
        let divisor = self.at(region, Op::Select, &[by_minus_one, one, divisor]);
        let quotient = self.at(region, Op::Div, &[a, divisor]);
        let opposite = self.at(region, Op::Neg, &[a]);
        let quotient = self.at(region, Op::Select, &[by_minus_one, opposite, quotient]);
        self.at(region, Op::Select, &[by_zero, zero, quotient])
    }

    fn scalar_cast(&mut self, region: usize, from: DType, to: DType, x: Value) -> Option<Value> {
        match (from, to) {
            (DType::F16, DType::F32) => return Some(self.typed(region, Op::FromHalf, scalar_type(to), &[x])),
            (DType::F32, DType::F16) => return Some(self.typed(region, Op::ToHalf, scalar_type(to), &[x])),
            (DType::F16 | DType::BF16, _) | (_, DType::F16 | DType::BF16) => return None,
            _ => {}
        }
        let (from_ty, ty) = (scalar_type(from), scalar_type(to));
        if to == DType::Bool {
            let zero = self.bits_at(0, 0, from_ty);
            return Some(self.at(region, Op::Compare(Condition::Ne), &[x, zero]));
        }
        Some(match (from.is_float(), to.is_float()) {
            (true, true) => {
                let op = if to == DType::F64 { Op::Promote } else { Op::Demote };
                self.typed(region, op, ty, &[x])
            }
            (true, false) => self.float_to_int(region, to, x),
            (false, true) => {
                // Narrow integers fit a signed word; unsigned words are converted as they are.
                let word = if ty_is_word(from_ty) { from_ty } else { Type::I32 };
                let wide = self.resize(region, from.is_signed_int(), from_ty, word, x);
                let op = match from {
                    DType::U32 | DType::U64 => Op::FromUnsigned,
                    _ => Op::FromSigned,
                };
                self.typed(region, op, ty, &[wide])
            }
            (false, false) => self.resize(region, from.is_signed_int(), from_ty, ty, x),
        })
    }

    fn float_to_int(&mut self, region: usize, to: DType, x: Value) -> Value {
        let ty = scalar_type(to);
        if ty_is_word(ty) {
            let op = if to.is_signed_int() { Op::ToSigned } else { Op::ToUnsigned };
            return self.typed(region, op, ty, &[x]);
        }
        let (low, high) = to.int_range();
        let word = self.typed(region, Op::ToSigned, Type::I32, &[x]);
        let clamped = [(low, Condition::Lt), (high, Condition::Gt)].into_iter().fold(
            word,
            |word, (bound, condition)| {
                let bound = self.bits_at(0, u64::from(bound as u32), Type::I32);
                let past = self.at(region, Op::Compare(condition), &[word, bound]);
                self.at(region, Op::Select, &[past, bound, word])
            },
        );
        self.typed(region, Op::Truncate, ty, &[clamped])
    }

    fn resize(&mut self, region: usize, signed: bool, from: Type, to: Type, x: Value) -> Value {
        if from == to {
            return x;
        }
        let op = match (from.bytes() < to.bytes(), signed) {
            (true, true) => Op::SignExtend,
            (true, false) => Op::ZeroExtend,
            (false, _) => Op::Truncate,
        };
        self.typed(region, op, to, &[x])
    }
}

fn ty_is_word(ty: Type) -> bool {
    ty == Type::I32 || ty == Type::I64
}

/// What a comparison asks.
pub(super) fn condition(f: ScalarFn, signed: bool) -> Option<Condition> {
    Some(match (f, signed) {
        (ScalarFn::Eq, _) => Condition::Eq,
        (ScalarFn::Ne, _) => Condition::Ne,
        (ScalarFn::Lt, true) => Condition::Lt,
        (ScalarFn::Le, true) => Condition::Le,
        (ScalarFn::Gt, true) => Condition::Gt,
        (ScalarFn::Ge, true) => Condition::Ge,
        (ScalarFn::Lt, false) => Condition::Below,
        (ScalarFn::Le, false) => Condition::NotAbove,
        (ScalarFn::Gt, false) => Condition::Above,
        (ScalarFn::Ge, false) => Condition::NotBelow,
        _ => return None,
    })
}
