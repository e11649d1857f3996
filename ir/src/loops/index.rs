//! Index expressions: integer-linear combinations of loop variables, with floor division and modulus by
//! constants, kept in a normal form so that index maps compose and cancel.
//!
//! Reshapes introduce `x / c` and `x % c`; composing two of them, or a reshape with the row-major
//! flattening of a buffer, must give back something simple. The rules that do it are exact integer
//! identities, applied as an [`Index`] is built: terms divisible by `c` leave a division or modulus,
//! what then lies in `0..c` needs neither, and `c * (x / c) + x % c` is `x`. Variables carry their
//! extent, so ranges are known without a context.

mod atom;

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

pub use self::atom::{Atom, Var};
use super::Val;

/// An index: the sum of `coefficient * atom` and a constant, terms sorted by atom, no zero coefficient.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Index {
    terms: SmallVec<[(Atom, i64); 2]>,
    constant: i64,
}

impl Hash for Index {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for (atom, c) in &self.terms {
            atom.hash(state);
            state.write_i64(*c);
        }
        state.write_i64(self.constant);
    }
}

impl Clone for Index {
    fn clone(&self) -> Index {
        self.map_coefficients(self.constant, |c| c)
    }
}

impl Index {
    /// A constant.
    pub fn constant(value: i64) -> Index {
        Index { terms: SmallVec::new(), constant: value }
    }

    /// A variable; one that takes a single value is 0.
    pub fn var(var: Var) -> Index {
        match var.extent {
            1 => Index::constant(0),
            _ => Index { terms: smallvec![(Atom::Var(var), 1)], constant: 0 },
        }
    }

    /// A value computed by the body, known to lie in `0..extent`.
    pub fn value(val: Val, extent: usize) -> Index {
        Index { terms: smallvec![(Atom::Value(val, extent), 1)], constant: 0 }
    }

    /// The row-major position of a multi-dimensional index in a buffer of this shape.
    pub fn flatten(index: &[Index], shape: &[usize]) -> Index {
        debug_assert_eq!(index.len(), shape.len());
        index.iter().zip(shape).fold(Index::constant(0), |flat, (i, &n)| flat.mul(n as i64).add(i))
    }

    /// The multi-dimensional index of a row-major position, for a position inside the shape.
    pub fn unflatten(flat: &Index, shape: &[usize]) -> Vec<Index> {
        let mut rest = flat.clone();
        let mut index = vec![Index::constant(0); shape.len()];
        for (slot, &n) in index.iter_mut().zip(shape).skip(1).rev() {
            *slot = rest.rem(n.max(1) as i64);
            rest = rest.div(n.max(1) as i64);
        }
        if let Some(outermost) = index.first_mut() {
            *outermost = rest;
        }
        index
    }

    /// The terms: atoms with their coefficients.
    pub fn terms(&self) -> &[(Atom, i64)] {
        &self.terms
    }

    /// The constant part.
    pub fn offset(&self) -> i64 {
        self.constant
    }

