//! `layer_norm`: as PyTorch and TensorFlow decompose it.

use windlass_ir::Graph;
use windlass_ir::ops::LayerNorm;

use super::{Composite, Plan, trailing_axis};
use crate::pattern::Match;
use crate::reason::Reason;

/// The composite.
pub const COMPOSITE: Composite = Composite {
    name: "layer_norm",
    formulas: &[
        "d = x - reduce_mean(x);
         s = sqrt(reduce_mean(d * d) + #epsilon);
         (d / s | d * (1 / s)) * scale + bias",
        "m = reduce_mean(x); d = x - m;
         s = sqrt(reduce_mean(d * d) + #epsilon);
         r = scale / s | 1 / s * scale;
         x * r + (bias - m * r)",
        "d = x - reduce_mean(x);
         s = sqrt(reduce_mean(d * d) + #epsilon);
         (d / s | d * (1 / s)) * scale",
        "d = x - reduce_mean(x);
         s = sqrt(reduce_mean(d * d) + #epsilon);
         d / s | d * (1 / s)",
    ],
    plan,
};

fn plan(graph: &Graph, found: &Match<'_>) -> Result<Plan, Reason> {
    let axis = trailing_axis(found, graph.ty(found.value("x")).rank())?;
    let epsilon = found.as_number("epsilon").unwrap_or(0.0);
    let mut names = vec!["x"];
    names.extend(["scale", "bias"].into_iter().filter(|name| found.as_value(name).is_some()));
    Ok(Plan::new(LayerNorm { rms: false, axis, epsilon }, &names))
}
