//! `rms_norm`: layer norm that leaves the mean in, as LLaMA and its kin have it.

use windlass_ir::Graph;
use windlass_ir::ops::LayerNorm;

use super::{Composite, Plan, trailing_axis};
use crate::pattern::Match;
use crate::reason::Reason;

/// The composite.
pub const COMPOSITE: Composite = Composite {
    name: "rms_norm",
    formulas: &[
        "s = sqrt(reduce_mean(x * x) + #epsilon); (x / s | x * (1 / s)) * scale",
        "s = sqrt(reduce_mean(x * x) + #epsilon); x / s | x * (1 / s)",
    ],
    plan,
};

fn plan(graph: &Graph, found: &Match<'_>) -> Result<Plan, Reason> {
    let axis = trailing_axis(found, graph.ty(found.value("x")).rank())?;
    let epsilon = found.as_number("epsilon").unwrap_or(0.0);
    let op = LayerNorm { rms: true, axis, epsilon };
    Ok(Plan::new(op, if found.as_value("scale").is_some() { &["x", "scale"] } else { &["x"] }))
}