    /// The value, if it does not depend on anything.
    pub fn as_constant(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// The variable this is, if it is just one.
    pub fn as_var(&self) -> Option<Var> {
        match self.terms.as_slice() {
            [(Atom::Var(var), 1)] if self.constant == 0 => Some(*var),
            _ => None,
        }
    }

    /// The coefficient of a variable as a direct term, and whether it occurs nowhere else.
    pub fn coefficient(&self, var: Var) -> Option<i64> {
        let inside = |atom: &Atom| match atom {
            Atom::Var(_) | Atom::Value(..) => false,
            Atom::Div(x, _) | Atom::Mod(x, _) => x.mentions(var),
        };
        if self.terms.iter().any(|(atom, _)| inside(atom)) {
            return None;
        }
        let direct = self.terms.iter().find(|(atom, _)| *atom == Atom::Var(var));
        Some(direct.map_or(0, |(_, c)| *c))
    }

    /// Whether a variable occurs anywhere.
    pub fn mentions(&self, var: Var) -> bool {
        let mut found = false;
        self.visit_vars(&mut |occurs| found |= occurs == var);
        found
    }

    /// Every variable, as often as it occurs.
    pub fn visit_vars(&self, visit: &mut impl FnMut(Var)) {
        self.visit_atoms(&mut |atom| {
            if let Atom::Var(var) = atom {
                visit(*var);
            }
        });
    }

    /// Every variable that occurs, sorted, without repetition.
    pub fn vars(&self) -> SmallVec<[Var; 4]> {
        let mut found = SmallVec::new();
        self.visit_vars(&mut |var| found.push(var));
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Every computed value that occurs.
    pub fn values(&self) -> SmallVec<[Val; 2]> {
        let mut found = SmallVec::new();
        self.visit_atoms(&mut |atom| {
            if let Atom::Value(val, _) = atom {
                found.push(*val);
            }
        });
        found
    }

    /// Every computed value that occurs, with the number of values it may take.
    pub fn visit_extents(&self, visit: &mut impl FnMut(Val, usize)) {
        self.visit_atoms(&mut |atom| {
            if let Atom::Value(val, extent) = atom {
                visit(*val, *extent);
            }
        });
    }

    fn visit_atoms(&self, visit: &mut impl FnMut(&Atom)) {
        for (atom, _) in &self.terms {
            visit(atom);
            if let Atom::Div(x, _) | Atom::Mod(x, _) = atom {
                x.visit_atoms(visit);
            }
        }
    }

    /// The smallest and the largest value it can take.
    pub fn range(&self) -> (i64, i64) {
        let mut low = self.constant;
        let mut high = self.constant;
        for (atom, c) in &self.terms {
            let (a, b) = atom.range();
            let (a, b) = (a.saturating_mul(*c), b.saturating_mul(*c));
            low = low.saturating_add(a.min(b));
            high = high.saturating_add(a.max(b));
        }
        (low, high)
    }

    /// Whether it always lies in `0..size`.
    pub fn is_within(&self, size: usize) -> bool {
        let (low, high) = self.range();
        low >= 0 && high < size as i64
    }

    /// `self + other`.
    pub fn add(&self, other: &Index) -> Index {
        let mut sum = self.clone();
        sum.add_multiple(other, 1);
        sum
    }

    /// Adds `factor * other`.
    pub fn add_multiple(&mut self, other: &Index, factor: i64) {
        self.constant = self.constant.wrapping_add(other.constant.wrapping_mul(factor));
        if factor != 0 {
            other.terms.iter().for_each(|(atom, c)| self.add_term(atom, c.wrapping_mul(factor)));
        }
        self.recombine();
    }

    /// The same terms with other coefficients, none of them 0, and this constant.
    fn map_coefficients(&self, constant: i64, each: impl Fn(i64) -> i64) -> Index {
        let mut terms = SmallVec::with_capacity(self.terms.len());
        for (atom, c) in &self.terms {
            terms.push((atom.clone(), each(*c)));
        }
        Index { terms, constant }
    }

    /// `self + constant`.
    pub fn add_const(&self, constant: i64) -> Index {
        self.map_coefficients(self.constant.wrapping_add(constant), |c| c)
    }

    /// `self - other`.
    pub fn sub(&self, other: &Index) -> Index {
        self.add(&other.mul(-1))
    }

    /// `self * factor`.
    pub fn mul(&self, factor: i64) -> Index {
        if factor == 0 {
            return Index::constant(0);
        }
        self.map_coefficients(self.constant.wrapping_mul(factor), |c| c.wrapping_mul(factor))
    }

    /// `floor(self / divisor)` if that needs no division.
    pub fn as_plain_quotient(&self, divisor: i64) -> Option<Index> {
        let (mut quotient, rest) = self.split(divisor);
        let (low, high) = rest.range();
        let first = low.div_euclid(divisor);
        quotient.constant = quotient.constant.wrapping_add(first);
        (first == high.div_euclid(divisor)).then_some(quotient)
    }

    /// `floor(self / divisor)`, for a positive divisor.
    pub fn div(&self, divisor: i64) -> Index {
        debug_assert!(divisor > 0);
        if divisor == 1 {
            return self.clone();
        }
        if let Some(quotient) = self.as_plain_quotient(divisor) {
            return quotient;
        }
        let (mut quotient, rest) = self.split(divisor);
        if let Some((g, high, _)) = rest.coarse(divisor) {
            return quotient.add(&high.div(divisor / g));
        }
        let part = match rest.as_single() {
            Some(Atom::Div(x, c)) => return quotient.add(&x.div(c.saturating_mul(divisor))),
            Some(Atom::Mod(x, m)) if m % divisor == 0 => {
                return quotient.add(&x.div(divisor).rem(m / divisor));
            }
            _ => Atom::Div(Arc::new(rest), divisor),
        };
        quotient.add_term(&part, 1);
        quotient.recombine();
        quotient
    }

    /// `self` as `g * high + low` with a factor `g` of the divisor and a `low` that lies in `0..g`: then `high` alone is
    /// divided, by `divisor / g`.
    fn coarse(&self, divisor: i64) -> Option<(i64, Index, Index)> {
        let mut terms: SmallVec<[&(Atom, i64); 4]> = self.terms.iter().collect();
        terms.sort_by_key(|(_, c)| c.unsigned_abs());
        (0..terms.len()).find_map(|count| {
            let (fine, coarse) = terms.split_at(count);
            let g = coarse.iter().fold(divisor, |g, (_, c)| gcd(g, *c));
            let mut low = Index::constant(self.constant.rem_euclid(g));
            fine.iter().for_each(|(atom, c)| low.add_term(atom, *c));
            (g > 1 && low.is_within(usize::try_from(g).ok()?)).then(|| {
                let mut high = Index::constant(self.constant.div_euclid(g));
                coarse.iter().for_each(|(atom, c)| high.add_term(atom, c / g));
                (g, high, low)
            })
        })
    }

    /// `self mod divisor`, in `0..divisor`, for a positive divisor.
    pub fn rem(&self, divisor: i64) -> Index {
        debug_assert!(divisor > 0);
        if divisor == 1 {
            return Index::constant(0);
        }
        let (_, rest) = self.split(divisor);
        let (low, high) = rest.range();
        let first = low.div_euclid(divisor);
        if first == high.div_euclid(divisor) {
            return rest.add_const(-first * divisor);
        }
        if let Some((g, high, low)) = rest.coarse(divisor) {
            return high.rem(divisor / g).mul(g).add(&low);
        }
        if let Some(Atom::Mod(x, m)) = rest.as_single()
            && m % divisor == 0
        {
            return x.rem(divisor);
        }
        Index { terms: smallvec![(Atom::Mod(Arc::new(rest), divisor), 1)], constant: 0 }
    }

    /// The index with variables replaced; `replace` gives `None` for those that stay.
    pub fn substitute<I: Borrow<Index>>(&self, replace: &impl Fn(Var) -> Option<I>) -> Index {
        self.map(replace, &|val| val)
    }

    /// The index with computed values renamed.
    pub fn map_values(&self, rename: &impl Fn(Val) -> Val) -> Index {
        self.map(&|_| None::<Index>, rename)
    }

    /// The index with variables replaced, as by [`Index::substitute`], and computed values renamed.
    pub fn map<I: Borrow<Index>>(
        &self,
        replace: &impl Fn(Var) -> Option<I>,
        rename: &impl Fn(Val) -> Val,
    ) -> Index {
        let mut result = Index::constant(self.constant);
        for (atom, c) in &self.terms {
            match atom {
                Atom::Var(var) => match replace(*var) {
                    Some(index) => result.add_multiple(index.borrow(), *c),
                    None => result.add_atom(atom, *c),
                },
                Atom::Div(x, d) => result.add_multiple(&x.map(replace, rename).div(*d), *c),
                Atom::Mod(x, d) => result.add_multiple(&x.map(replace, rename).rem(*d), *c),
                Atom::Value(val, extent) => result.add_atom(&Atom::Value(rename(*val), *extent), *c),
            }
        }
        result
    }

    /// The value, given each variable's and each computed value's.
    pub fn eval(&self, var: &impl Fn(Var) -> i64, val: &impl Fn(Val) -> i64) -> i64 {
        self.terms.iter().fold(self.constant, |sum, (atom, c)| {
            let x = match atom {
                Atom::Var(v) => var(*v),
                Atom::Div(x, d) => x.eval(var, val).div_euclid(*d),
                Atom::Mod(x, d) => x.eval(var, val).rem_euclid(*d),
                Atom::Value(v, _) => val(*v),
            };
            sum.wrapping_add(x.wrapping_mul(*c))
        })
    }

    /// `self = divisor * quotient + rest`, moving whole multiples of the divisor to the quotient.
    fn split(&self, divisor: i64) -> (Index, Index) {
        let mut quotient = Index::constant(self.constant.div_euclid(divisor));
        let mut rest = Index::constant(self.constant.rem_euclid(divisor));
        for (atom, c) in &self.terms {
            match c % divisor {
                0 => quotient.terms.push((atom.clone(), c / divisor)),
                _ => rest.terms.push((atom.clone(), *c)),
            }
        }
        (quotient, rest)
    }

    fn as_single(&self) -> Option<&Atom> {
        match self.terms.as_slice() {
            [(atom, 1)] if self.constant == 0 => Some(atom),
            _ => None,
        }
    }

    /// Adds `c * atom`.
    fn add_atom(&mut self, atom: &Atom, c: i64) {
        self.add_term(atom, c);
        self.recombine();
    }

    fn add_term(&mut self, atom: &Atom, c: i64) {
        match self.terms.binary_search_by(|(a, _)| a.cmp(atom)) {
            Ok(at) => {
                self.terms[at].1 = self.terms[at].1.wrapping_add(c);
                if self.terms[at].1 == 0 {
                    self.terms.remove(at);
                }
            }
            Err(at) => self.terms.insert(at, (atom.clone(), c)),
        }
    }

    /// Applies `k * (x mod c) + k * c * (x / c) = k * x` until it no longer does.
    fn recombine(&mut self) {
        'again: loop {
            for at in 0..self.terms.len() {
                let (Atom::Mod(x, c), k) = &self.terms[at] else { continue };
                let (c, k) = (*c, *k);
                // The terms of x / c have coefficients that k * c divides.
                let step = k.wrapping_mul(c);
                if step == 0 || self.terms.iter().all(|(_, have)| have.wrapping_rem(step) != 0) {
                    continue;
                }
                let x = x.clone();
                let quotient = x.div(c);
                // x / c = sum of terms + constant; all of them must be here, k * c fold.
                let present = quotient
                    .terms
                    .iter()
                    .all(|(atom, q)| self.terms.iter().any(|(a, have)| a == atom && *have == q * k * c));
                if quotient.terms.is_empty() || !present {
                    continue;
                }
                self.terms.remove(at);
                self.terms.retain(|(a, _)| !quotient.terms.iter().any(|(b, _)| a == b));
                self.constant -= quotient.constant * k * c;
                let whole = x.mul(k);
                self.constant = self.constant.wrapping_add(whole.constant);
                for (atom, c) in &whole.terms {
                    self.add_term(atom, *c);
                }
                continue 'again;
            }
            return;
        }
    }
}

impl From<Var> for Index {
    fn from(var: Var) -> Index {
        Index::var(var)
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.abs() } else { gcd(b, a % b) }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return write!(f, "{}", self.constant);
        }
        for (i, (atom, c)) in self.terms.iter().enumerate() {
            match (i, *c < 0) {
                (0, false) => {}
                (0, true) => f.write_str("-")?,
                (_, false) => f.write_str(" + ")?,
                (_, true) => f.write_str(" - ")?,
            }
            if c.unsigned_abs() != 1 {
                write!(f, "{}*", c.unsigned_abs())?;
            }
            match atom {
                Atom::Var(var) => write!(f, "{var}")?,
                Atom::Div(x, c) => write!(f, "({x})/{c}")?,
                Atom::Mod(x, c) => write!(f, "({x})%{c}")?,
                Atom::Value(val, _) => write!(f, "{val}")?,
            }
        }
        match self.constant {
            0 => Ok(()),
            c if c < 0 => write!(f, " - {}", c.unsigned_abs()),
            c => write!(f, " + {c}"),
        }
    }
}

#[cfg(test)]
mod tests;
