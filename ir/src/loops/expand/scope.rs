//! What expansions are written with: a function a statement, constants shared.

use cranelift_entity::packed_option::PackedOption;
use cranelift_entity::{PrimaryMap, SecondaryMap};

use super::Native;
use crate::dtype::DType;
use crate::loops::nest::const_bits;
use crate::loops::{Block, Let, Rhs, Stmt, Val};
use crate::scalar::ScalarFn;

/// The block that an expansion appends to.
pub(super) struct Scope<'k> {
    pub vals: &'k mut PrimaryMap<Val, DType>,
    pub out: &'k mut Block,
    /// Constants defined in this block.
    pub known: &'k mut Vec<(DType, u64, Val)>,
    /// The word that a value was cut from without loss.
    pub words: &'k mut SecondaryMap<Val, PackedOption<Val>>,
    /// What the emitter implements.
    pub native: Native,
}

impl Scope<'_> {
    pub fn dtype(&self, val: Val) -> DType {
        self.vals[val]
    }

    fn define(&mut self, dtype: DType, rhs: Rhs) -> Val {
        let val = self.vals.push(dtype);
        self.out.push(Stmt::Let(Let { val, rhs }));
        val
    }

    pub fn apply(&mut self, f: ScalarFn, args: &[Val]) -> Val {
        let types: Vec<DType> = args.iter().map(|&a| self.dtype(a)).collect();
        let dtype = f.result_type(&types).unwrap_or_else(|message| panic!("{message}"));
        self.define(dtype, Rhs::Apply(f, args.into()))
    }

    /// A constant by its bits.
    pub fn bits(&mut self, dtype: DType, bits: u64) -> Val {
        if let Some((_, _, val)) = self.known.iter().find(|(t, b, _)| *t == dtype && *b == bits) {
            return *val;
        }
        let val = self.define(dtype, Rhs::Const(bits));
        self.known.push((dtype, bits, val));
        val
    }

    /// A number of the same type as `like`.
    pub fn number(&mut self, like: Val, value: f64) -> Val {
        let dtype = self.dtype(like);
        self.bits(dtype, const_bits(dtype, value))
    }

    /// `c[0] + c[1] * x + c[2] * x^2 + ..`, by Horner's rule.
    pub fn polynomial(&mut self, x: Val, coefficients: &[f64]) -> Val {
        let (last, rest) = coefficients.split_last().expect("a polynomial has coefficients");
        let mut sum = self.number(x, *last);
        for &c in rest.iter().rev() {
            let c = self.number(x, c);
            sum = self.fma(sum, x, c);
        }
        sum
    }

    pub fn add(&mut self, a: Val, b: Val) -> Val {
        self.apply(ScalarFn::Add, &[a, b])
    }

    pub fn sub(&mut self, a: Val, b: Val) -> Val {
        self.apply(ScalarFn::Sub, &[a, b])
    }

    pub fn mul(&mut self, a: Val, b: Val) -> Val {
        self.apply(ScalarFn::Mul, &[a, b])
    }

    pub fn div(&mut self, a: Val, b: Val) -> Val {
        self.apply(ScalarFn::Div, &[a, b])
    }

    pub fn fma(&mut self, a: Val, b: Val, c: Val) -> Val {
        self.apply(ScalarFn::Fma, &[a, b, c])
    }

    /// `a * k + c`.
    pub fn fma_k(&mut self, a: Val, k: f64, c: Val) -> Val {
        let k = self.number(a, k);
        self.fma(a, k, c)
    }

    /// `c - a * b`.
    pub fn fnma(&mut self, a: Val, b: Val, c: Val) -> Val {
        let a = self.neg(a);
        self.fma(a, b, c)
    }

    pub fn add_k(&mut self, a: Val, k: f64) -> Val {
        let k = self.number(a, k);
        self.add(a, k)
    }

    pub fn mul_k(&mut self, a: Val, k: f64) -> Val {
        let k = self.number(a, k);
        self.mul(a, k)
    }

    pub fn neg(&mut self, a: Val) -> Val {
        self.apply(ScalarFn::Neg, &[a])
    }

    pub fn abs(&mut self, a: Val) -> Val {
        self.apply(ScalarFn::Abs, &[a])
    }

    pub fn sqrt(&mut self, a: Val) -> Val {
        self.apply(ScalarFn::Sqrt, &[a])
    }

    pub fn trunc(&mut self, a: Val) -> Val {
        self.apply(ScalarFn::Trunc, &[a])
    }

    pub fn eq(&mut self, a: Val, b: Val) -> Val {
        self.apply(ScalarFn::Eq, &[a, b])
    }

    pub fn ne(&mut self, a: Val, b: Val) -> Val {
        self.apply(ScalarFn::Ne, &[a, b])
    }

    pub fn lt(&mut self, a: Val, b: Val) -> Val {
        self.apply(ScalarFn::Lt, &[a, b])
    }

    pub fn eq_k(&mut self, a: Val, k: f64) -> Val {
        let k = self.number(a, k);
        self.eq(a, k)
    }

    pub fn lt_k(&mut self, a: Val, k: f64) -> Val {
        let k = self.number(a, k);
        self.lt(a, k)
    }

    pub fn and(&mut self, a: Val, b: Val) -> Val {
        self.apply(ScalarFn::And, &[a, b])
    }

    pub fn or(&mut self, a: Val, b: Val) -> Val {
        self.apply(ScalarFn::Or, &[a, b])
    }

    pub fn xor(&mut self, a: Val, b: Val) -> Val {
        self.apply(ScalarFn::Xor, &[a, b])
    }

    pub fn not(&mut self, a: Val) -> Val {
        self.apply(ScalarFn::Not, &[a])
    }

    /// `a & bits`.
    pub fn and_k(&mut self, a: Val, bits: u64) -> Val {
        let k = self.bits(self.dtype(a), bits);
        self.and(a, k)
    }

    /// `a << count`, for an integer.
    pub fn shl_k(&mut self, a: Val, count: u64) -> Val {
        let k = self.bits(self.dtype(a), count);
        self.apply(ScalarFn::Shl, &[a, k])
    }

    /// `a >> count`, for an integer.
    pub fn shr_k(&mut self, a: Val, count: u64) -> Val {
        let k = self.bits(self.dtype(a), count);
        self.apply(ScalarFn::Shr, &[a, k])
    }

    pub fn select(&mut self, c: Val, a: Val, b: Val) -> Val {
        self.apply(ScalarFn::Select, &[c, a, b])
    }

    /// `if c then a else b`, both constants of the type of `like`.
    pub fn select_k(&mut self, c: Val, like: Val, a: f64, b: f64) -> Val {
        let (a, b) = (self.number(like, a), self.number(like, b));
        self.select(c, a, b)
    }

    pub fn cast(&mut self, a: Val, to: DType) -> Val {
        self.apply(ScalarFn::Cast(to), &[a])
    }

    pub fn bitcast(&mut self, a: Val, to: DType) -> Val {
        if self.dtype(a) == to {
            return a;
        }
        self.apply(ScalarFn::Bitcast(to), &[a])
    }

    /// The unsigned integer type as wide as `val`.
    pub fn bits_type(&self, val: Val) -> DType {
        match self.dtype(val).size() {
            1 => DType::U8,
            2 => DType::U16,
            4 => DType::U32,
            _ => DType::U64,
        }
    }

    pub fn bits_of(&mut self, val: Val) -> Val {
        self.bitcast(val, self.bits_type(val))
    }

    /// The sign bit of a float, as bits.
    pub fn sign_bits(&mut self, x: Val) -> Val {
        let bits = self.bits_of(x);
        let sign = 1 << (8 * self.dtype(x).size() - 1);
        self.and_k(bits, sign)
    }

    /// `magnitude` with its sign flipped where `sign` has the sign bit.
    pub fn flip_sign(&mut self, magnitude: Val, sign: Val) -> Val {
        let dtype = self.dtype(magnitude);
        let bits = self.bits_of(magnitude);
        let bits = self.xor(bits, sign);
        self.bitcast(bits, dtype)
    }

    /// At most `limit`; NaN stays.
    pub fn at_most(&mut self, x: Val, limit: f64) -> Val {
        let limit = self.number(x, limit);
        let above = self.lt(limit, x);
        self.select(above, limit, x)
    }

    /// At least `limit`; NaN stays.
    pub fn at_least(&mut self, x: Val, limit: f64) -> Val {
        let limit = self.number(x, limit);
        let below = self.apply(ScalarFn::Gt, &[limit, x]);
        self.select(below, limit, x)
    }
}
