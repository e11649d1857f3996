//! `gelu`: by the error function and by tanh.

use windlass_ir::Graph;
use windlass_ir::ops::{Gelu, GeluForm};

use super::{Composite, Plan};
use crate::pattern::Match;
use crate::reason::Reason;

/// The composite.
pub const COMPOSITE: Composite = Composite {
    name: "gelu",
    formulas: &[
        "e = erf(x / 1.4142135623730951 | x * 0.7071067811865476) + 1;
         x * e * 0.5 | x * 0.5 * e | x * (0.5 * e)",
        "c = x * x * x | x * (x * x);
         t = tanh(0.7978845608028654 * (x + 0.044715 * c)) + 1;
         x * t * 0.5 | x * 0.5 * t | x * (0.5 * t)",
        "t = tanh(0.7978845608028654 * x * (0.044715 * (x * x) + 1)) + 1;
         x * t * 0.5 | x * 0.5 * t | x * (0.5 * t)",
    ],
    plan,
};

fn plan(_: &Graph, found: &Match<'_>) -> Result<Plan, Reason> {
    let approximate = if found.as_value("t").is_some() { GeluForm::Tanh } else { GeluForm::None };
    Ok(Plan::new(Gelu { approximate }, &["x"]))
}
