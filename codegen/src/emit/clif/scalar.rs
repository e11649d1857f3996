//! Scalar values, and each primitive scalar function on scalars.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{self, InstBuilder, MemFlagsData, Type, types};
use smallvec::SmallVec;
use windlass_ir::loops::{Buffer, Guard, Index, Let, Rhs, Role, Val};
use windlass_ir::{DType, ScalarFn};

use super::region::Key;
use super::{Emitter, Number, scalar_type};
use crate::error::Error;

/// How generated code accesses memory: checked by the verifier of kernels, so it cannot fault, and
/// with whatever alignment the caller's buffers have.
pub(super) fn memory() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

impl Emitter<'_> {
    /// The value of a scalar.
    pub(super) fn scalar(&self, val: Val) -> Result<ir::Value, Error> {
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
                        self.bits(n as u64, types::I8)
                    }
                    Number::Value(value) => value,
                }
            }
            Rhs::Apply(f, args) => {
                let from = self.kernel.vals[*args.last().expect("a function has operands")];
                let args: SmallVec<[ir::Value; 3]> =
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
    ) -> Result<ir::Value, Error> {
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
        let loaded = self.load(buffer, address, ty);
        Ok(match data.dtype {
            // Any byte but 0 is true.
            DType::Bool => {
                let region = self.home[loaded] as usize;
                let zero = self.bits_at(0, 0, types::I8);
                self.cached(region, Key::Below(loaded, 0), |ins| ins.icmp(IntCC::NotEqual, loaded, zero))
            }
            _ => loaded,
        })
    }

    /// Loads a value of a type as it stands in memory. What this kernel only reads is read once.
    pub(super) fn load(
        &mut self,
        buffer: Buffer,
        (address, displacement): (ir::Value, i32),
        ty: Type,
    ) -> ir::Value {
        match self.kernel.buffers[buffer].role {
            Role::In => {
                let region = self.load_region(address);
                self.cached(region, Key::Load(address, displacement, ty), |ins| {
                    ins.load(ty, memory(), address, displacement)
                })
            }
            Role::Out | Role::InOut | Role::Register | Role::Stack => {
                self.top_value(|ins| ins.load(ty, memory(), address, displacement))
            }
        }
    }

    pub(super) fn scalar_store(&mut self, buffer: Buffer, index: &Index, val: Val) -> Result<(), Error> {
        let value = self.scalar(val)?;
        self.store_scalar(buffer, index, value)
    }

    pub(super) fn store_scalar(
        &mut self,
        buffer: Buffer,
        index: &Index,
        value: ir::Value,
    ) -> Result<(), Error> {
        if self.kernel.buffers[buffer].role == Role::Register {
            let at = self.register_position(buffer, index)?;
            self.write_register(buffer, at, value);
            return Ok(());
        }
        let (address, displacement) = self.address(buffer, index)?;
        self.ins(|ins| ins.store(memory(), value, address, displacement));
        Ok(())
    }

    /// A primitive function on scalars of type `dtype` (the last operand's).
    pub(super) fn scalar_apply(
        &mut self,
        region: usize,
        f: ScalarFn,
        dtype: DType,
        args: &[ir::Value],
    ) -> Result<ir::Value, Error> {
        let unknown = Error::Function { kernel: self.kernel.name.clone(), function: f, dtype };
        let result = match f {
            ScalarFn::Select => Some(self.at(region, |ins| ins.select(args[0], args[1], args[2]))),
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

    fn scalar_bitcast(&mut self, region: usize, to: DType, x: ir::Value) -> ir::Value {
        let ty = scalar_type(to);
        match self.func.dfg.value_type(x) == ty {
            true => x,
            false => self.at(region, |ins| ins.bitcast(ty, MemFlagsData::new(), x)),
        }
    }

    fn bool_function(&mut self, region: usize, f: ScalarFn, args: &[ir::Value]) -> Option<ir::Value> {
        let (a, b) = (args[0], args.get(1).copied().unwrap_or(args[0]));
        let one = self.bits_at(0, 1, types::I8);
        Some(match f {
            ScalarFn::And => self.at(region, |ins| ins.band(a, b)),
            ScalarFn::Or => self.at(region, |ins| ins.bor(a, b)),
            ScalarFn::Xor => self.at(region, |ins| ins.bxor(a, b)),
            ScalarFn::Not => self.at(region, |ins| ins.bxor(a, one)),
            _ => {
                let condition = int_condition(f, false)?;
                self.at(region, |ins| ins.icmp(condition, a, b))
            }
        })
    }

    /// A float function, on scalars or on vectors: Cranelift's instructions are the same for both.
    pub(super) fn float_function(
        &mut self,
        region: usize,
        f: ScalarFn,
        args: &[ir::Value],
    ) -> Option<ir::Value> {
        if !is_float_instruction(f) {
            return None;
        }
        let (a, b) = (args[0], args.get(1).copied().unwrap_or(args[0]));
        let c = args.get(2).copied().unwrap_or(a);
        Some(self.at(region, |ins| match f {
            ScalarFn::Add => ins.fadd(a, b),
            ScalarFn::Sub => ins.fsub(a, b),
            ScalarFn::Mul => ins.fmul(a, b),
            ScalarFn::Div => ins.fdiv(a, b),
            ScalarFn::Min => ins.fmin(a, b),
            ScalarFn::Max => ins.fmax(a, b),
            ScalarFn::Fma => ins.fma(a, b, c),
            ScalarFn::Neg => ins.fneg(a),
            ScalarFn::Abs => ins.fabs(a),
            ScalarFn::Sqrt => ins.sqrt(a),
            ScalarFn::Floor => ins.floor(a),
            ScalarFn::Ceil => ins.ceil(a),
            ScalarFn::Trunc => ins.trunc(a),
            ScalarFn::Round => ins.nearest(a),
            ScalarFn::Eq => ins.fcmp(FloatCC::Equal, a, b),
            ScalarFn::Ne => ins.fcmp(FloatCC::NotEqual, a, b),
            ScalarFn::Lt => ins.fcmp(FloatCC::LessThan, a, b),
            ScalarFn::Le => ins.fcmp(FloatCC::LessThanOrEqual, a, b),
            ScalarFn::Gt => ins.fcmp(FloatCC::GreaterThan, a, b),
            ScalarFn::Ge => ins.fcmp(FloatCC::GreaterThanOrEqual, a, b),
            _ => unreachable!("{f} is not a float instruction"),
        }))
    }

    fn int_function(
        &mut self,
        region: usize,
        f: ScalarFn,
        dtype: DType,
        args: &[ir::Value],
    ) -> Option<ir::Value> {
        let (a, b) = (args[0], args.get(1).copied().unwrap_or(args[0]));
        let ty = scalar_type(dtype);
        let signed = dtype.is_signed_int();
        let zero = self.bits_at(0, 0, ty);
        Some(match f {
            ScalarFn::Add => self.at(region, |ins| ins.iadd(a, b)),
            ScalarFn::Sub => self.at(region, |ins| ins.isub(a, b)),
            ScalarFn::Mul => self.at(region, |ins| ins.imul(a, b)),
            ScalarFn::Div => self.int_division(region, ty, signed, a, b),
            ScalarFn::Min | ScalarFn::Max => {
                let order = if f == ScalarFn::Min { ScalarFn::Lt } else { ScalarFn::Gt };
                let condition = int_condition(order, signed)?;
                let first = self.at(region, |ins| ins.icmp(condition, a, b));
                self.at(region, |ins| ins.select(first, a, b))
            }
            ScalarFn::Neg => self.at(region, |ins| ins.ineg(a)),
            ScalarFn::Abs if !signed => a,
            ScalarFn::Abs => {
                let negative = self.at(region, |ins| ins.icmp(IntCC::SignedLessThan, a, zero));
                let opposite = self.at(region, |ins| ins.ineg(a));
                self.at(region, |ins| ins.select(negative, opposite, a))
            }
            ScalarFn::And => self.at(region, |ins| ins.band(a, b)),
            ScalarFn::Or => self.at(region, |ins| ins.bor(a, b)),
            ScalarFn::Xor => self.at(region, |ins| ins.bxor(a, b)),
            ScalarFn::Not => self.at(region, |ins| ins.bnot(a)),
            ScalarFn::Shl | ScalarFn::Shr => {
                let width = self.bits_at(0, u64::from(ty.bits()), ty);
                let last = self.bits_at(0, u64::from(ty.bits() - 1), ty);
                let inside = self.at(region, |ins| ins.icmp(IntCC::UnsignedLessThan, b, width));
                if f == ScalarFn::Shr && signed {
                    // Past the width only the sign is left, as after shifting by width - 1.
                    let count = self.at(region, |ins| ins.select(inside, b, last));
                    return Some(self.at(region, |ins| ins.sshr(a, count)));
                }
                let shifted =
                    self.at(region, |ins| if f == ScalarFn::Shl { ins.ishl(a, b) } else { ins.ushr(a, b) });
                self.at(region, |ins| ins.select(inside, shifted, zero))
            }
            _ => {
                let condition = int_condition(f, signed)?;
                self.at(region, |ins| ins.icmp(condition, a, b))
            }
        })
    }

    /// `a / b`, 0 for a divisor of 0, wrapping for MIN / -1. The instruction itself gets a divisor that
    /// it takes.
    fn int_division(
        &mut self,
        region: usize,
        ty: Type,
        signed: bool,
        a: ir::Value,
        b: ir::Value,
    ) -> ir::Value {
        let (zero, one) = (self.bits_at(0, 0, ty), self.bits_at(0, 1, ty));
        let by_zero = self.at(region, |ins| ins.icmp(IntCC::Equal, b, zero));
        let divisor = self.at(region, |ins| ins.select(by_zero, one, b));
        if !signed {
            let quotient = self.at(region, |ins| ins.udiv(a, divisor));
            return self.at(region, |ins| ins.select(by_zero, zero, quotient));
        }
        let minus_one = self.bits_at(0, u64::MAX >> (64 - ty.bits()), ty);
        let by_minus_one = self.at(region, |ins| ins.icmp(IntCC::Equal, b, minus_one));
        let divisor = self.at(region, |ins| ins.select(by_minus_one, one, divisor));
        let quotient = self.at(region, |ins| ins.sdiv(a, divisor));
        let opposite = self.at(region, |ins| ins.ineg(a));
        let quotient = self.at(region, |ins| ins.select(by_minus_one, opposite, quotient));
        self.at(region, |ins| ins.select(by_zero, zero, quotient))
    }

    fn scalar_cast(&mut self, region: usize, from: DType, to: DType, x: ir::Value) -> Option<ir::Value> {
        if matches!(from, DType::F16 | DType::BF16) || matches!(to, DType::F16 | DType::BF16) {
            return None;
        }
        let (from_ty, ty) = (scalar_type(from), scalar_type(to));
        if to == DType::Bool {
            let zero = self.bits_at(0, 0, from_ty);
            return Some(self.at(region, |ins| match from.is_float() {
                true => ins.fcmp(FloatCC::NotEqual, x, zero),
                false => ins.icmp(IntCC::NotEqual, x, zero),
            }));
        }
        Some(match (from.is_float(), to.is_float()) {
            (true, true) => self.at(region, |ins| match to {
                DType::F64 => ins.fpromote(ty, x),
                _ => ins.fdemote(ty, x),
            }),
            (true, false) => self.float_to_int(region, to, x),
            (false, true) => {
                // Narrow integers fit a signed word; unsigned words are converted as they are.
                let word = if ty_is_word(from_ty) { from_ty } else { types::I32 };
                let wide = self.resize(region, from.is_signed_int(), from_ty, word, x);
                self.at(region, |ins| match from {
                    DType::U32 | DType::U64 => ins.fcvt_from_uint(ty, wide),
                    _ => ins.fcvt_from_sint(ty, wide),
                })
            }
            (false, false) => self.resize(region, from.is_signed_int(), from_ty, ty, x),
        })
    }

    fn float_to_int(&mut self, region: usize, to: DType, x: ir::Value) -> ir::Value {
        let ty = scalar_type(to);
        if ty_is_word(ty) {
            return self.at(region, |ins| match to.is_signed_int() {
                true => ins.fcvt_to_sint_sat(ty, x),
                false => ins.fcvt_to_uint_sat(ty, x),
            });
        }
        let (low, high) = to.int_range();
        let word = self.at(region, |ins| ins.fcvt_to_sint_sat(types::I32, x));
        let clamped = [(low, IntCC::SignedLessThan), (high, IntCC::SignedGreaterThan)].into_iter().fold(
            word,
            |word, (bound, condition)| {
                let bound = self.bits_at(0, u64::from(bound as u32), types::I32);
                let past = self.at(region, |ins| ins.icmp(condition, word, bound));
                self.at(region, |ins| ins.select(past, bound, word))
            },
        );
        self.at(region, |ins| ins.ireduce(ty, clamped))
    }

    fn resize(&mut self, region: usize, signed: bool, from: Type, to: Type, x: ir::Value) -> ir::Value {
        if from == to {
            return x;
        }
        self.at(region, |ins| match (from.bits() < to.bits(), signed) {
            (true, true) => ins.sextend(to, x),
            (true, false) => ins.uextend(to, x),
            (false, _) => ins.ireduce(to, x),
        })
    }
}

fn ty_is_word(ty: Type) -> bool {
    ty == types::I32 || ty == types::I64
}

/// Whether [`Emitter::float_function`] has the function.
fn is_float_instruction(f: ScalarFn) -> bool {
    use ScalarFn as F;
    matches!(f, F::Add | F::Sub | F::Mul | F::Div | F::Min | F::Max | F::Fma | F::Neg | F::Abs | F::Sqrt)
        || matches!(f, F::Floor | F::Ceil | F::Trunc | F::Round)
        || matches!(f, F::Eq | F::Ne | F::Lt | F::Le | F::Gt | F::Ge)
}

/// The condition of an integer comparison.
pub(super) fn int_condition(f: ScalarFn, signed: bool) -> Option<IntCC> {
    Some(match (f, signed) {
        (ScalarFn::Eq, _) => IntCC::Equal,
        (ScalarFn::Ne, _) => IntCC::NotEqual,
        (ScalarFn::Lt, true) => IntCC::SignedLessThan,
        (ScalarFn::Le, true) => IntCC::SignedLessThanOrEqual,
        (ScalarFn::Gt, true) => IntCC::SignedGreaterThan,
        (ScalarFn::Ge, true) => IntCC::SignedGreaterThanOrEqual,
        (ScalarFn::Lt, false) => IntCC::UnsignedLessThan,
        (ScalarFn::Le, false) => IntCC::UnsignedLessThanOrEqual,
        (ScalarFn::Gt, false) => IntCC::UnsignedGreaterThan,
        (ScalarFn::Ge, false) => IntCC::UnsignedGreaterThanOrEqual,
        _ => return None,
    })
}
