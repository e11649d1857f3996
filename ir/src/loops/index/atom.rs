//! Loop variables, and what else the terms of an index multiply.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::Index;
use crate::loops::Val;

/// A loop variable: its number and how many values it takes, `0..extent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Var {
    /// Its number, unique within a nest or kernel.
    pub id: u32,
    /// It counts from 0 to below this.
    pub extent: usize,
}

// Formulas are hashed as they are built. What follows takes fewer words than derived code would.
impl Hash for Var {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64((self.extent as u64) << 32 ^ u64::from(self.id));
    }
}

impl fmt::Display for Var {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{}", self.id)
    }
}

/// What a term multiplies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Atom {
    /// A loop variable.
    Var(Var),
    /// `floor(x / c)`, c > 1.
    Div(Arc<Index>, i64),
    /// `x mod c`, in `0..c`, c > 1.
    Mod(Arc<Index>, i64),
    /// An i64 value computed by the body (a gathered position), known to lie in `0..extent`.
    Value(Val, usize),
}

impl Hash for Atom {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Atom::Var(var) => var.hash(state),
            Atom::Div(x, c) => (x, *c).hash(state),
            Atom::Mod(x, c) => (x, -*c).hash(state),
            Atom::Value(val, extent) => state.write_u64((*extent as u64) << 32 ^ !u64::from(val.as_u32())),
        }
    }
}

impl Atom {
    /// The smallest and the largest value it can take.
    pub(super) fn range(&self) -> (i64, i64) {
        match self {
            Atom::Var(var) => (0, var.extent.saturating_sub(1) as i64),
            Atom::Div(x, c) => {
                let (low, high) = x.range();
                (low.div_euclid(*c), high.div_euclid(*c))
            }
            Atom::Mod(_, c) => (0, c - 1),
            Atom::Value(_, extent) => (0, extent.saturating_sub(1) as i64),
        }
    }
}
