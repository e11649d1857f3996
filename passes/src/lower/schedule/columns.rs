//! What differs along the lanes but not along other variables, in elementwise nests: computed once for a stretch of lanes,
//! kept on the stack, and read for every value of those variables.
//!
//! Where an image is resized, sampled or rotated, the place that each pixel comes from and its weight are the same in
//! every channel, and cost more than what is done with them.
//!
//! ```text
//! for the variables that it depends on
//!   for stretch of lanes              parallel; or blocks of the first of the variables below are
//!     for lane: kept[lane] = dear
//!     for the variables that it does not depend on
//!       for lane: y[.., lane] = f(kept[lane], ..)
//! ```

use std::collections::BTreeSet;

use windlass_ir::loops::{Buffer, Expr, Index, LoopKind, Nest, Val, Var};

use super::elementwise::in_pieces;
use super::split::Split;
use super::{Emit, PARALLEL_ITERATIONS, parallel_first};
use crate::lower::formula::own_cost;

/// Bytes that are kept at a time: the first-level cache has room for them beside operands and results.
const KEPT_BYTES: usize = 16 << 10;

/// What takes fewer operations is computed again.
const DEAR: u64 = 6;

/// The fewest times that what is kept is read.
const READS: usize = 4;

/// The most lanes of a stretch are a multiple of this many.
const WHOLE: usize = 64;

/// What is kept of a nest, and for what.
pub struct Columns {
    lane: Var,
    /// The variables outside the stretches of lanes.
    outside: Vec<Var>,
    /// Those for which what is kept is read again.
    inside: Vec<Var>,
    kept: Vec<Val>,
}

impl Columns {
    /// What is worth keeping, if anything is.
    pub fn of(emit: &Emit<'_>, lane: Var, outer: &[Var]) -> Option<Columns> {
        let nest = emit.nest;
        if !emit.stands_alone() || outer.is_empty() {
            return None;
        }
        let same = |val: Val| -> Vec<Var> {
            outer.iter().copied().filter(|var| !emit.free(val).contains(var)).collect()
        };
        let reads = |vars: &[Var]| vars.iter().map(|var| var.extent).product::<usize>();
        let (mut found, mut seen, mut left) = (Vec::new(), BTreeSet::new(), nest.roots.clone());
        while let Some(val) = left.pop() {
            if !seen.insert(val) || !emit.free(val).contains(&lane) {
                continue;
            }
            let made = matches!(nest.expr(val), Expr::Apply(..));
            if made && reads(&same(val)) >= READS && cost(nest, val) >= DEAR {
                found.push(val);
            } else {
                nest.expr(val).visit_operands(&mut |operand| left.push(operand));
            }
        }
        // All that is kept is read for each value of the same variables.
        let dearest = found.iter().copied().max_by_key(|&val| (cost(nest, val), val))?;
        let mut inside = same(dearest);
        found.retain(|&val| inside.iter().all(|var| !emit.free(val).contains(var)));
        // What little is made of what is kept is made again.
        let is_kept = |found: &[Val], of: Val| found.contains(&of) || matches!(nest.expr(of), Expr::Const(_));
        let kept: Vec<Val> =
            found.iter().copied().filter(|&val| !made_of(nest, val, &|of| is_kept(&found, of))).collect();
        // What is made of those alone depends on them being outside.
        let alone: BTreeSet<Var> = nest
            .needed(&nest.roots)
            .into_iter()
            .filter(|&val| !emit.free(val).contains(&lane) && cost(nest, val) >= DEAR)
            .flat_map(|val| emit.free(val).iter().copied())
            .collect();
        inside.sort_by_key(|var| !alone.contains(var));
        let outside = outer.iter().copied().filter(|var| !inside.contains(var)).collect();
        Some(Columns { lane, outside, inside, kept })
    }

