//! Composites that exporters write as several ops, as formulas to recognize them by. One file each.
//!
//! To add one: its file, and a line in [`COMPOSITES`]. Formulas are matched after `simplify` and
//! `cse`, so powers of 2 and 3 are products and equal intermediates are one value.

mod attention;
mod gelu;
mod group_norm;
mod layer_norm;
mod rms_norm;
mod silu;
mod softmax;

use std::sync::Arc;

use windlass_ir::{Graph, Op};

use crate::pattern::Match;
use crate::reason::Reason;

/// A composite with the formulas it may be written as.
pub struct Composite {
    /// The rule's name.
    pub name: &'static str,
    /// The formulas, those that stand for most nodes first.
    pub formulas: &'static [&'static str],
    /// What to put in place of a match.
    pub plan: fn(&Graph, &Match<'_>) -> Result<Plan, Reason>,
}

/// The op that stands for a match, and its operands.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The op.
    pub op: Arc<Op>,
    /// The operands.
    pub ins: Vec<Operand>,
}

/// An operand of a recognized composite.
#[derive(Clone, Debug)]
pub enum Operand {
    /// The value that a name of the formula stands for.
    Named(&'static str),
    /// An op of one operand applied to what a name stands for.
    Applied(Op, &'static str),
}

impl Plan {
    /// An op on what these names stand for.
    pub fn new(op: impl Into<Arc<Op>>, names: &[&'static str]) -> Plan {
        Plan { op: op.into(), ins: names.iter().map(|&name| Operand::Named(name)).collect() }
    }
}

/// Every composite.
pub const COMPOSITES: &[&Composite] = &[
    &attention::COMPOSITE,
    &layer_norm::COMPOSITE,
    &rms_norm::COMPOSITE,
    &group_norm::COMPOSITE,
    &gelu::COMPOSITE,
    &silu::COMPOSITE,
    &softmax::COMPOSITE,
];

/// The first of the axes that a match reduces, if they are the last ones of `rank`.
fn trailing_axis(found: &Match<'_>, rank: usize) -> Result<i64, Reason> {
    let axes = found.axes();
    match axes.first() {
        Some(&first) if axes.iter().copied().eq(first..rank) => Ok(first as i64 - rank as i64),
        _ => Err(Reason::Unsound("the reduced axes are not the last ones")),
    }
}
