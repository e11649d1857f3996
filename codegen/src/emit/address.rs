//! Indices, guards and addresses.
//!
//! An index under the current bindings is a sum of scaled values and a constant. Its terms are added
//! up from the outermost loop inwards, so each partial sum is computed in the loop that completes it,
//! once for all accesses that share it; the constant becomes a displacement.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};
use windlass_ir::loops::{Atom, Buffer, Guard, Index};

use super::{Binding, Emitter, Number};
use crate::error::Error;
use crate::ssa::{Condition, Op, Type, Value};

/// A sum of scaled values and a constant.
#[derive(Clone, Debug, Default)]
pub(super) struct Linear {
    terms: Terms,
    constant: i64,
}

/// Values with their scales.
pub(super) type Terms = SmallVec<[(Value, i64); 4]>;

/// What a division gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Quotient,
    Remainder,
}

/// A division of an index, whose variables are bound so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Division {
    x: Arc<Index>,
    divisor: i64,
    part: Part,
    bindings: SmallVec<[Binding; 4]>,
}

impl Linear {
    fn push(&mut self, value: Value, scale: i64) {
        match self.terms.iter_mut().find(|(v, _)| *v == value) {
            Some((_, have)) => *have = have.wrapping_add(scale),
            None => self.terms.push((value, scale)),
        }
    }

    fn plus(&mut self, other: &Linear, scale: i64) {
        self.constant = self.constant.wrapping_add(other.constant.wrapping_mul(scale));
        for &(value, s) in &other.terms {
            self.push(value, s.wrapping_mul(scale));
        }
    }
}

