//! `silu`, also called swish.

use windlass_ir::Graph;
use windlass_ir::ops::Silu;

use super::{Composite, Plan};
use crate::pattern::Match;
use crate::reason::Reason;

/// The composite.
pub const COMPOSITE: Composite = Composite {
    name: "silu",
    formulas: &["x * sigmoid(x)", "x * sigmoid(#alpha * x)", "x / (1 + exp(-x))"],
    plan,
};

fn plan(_: &Graph, found: &Match<'_>) -> Result<Plan, Reason> {
    Ok(Plan::new(Silu { alpha: found.as_number("alpha").unwrap_or(1.0) }, &["x"]))
}
