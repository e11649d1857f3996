//! `group_norm`: as exporters write it for operator sets without it, an instance norm of groups as channels.

use windlass_ir::ops::{GroupNorm, Reshape};
use windlass_ir::{Dim, Graph, Op};

use super::{Composite, Operand, Plan};
use crate::pattern::Match;
use crate::reason::Reason;

/// The composite.
pub const COMPOSITE: Composite = Composite {
    name: "group_norm",
    formulas: &["g = reshape(x); reshape(instance_norm(g, 1, 0)) * scale + bias"],
    plan,
};

fn plan(graph: &Graph, found: &Match<'_>) -> Result<Plan, Reason> {
    let [x, grouped] = ["x", "g"].map(|name| graph.ty(found.value(name)));
    let is_norm = |op: &Op| match op {
        Op::GroupNorm(norm) if norm.instance && !norm.channels_last => Some(norm.epsilon),
        _ => None,
    };
    let epsilon = found.nodes.iter().find_map(|&node| is_norm(&graph.node(node).op));
    let epsilon = epsilon.ok_or(Reason::Unsound("the groups are not the second dimension"))?;
    let of_batch = grouped.rank() >= 2 && x.rank() >= 2 && grouped.dims[0] == x.dims[0];
    let (true, Some(&Dim::Fixed(groups)), Some(&Dim::Fixed(channels))) =
        (of_batch, grouped.dims.get(1), x.dims.get(1))
    else {
        return Err(Reason::Unsound("the groups are not of channels"));
    };
    let parts = ["scale", "bias"].map(|name| {
        // One element a channel, with a dimension of 1 for each that follows.
        let dims = &graph.ty(found.value(name)).dims;
        let after = x.rank() - 2;
        let split = dims.len().checked_sub(after + 1)?;
        let fits = dims[split] == Dim::Fixed(channels)
            && dims.iter().enumerate().all(|(dim, extent)| dim == split || *extent == Dim::Fixed(1));
        fits.then(|| Operand::Applied(Reshape::to(&[channels]).into(), name))
    });
    let [Some(scale), Some(bias)] = parts else {
        return Err(Reason::Unsound("scale and bias have not one element a channel"));
    };
    let op = GroupNorm { instance: false, num_groups: groups as i64, epsilon, channels_last: false };
    Ok(Plan { op: op.into(), ins: vec![Operand::Named("x"), scale, bias] })
}
