//! `softmax` and `log_softmax`, of the form that cannot overflow.

use windlass_ir::Graph;
use windlass_ir::ops::Softmax;

use super::{Composite, Plan};
use crate::pattern::Match;
use crate::reason::Reason;

/// The composite.
pub const COMPOSITE: Composite = Composite {
    name: "softmax",
    formulas: &[
        "e = exp(x - reduce_max(x)); e / reduce_sum(e)",
        "d = x - reduce_max(x); d - log(reduce_sum(exp(d)))",
    ],
    plan,
};

fn plan(_: &Graph, found: &Match<'_>) -> Result<Plan, Reason> {
    match *found.axes() {
        [axis] => Ok(Plan::new(
            Softmax { log: found.as_value("d").is_some(), axis: axis as i64, masked: false },
            &["x"],
        )),
        _ => Err(Reason::Unsound("more than one axis is reduced")),
    }
}
