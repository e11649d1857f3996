//! Asking the cache for what will be read next.

use windlass_ir::loops::{Index, LoopKind, Val, Var};

use super::Emit;

/// Bytes of a line of a cache.
const LINE: usize = 64;

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