    /// The loops. The parallel one is, in this order, outside, over stretches of lanes, or over blocks of rows inside.
    pub fn schedule(self, emit: &mut Emit<'_>) {
        let nest = emit.nest;
        let bytes: usize = self.kept.iter().map(|&val| nest.dtype(val).size()).sum();
        let most = (KEPT_BYTES / bytes.max(1) / WHOLE * WHOLE).max(WHOLE);
        let room = |emit: &mut Emit<'_>, size: usize| -> Vec<(Val, Buffer)> {
            self.kept.iter().map(|&val| (val, emit.scratch(val, size))).collect()
        };
        let has_many = |vars: &[Var]| vars.iter().any(|var| var.extent >= PARALLEL_ITERATIONS);
        let (lanes, shared) = (self.lane.extent, emit.is_shared());
        if shared && !has_many(&self.outside) && lanes >= PARALLEL_ITERATIONS * WHOLE {
            let size = most.min((lanes / PARALLEL_ITERATIONS).next_multiple_of(WHOLE));
            let buffers = room(emit, size);
            return in_pieces(emit, LoopKind::Parallel, &[0, lanes], size, &mut |emit, start, count| {
                emit.over_all(&self.outside, false, &nest.roots, &mut |emit| {
                    self.stretch(emit, &buffers, [start, &Index::constant(0)], count, None);
                });
            });
        }
        let size = most.min(lanes);
        let buffers = room(emit, size);
        let block = self.inside.iter().position(|var| var.extent >= PARALLEL_ITERATIONS);
        if let (true, false, Some(at)) = (shared, has_many(&self.outside), block) {
            let row = self.inside[at];
            let rows = Split::even(row.extent, row.extent.div_ceil(PARALLEL_ITERATIONS)).size;
            return in_pieces(emit, LoopKind::Parallel, &[0, row.extent], rows, &mut |emit, first, rows| {
                emit.over_all(&self.outside, false, &nest.roots, &mut |emit| {
                    in_pieces(emit, LoopKind::Serial, &[0, lanes], size, &mut |emit, start, count| {
                        self.stretch(emit, &buffers, [start, first], count, Some((row, rows)));
                    });
                });
            });
        }
        let outside = if shared { parallel_first(self.outside.clone()) } else { self.outside.clone() };
        emit.over_all(&outside, shared && !outside.is_empty(), &nest.roots, &mut |emit| {
            in_pieces(emit, LoopKind::Serial, &[0, lanes], size, &mut |emit, start, count| {
                self.stretch(emit, &buffers, [start, &Index::constant(0)], count, None);
            });
        });
    }

    /// A stretch of `count` lanes from `start` on: what is kept, then the results, for a block of so many rows from `first`
    /// on or for all of them.
    fn stretch(
        &self,
        emit: &mut Emit<'_>,
        buffers: &[(Val, Buffer)],
        [start, first]: [&Index; 2],
        count: usize,
        block: Option<(Var, usize)>,
    ) {
        let roots = &emit.nest.roots;
        emit.unswitch(&self.kept, &mut |emit| {
            let index = emit.enter(LoopKind::Vector, count);
            emit.bind(self.lane, start.add(&index));
            buffers.iter().for_each(|&(val, buffer)| emit.keep(val, buffer, index.clone()));
            emit.leave();
        });
        let mut rest = self.inside.clone();
        if let Some((row, rows)) = block {
            rest.retain(|var| *var != row);
            let index = emit.enter(LoopKind::Serial, rows);
            emit.bind(row, first.add(&index));
        }
        emit.over_all(&rest, false, roots, &mut |emit| {
            emit.unswitch(roots, &mut |emit| {
                let index = emit.enter(LoopKind::Vector, count);
                emit.bind(self.lane, start.add(&index));
                buffers.iter().for_each(|&(val, buffer)| emit.place_result(val, buffer, index.clone()));
                emit.store_results();
                emit.leave();
            });
        });
        if block.is_some() {
            emit.leave();
        }
        buffers.iter().for_each(|&(val, _)| emit.forget(val));
    }
}

/// About how many operations make a value.
fn cost(nest: &Nest, val: Val) -> u64 {
    nest.needed(&[val]).into_iter().map(|val| own_cost(nest.expr(val))).sum()
}

/// Whether a value is one operation of others that are all known.
fn made_of(nest: &Nest, val: Val, known: &dyn Fn(Val) -> bool) -> bool {
    let mut all = own_cost(nest.expr(val)) <= 1;
    nest.expr(val).visit_operands(&mut |operand| all &= known(operand));
    all
}