impl Emitter<'_> {
    /// The index under the current bindings.
    pub(super) fn linear(&mut self, index: &Index) -> Result<Linear, Error> {
        let mut linear = Linear { terms: SmallVec::new(), constant: index.offset() };
        for (atom, scale) in index.terms() {
            match atom {
                Atom::Var(var) => {
                    let Some(&Binding { base, offset }) = self.vars.get(&var.id) else {
                        return self.error(format!("{var} is used outside its loop"));
                    };
                    linear.constant = linear.constant.wrapping_add(offset.wrapping_mul(*scale));
                    if let Some(base) = base {
                        linear.push(base, *scale);
                    }
                }
                Atom::Value(val, _) => match self.constants[*val] {
                    Some(bits) => {
                        linear.constant = linear.constant.wrapping_add((bits as i64).wrapping_mul(*scale))
                    }
                    None => {
                        let value = self.scalar(*val)?;
                        linear.push(value, *scale);
                    }
                },
                Atom::Div(x, divisor) => {
                    self.add_divided(&mut linear, *scale, (x, *divisor), Part::Quotient)?;
                }
                Atom::Mod(x, divisor) => {
                    self.add_divided(&mut linear, *scale, (x, *divisor), Part::Remainder)?;
                }
            }
        }
        linear.terms.retain(|(_, scale)| *scale != 0);
        Ok(linear)
    }

    /// Adds a multiple of a quotient or remainder, remembered in the current region: a tile's accesses share most of them.
    fn add_divided(
        &mut self,
        sum: &mut Linear,
        scale: i64,
        (x, divisor): (&Arc<Index>, i64),
        part: Part,
    ) -> Result<(), Error> {
        let mut bindings = SmallVec::new();
        x.visit_vars(&mut |v| bindings.push(self.vars.get(&v.id).copied().unwrap_or_default()));
        let division = Division { x: x.clone(), divisor, part, bindings };
        if let Some(known) = self.top().divisions.get(&division) {
            sum.plus(known, scale);
            return Ok(());
        }
        let divided = match part {
            Part::Quotient => self.quotient(x, divisor)?,
            Part::Remainder => self.remainder(x, divisor)?,
        };
        sum.plus(&divided, scale);
        // Values may be others next time.
        if x.values().is_empty() {
            self.top().divisions.insert(division, divided);
        }
        Ok(())
    }

    /// The index with loop variables replaced that are bound to constants, if there are any.
    fn fold(&self, index: &Index) -> Option<Index> {
        let known = |id: u32| match self.vars.get(&id) {
            Some(Binding { base: None, offset }) => Some(Index::constant(*offset)),
            _ => None,
        };
        let mut any = false;
        index.visit_vars(&mut |v| any |= known(v.id).is_some());
        any.then(|| index.substitute(&|v| known(v.id)))
    }

    fn quotient(&mut self, x: &Index, divisor: i64) -> Result<Linear, Error> {
        if let Some(folded) = self.fold(x) {
            return self.linear(&folded.div(divisor));
        }
        match self.index(x)? {
            Number::Known(n) => Ok(Linear { terms: SmallVec::new(), constant: n.div_euclid(divisor) }),
            Number::Value(value) => {
                let quotient = self.div(value, x.range(), divisor);
                Ok(Linear { terms: smallvec![(quotient, 1)], constant: 0 })
            }
        }
    }

    /// x mod d = x - d * (x / d), and the division is shared.
    fn remainder(&mut self, x: &Index, divisor: i64) -> Result<Linear, Error> {
        if let Some(folded) = self.fold(x) {
            return self.linear(&folded.rem(divisor));
        }
        let mut rest = self.linear(x)?;
        match self.sum(rest.clone()) {
            Number::Known(n) => Ok(Linear { terms: SmallVec::new(), constant: n.rem_euclid(divisor) }),
            Number::Value(value) => {
                let quotient = self.div(value, x.range(), divisor);
                rest.push(quotient, -divisor);
                // One value, so that whatever it is added to does not repeat the multiplication.
                let value = self.sum(rest);
                let value = self.number(value);
                Ok(Linear { terms: smallvec![(value, 1)], constant: 0 })
            }
        }
    }

    /// `floor(value / divisor)` for a value in a range.
    fn div(&mut self, value: Value, (low, high): (i64, i64), divisor: i64) -> Value {
        if divisor & (divisor - 1) == 0 {
            let shift = divisor.trailing_zeros();
            return self.shifted(Op::ShrSigned, value, shift);
        }
        if low < 0 {
            // Move the range to start at or above 0 by a multiple of the divisor.
            let steps = low.div_euclid(divisor).wrapping_neg();
            let offset = self.int(steps.wrapping_mul(divisor));
            let moved = self.pure(Op::Add, &[value, offset]);
            let high = high.saturating_add(steps.saturating_mul(divisor));
            let quotient = self.div(moved, (0, high), divisor);
            let back = self.int(steps.wrapping_neg());
            return self.pure(Op::Add, &[quotient, back]);
        }
        if high < 1 << 31 && divisor < 1 << 31 {
            // With m = floor(2^s / d) + 1 and s = 31 + ceil(log2 d), x * m >> s is exact for x < 2^31
            // (Granlund and Montgomery, 1994), and x * m < 2^31 * (2^32 + 1) fits in 64 bits.
            let shift = 31 + 64 - (divisor - 1).leading_zeros();
            let magic = ((1i128 << shift) / i128::from(divisor) + 1) as i64;
            let magic = self.int(magic);
            let product = self.pure(Op::Mul, &[value, magic]);
            return self.shifted(Op::ShrUnsigned, product, shift);
        }
        let by = self.int(divisor);
        self.pure(Op::DivUnsigned, &[value, by])
    }

    /// The sum as one value.
    pub(super) fn sum(&mut self, linear: Linear) -> Number {
        let Linear { mut terms, constant } = linear;
        if terms.is_empty() {
            return Number::Known(constant);
        }
        terms.sort_by_key(|&(value, _)| self.home[value]);
        let mut sum: Option<Value> = None;
        for (value, scale) in terms {
            let part = self.scaled(value, scale);
            sum = Some(match sum {
                None => part,
                Some(sum) => self.pure(Op::Add, &[sum, part]),
            });
        }
        let sum = sum.expect("there are terms");
        if constant == 0 {
            return Number::Value(sum);
        }
        let constant = self.int(constant);
        Number::Value(self.pure(Op::Add, &[sum, constant]))
    }

    /// The address of an element: a value and a displacement.
    pub(super) fn address(&mut self, buffer: Buffer, index: &Index) -> Result<(Value, i32), Error> {
        let size = self.kernel.buffers[buffer].dtype.size() as i64;
        let Linear { mut terms, constant } = self.linear(index)?;
        let Some(mut address) = self.bases[buffer].expand() else {
            return self.error(format!("`{}` has no address", self.kernel.buffers[buffer].name));
        };
        let displacement = constant.wrapping_mul(size);
        let displacement = match i32::try_from(displacement) {
            Ok(displacement) => displacement,
            Err(_) => {
                let far = self.int(displacement);
                address = self.pure(Op::Add, &[address, far]);
                0
            }
        };
        if terms.is_empty() {
            return Ok((address, displacement));
        }
        terms.iter_mut().for_each(|(_, scale)| *scale = scale.wrapping_mul(size));
        let key = (address, terms);
        if let Some(&known) = self.top().addresses.get(&key) {
            return Ok((known, displacement));
        }
        let mut terms = key.1.clone();
        terms.sort_by_key(|&(value, _)| self.home[value]);
        for (value, scale) in terms {
            let part = self.scaled(value, scale);
            address = self.pure(Op::Add, &[address, part]);
        }
        self.top().addresses.insert(key, address);
        Ok((address, displacement))
    }

    /// Whether all guards hold, as an i8; `None` if there is nothing to test.
    pub(super) fn guards(&mut self, guards: &[Guard]) -> Result<Option<Number>, Error> {
        let mut all: Option<Value> = None;
        for guard in guards {
            let size = guard.size as u64;
            let value = match self.index(&guard.index)? {
                Number::Known(n) if n >= 0 && (n as u64) < size => continue,
                Number::Known(_) => return Ok(Some(Number::Known(0))),
                Number::Value(value) => value,
            };
            let limit = self.int(size as i64);
            let below = self.pure(Op::Compare(Condition::Below), &[value, limit]);
            all = Some(match all {
                None => below,
                Some(all) => self.pure(Op::And, &[all, below]),
            });
        }
        Ok(all.map(Number::Value))
    }

    /// An address of zeros, as many as a vector or a scalar has bytes, wherever the condition fails. The whole
    /// address is chosen, so nothing may be added to it.
    pub(super) fn guarded_address(
        &mut self,
        (address, displacement): (Value, i32),
        condition: Value,
    ) -> Value {
        let zeros = match self.zeros.expand() {
            Some(zeros) => zeros,
            None => {
                let bytes = self.machine.vector_bytes.max(8);
                let slot = self.func.slots.push(bytes as u32);
                let zeros = self.typed(0, Op::StackAddress(slot), Type::I64, &[]);
                let zero = self.int(0);
                for offset in (0..bytes as i32).step_by(8) {
                    let store = Op::Store { offset, bytes: 8 };
                    self.func.push_effect(self.regions[0].block, store, &[zero, zeros]);
                }
                self.zeros = zeros.into();
                zeros
            }
        };
        let offset = self.int(i64::from(displacement));
        let whole = match displacement {
            0 => address,
            _ => self.pure(Op::Add, &[address, offset]),
        };
        self.pure(Op::Select, &[condition, whole, zeros])
    }
}
