//! Asking the cache for what will be read next.

use std::collections::BTreeSet;

use windlass_ir::loops::{Expr, Index, LoopKind, Nest, Val, Var};

use super::{Emit, Machine};

/// Bytes of a line of a cache.
pub const LINE: usize = 64;

/// What will be read next of the panels.
pub struct Ahead {
    /// The variable of the lanes of panels.
    pub lane: Var,
    /// How many a panel has.
    pub lanes: usize,
    /// The load of the packed operand.
    pub packed: Val,
    /// Which panel.
    pub panel: Index,
    /// The variables of its steps, each with its first value.
    pub steps: Vec<(Var, Index)>,
    /// A tile's share of it.
    pub bytes: usize,
}

impl Ahead {
    /// Asks for the share of one of the tiles that pass over the panel before.
    pub fn emit(self, emit: &mut Emit<'_>, tile: &Index) {
        let lines = self.bytes.div_ceil(LINE);
        let line = tile.mul(lines as i64).add(&emit.enter(LoopKind::Unroll, lines));
        self.steps.into_iter().for_each(|(var, start)| emit.bind(var, start));
        emit.bind(self.lane, self.panel.mul(self.lanes as i64));
        let size = emit.nest.dtype(self.packed).size();
        emit.prefetch(self.packed, &line.mul((LINE / size) as i64));
        emit.leave();
    }
}

/// The loads of what is done to finished reductions that come from memory, each element once: of operands that the second
/// cache does not hold, of neighbours along the lanes.
pub fn streamed(nest: &Nest, lane: Var, machine: &Machine) -> Vec<Val> {
    let is_streamed = |&val: &Val| {
        let Expr::Load { operand, index, guards } = nest.expr(val) else { return false };
        let len: usize = nest.operands[*operand as usize].shape.iter().product();
        let is_large = len * nest.dtype(val).size() > machine.block_bytes;
        let known = guards.is_empty() && index[0].values().is_empty();
        is_large && known && index[0].coefficient(lane) == Some(1)
    };
    after_reductions(nest).into_iter().filter(is_streamed).collect()
}

/// The expressions that make results from finished reductions.
pub fn after_reductions(nest: &Nest) -> Vec<Val> {
    let (mut found, mut seen, mut left) = (Vec::new(), BTreeSet::new(), nest.roots.clone());
    while let Some(val) = left.pop() {
        if matches!(nest.expr(val), Expr::Reduce { .. }) || !seen.insert(val) {
            continue;
        }
        found.push(val);
        nest.expr(val).visit_operands(&mut |operand| left.push(operand));
    }
    found
}

/// Asks for what a load reads of a row of lanes, at whose start the variables are.
pub fn row(emit: &mut Emit<'_>, load: Val, lanes: usize) {
    let size = emit.nest.dtype(load).size();
    let lines = (lanes * size).div_ceil(LINE);
    let line = emit.enter(LoopKind::Unroll, lines);
    emit.prefetch(load, &line.mul((LINE / size) as i64));
    emit.leave();
}
