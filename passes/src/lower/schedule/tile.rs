//! Tiled nests: reductions whose results are neighbours in memory, accumulated in a register tile of
//! rows by lanes.
//!
//! ```text
//! for block of rows, group of panels   parallel
//!   for block of k
//!     for tile of rows, panel of lanes   in the order that caches want
//!       acc[rows, lanes] = if the first block: 0, else: part[tile, rows, lanes]
//!       for k: for row unrolled: for lane vector: acc[row, lane] = fma(b[k, lane], a[row, k], acc[row, lane])
//!       if the last block: for row unrolled: for lane vector: y[row, lane] = epilogue(acc[row, lane])
//!       else: part[tile, rows, lanes] = acc
//! ```
//!
//! Steps at which no row of a tile adds anything, as among the zeros around an image, are left out ([`super::skips`]).
//!
//! What tiles share stays in the second cache ([`super::blocks`]). Long reductions alone are cut into blocks of k
//! for that; between blocks the sums wait on the stack.
//!
//! The same loops serve matrix products, every convolution, pooling, and sums over outer dimensions:
//! only index maps differ. Each element is accumulated over the reduction's variables in ascending
//! order, so the tile's shape does not show in the bits.

mod plan;

use std::collections::BTreeSet;

use windlass_ir::ScalarFn;
use windlass_ir::loops::{Buffer, Expr, Guard, Index, LoopKind, Nest, Val, Var};

pub use self::plan::{FEW_LANES, FEW_ROWS, Plan, packed_row_bytes, plan, split_lane, tile_bytes};
use super::ahead::{self, Ahead};
use super::blocks::{Blocks, Footprint};
use super::depth::{Depth, Part};
use super::skips;
use super::split::{Split, with_part};
use super::{Emit, Machine, PARALLEL_ITERATIONS};
use crate::lower::formula::own_cost;

/// The loops of a tiled nest.
pub fn schedule(emit: &mut Emit<'_>, plan: &Plan, machine: &Machine) {
    let nest = emit.nest;
    let extents = |vars: &[Var]| -> Vec<usize> { vars.iter().map(|v| v.extent).collect() };
    let row_count: usize = extents(&plan.rows).iter().product();
    let panels = plan.lane.extent.div_ceil(plan.lanes);
    let steps: usize = plan.reductions.iter().flat_map(|&r| emit.reduce_vars(r)).map(|v| v.extent).product();
    let batch_count: usize = extents(&plan.batch).iter().product();
    let vectors = plan.lanes.min(plan.lane.extent).div_ceil(plan.vector);
    let even = Split::even(row_count, plan.even_rows);
    // Tiles of one size, if a little smaller, are better than two sizes: one is compiled in half the time.
    let tiles = match even.size * vectors >= ENOUGH_SUMS {
        true => even,
        false => Split::of(row_count, plan.tile_rows),
    };
    let most_rows = plan.tile_rows.max(tiles.size);
    let size = nest.dtype(plan.reductions[0]).size();
    let depth =
        Depth::of(emit, plan.reductions[0], tiles.parts, steps, machine.panel_bytes / (plan.lanes * size));
    let wanted = if emit.is_shared() { PARALLEL_ITERATIONS.div_ceil(batch_count.max(1)) } else { 1 };
    let tile_len = most_rows * plan.pitch(plan.lanes);
    let product = Footprint {
        tiles: tiles.parts,
        panels,
        sums: tile_len * size,
        lanes: plan.lanes * size,
        panel: steps.saturating_mul(plan.lanes * size),
        rows: depth.steps().max(1).saturating_mul(most_rows * size),
        block: depth.steps().max(1).saturating_mul(plan.lanes * size),
        waits: depth.is_cut(),
    };
    let blocks = Blocks::of(&product, wanted, machine);
    let mut shape = extents(&plan.batch);
    shape.extend([blocks.rows.parts, blocks.panels.parts]);
    let iterations = shape.iter().product();
    let kind = match emit.is_shared() && iterations > 1 {
        true => LoopKind::Parallel,
        false => LoopKind::Serial,
    };
    let iteration = emit.enter(kind, iterations);
    let mut parts = Index::unflatten(&iteration, &shape);
    let (group, block) = (parts.pop().expect("two more"), parts.pop().expect("one more"));
    for (&var, part) in plan.batch.iter().zip(parts) {
        emit.bind(var, part);
    }
    let waiting = blocks.rows.size * blocks.panels.size * tile_len;
    depth.over_blocks(emit, waiting, &mut |emit, part| {
        blocks.over(emit, [&block, &group], &mut |emit, place| {
            if let (Some(packed), 1..) = (plan.packed, blocks.ahead) {
                let (panel, later) = blocks.next_panel(place, depth.is_cut());
                let steps = depth.first_steps(part.as_ref(), &later);
                let (lane, lanes, bytes) = (plan.lane, plan.lanes, blocks.ahead);
                Ahead { lane, lanes, packed, panel, steps, bytes }.emit(emit, place.own_tile);
            }
            let part = part.clone().map(|part| part.at(blocks.number(place).mul(tile_len as i64)));
            let panel = place.panel;
            with_part(emit, tiles, place.tile, &mut |emit, first_row, rows| {
                with_panel(emit, plan, panel, &mut |emit, lanes, stored| {
                    let (first_row, part) = (&first_row, part.as_ref());
                    Tile { plan, depth: &depth, part, first_row, rows, panel, lanes, stored }.emit(emit);
                });
            });
        });
    });
    emit.leave();
}

/// The sums, in vectors, that a processor works on at a time: it starts two multiply-adds in a cycle and waits four or five
/// for each.
const ENOUGH_SUMS: usize = 10;

/// What is done to a tile's sums in more operations than this is a loop over rows: written out for each row it would
/// be most of the code, and compiling it most of the time.
const ROLLED: u64 = 12;

/// An estimate of the operations that make a result from finished reductions.
fn epilogue_cost(nest: &Nest) -> u64 {
    let cost = |val: Val| match nest.expr(val) {
        Expr::Apply(ScalarFn::Relu | ScalarFn::Clamp, _) => 2,
        // Limited first.
        Expr::Apply(ScalarFn::Cast(to), of) if to.size() < 4 && nest.dtype(of[0]).is_float() => 4,
        expr => own_cost(expr),
    };
    ahead::after_reductions(nest).into_iter().map(cost).sum()
}

/// Runs `body` with the lanes to compute and those to store in a panel, in an `if` where the last has fewer.
fn with_panel<'n>(
    emit: &mut Emit<'n>,
    plan: &Plan,
    panel: &Index,
    body: &mut dyn FnMut(&mut Emit<'n>, usize, usize),
) {
    let (whole, rest) = (plan.lane.extent / plan.lanes, plan.lane.extent % plan.lanes);
    let last = if plan.padded { plan.pitch(rest).min(plan.lanes) } else { rest };
    match (whole, rest) {
        (_, 0) => body(emit, plan.lanes, plan.lanes),
        (0, _) => body(emit, last, rest),
        _ => {
            emit.enter_if(&[Guard::new(panel.clone(), whole)]);
            body(emit, plan.lanes, plan.lanes);
            emit.enter_else();
            body(emit, last, rest);
            emit.leave();
        }
    }
}

/// A variable of its own for the rows of a tile, where all of them are asked about; no kernel has as many.
const ROW: u32 = u32::MAX;

/// One register tile.
struct Tile<'p> {
    plan: &'p Plan,
    depth: &'p Depth,
    /// Which block of the reduction, if it has several.
    part: Option<&'p Part>,
    first_row: &'p Index,
    rows: usize,
    panel: &'p Index,
    /// How many lanes are computed.
    lanes: usize,
    /// How many of them are stored.
    stored: usize,
}

impl Tile<'_> {
    /// How far apart its rows are where sums are kept.
    fn pitch(&self) -> usize {
        self.plan.pitch(self.lanes)
    }

    /// The elements of a buffer for its sums.
    fn len(&self) -> usize {
        self.rows * self.pitch()
    }

    /// Where such a buffer has a sum.
    fn at(&self, row: &Index, lane: &Index) -> Index {
        row.mul(self.pitch() as i64).add(lane)
    }

    fn emit(&self, emit: &mut Emit<'_>) {
        self.ask(emit);
        let mut done: Vec<(Val, Buffer)> = Vec::new();
        for &reduction in &self.plan.reductions {
            let acc = emit.register_tile(reduction, self.len());
            if let Some(part) = self.part {
                emit.enter_if(&part.first);
                emit.fill_identity(reduction, acc, self.rows, self.lanes, self.pitch());
                emit.enter_else();
                self.each(emit, |emit, at| emit.copy(part.buffer, part.offset.add(&at), acc, at.clone()));
                emit.leave();
            } else {
                emit.fill_identity(reduction, acc, self.rows, self.lanes, self.pitch());
            }
            let mut vars = emit.reduce_vars(reduction);
            if let Some(part) = self.part {
                let (var, start, size) = &part.cut;
                let index = emit.enter(LoopKind::Serial, *size);
                emit.bind(*var, start.add(&index));
                vars = self.depth.inner.clone();
            }
            if self.plan.computed {
                vars.retain(|&var| Some(var) != self.plan.choice);
            }
            let tested = skips::tested(emit.nest, reduction, &vars);
            self.over_steps(emit, &vars, &tested, &mut |emit| {
                if self.plan.computed {
                    return self.steps(emit, reduction, acc);
                }
                let made = self.make(emit);
                self.over_rows(emit, |emit, row| {
                    emit.unswitch(&[reduction], &mut |emit| {
                        self.over_lanes(emit, self.lanes, &done, &row, |emit, lane| {
                            for &(val, buffer) in &made {
                                emit.place_result(val, buffer, lane.clone());
                            }
                            emit.accumulate(reduction, acc, self.at(&row, lane));
                        });
                    });
                });
                made.iter().for_each(|(val, _)| emit.forget(*val));
            });
            if self.part.is_some() {
                emit.leave();
            }
            done.push((reduction, acc));
        }
        if let Some(part) = self.part {
            let acc = done[0].1;
            emit.enter_if(&part.last);
            self.results(emit, &done);
            emit.enter_else();
            self.each(emit, |emit, at| emit.copy(acc, at.clone(), part.buffer, part.offset.add(&at)));
            emit.leave();
        } else {
            self.results(emit, &done);
        }
    }

    /// Runs `body` for each step, but for those at which the guards say that no row adds anything.
    fn over_steps<'n>(
        &self,
        emit: &mut Emit<'n>,
        vars: &[Var],
        guards: &[Guard],
        body: &mut dyn FnMut(&mut Emit<'n>),
    ) {
        let is_open = |guard: &Guard| vars.iter().any(|&var| guard.index.mentions(var));
        let (open, decided): (Vec<Guard>, Vec<Guard>) = guards.iter().cloned().partition(is_open);
        let row = Var { id: ROW, extent: self.rows };
        let mut tests = Vec::new();
        if !decided.is_empty() {
            self.bind_row(emit, &Index::var(row));
            for guard in &decided {
                let guard = Guard { index: emit.index(&guard.index), size: guard.size };
                tests.extend(skips::for_some(&guard, row));
            }
        }
        if !tests.is_empty() {
            emit.enter_if(&tests);
        }
        match vars.split_first() {
            Some((&var, rest)) => {
                let index = emit.enter(LoopKind::Serial, var.extent);
                emit.bind(var, index);
                self.over_steps(emit, rest, &open, body);
                emit.leave();
            }
            None => body(emit),
        }
        if !tests.is_empty() {
            emit.leave();
        }
    }

    /// Makes what the rows share of a step, in registers.
    fn make(&self, emit: &mut Emit<'_>) -> Vec<(Val, Buffer)> {
        let one = |&val: &Val| {
            let buffer = emit.register_tile(val, self.lanes);
            self.over_lanes(emit, self.lanes, &[], &Index::constant(0), |emit, lane| {
                emit.keep(val, buffer, lane.clone());
            });
            (val, buffer)
        };
        self.plan.made.iter().map(one).collect()
    }

    /// Asks for what the epilogue will read, so that it comes while sums are made.
    fn ask(&self, emit: &mut Emit<'_>) {
        if self.plan.streamed.is_empty() {
            return;
        }
        if let Some(part) = self.part {
            emit.enter_if(&part.last);
        }
        emit.bind(self.plan.lane, self.panel.mul(self.plan.lanes as i64));
        for &load in &self.plan.streamed {
            self.over_rows(emit, |emit, _| ahead::row(emit, load, self.stored));
        }
        if self.part.is_some() {
            emit.leave();
        }
    }

    /// The steps of the choices, for all rows, written out for each lane: what rows and choices share is computed once.
    fn steps(&self, emit: &mut Emit<'_>, reduction: Val, acc: Buffer) {
        let lane = emit.enter(LoopKind::Vector, self.lanes);
        emit.bind(self.plan.lane, self.panel.mul(self.plan.lanes as i64).add(&lane));
        for step in 0..self.plan.choice.map_or(1, |var| var.extent) {
            if let Some(var) = self.plan.choice {
                emit.bind_anew(var, Index::constant(step as i64));
            }
            for row in 0..self.rows {
                self.bind_row(emit, &Index::constant(row as i64));
                emit.accumulate(reduction, acc, lane.add_const((row * self.pitch()) as i64));
            }
        }
        emit.leave();
    }

    /// Runs `body` for each element of the tile.
    fn each<'n>(&self, emit: &mut Emit<'n>, body: impl FnOnce(&mut Emit<'n>, Index)) {
        let row = emit.enter_rows(self.rows);
        let lane = emit.enter(LoopKind::Vector, self.lanes);
        body(emit, self.at(&row, &lane));
        emit.leave();
        emit.leave_rows(self.rows);
    }

    /// What depends on the finished reductions.
    fn results(&self, emit: &mut Emit<'_>, done: &[(Val, Buffer)]) {
        let roots = emit.nest.roots.clone();
        let once = self.once(emit);
        let rolled = epilogue_cost(emit.nest) > ROLLED && (self.rows > 1 || !once.is_empty());
        let stacked = if rolled { self.on_the_stack(emit, done) } else { done.to_vec() };
        let done = stacked.as_slice();
        if rolled && self.plan.inner.is_empty() {
            return self.results_in_a_loop(emit, done, &roots);
        }
        let mut kept = done.to_vec();
        for val in once {
            let tile = match rolled {
                true => emit.scratch(val, self.len()),
                false => emit.register_tile(val, self.len()),
            };
            self.over_rows(emit, |emit, row| {
                emit.unswitch(&[val], &mut |emit| {
                    self.over_lanes(emit, self.stored, done, &row, |emit, lane| {
                        emit.keep(val, tile, self.at(&row, lane));
                    });
                });
            });
            kept.push((val, tile));
        }
        emit.over_all(&self.plan.inner, false, &roots, &mut |emit| {
            self.over_rows(emit, |emit, row| {
                emit.unswitch(&roots, &mut |emit| {
                    self.over_lanes(emit, self.stored, &kept, &row, |emit, _| emit.store_results());
                });
            });
        });
        kept[done.len()..].iter().for_each(|(val, _)| emit.forget(*val));
    }

    /// What is made of finished reductions for results that differ along variables on which it does not depend.
    fn once(&self, emit: &Emit<'_>) -> Vec<Val> {
        let (mut found, mut seen, mut left) = (Vec::new(), BTreeSet::new(), emit.nest.roots.clone());
        while let Some(val) = left.pop().filter(|_| !self.plan.inner.is_empty()) {
            let free = emit.free(val);
            if !seen.insert(val) || !free.contains(&self.plan.lane) {
                continue;
            }
            let is_made = matches!(emit.nest.expr(val), Expr::Apply(..));
            if is_made && self.plan.inner.iter().all(|inner| !free.contains(inner)) {
                found.push(val);
            } else if is_made {
                emit.nest.expr(val).visit_operands(&mut |operand| left.push(operand));
            }
        }
        found
    }

    /// Finished reductions where loops can index them, so that the code for what is done to them is written once.
    fn on_the_stack(&self, emit: &mut Emit<'_>, done: &[(Val, Buffer)]) -> Vec<(Val, Buffer)> {
        let stacked = done.iter().map(|&(reduction, acc)| {
            let stack = emit.scratch(reduction, self.len());
            self.each(emit, |emit, at| emit.copy(acc, at.clone(), stack, at));
            (reduction, stack)
        });
        stacked.collect()
    }

    /// The same for one row after another of sums on the stack.
    fn results_in_a_loop(&self, emit: &mut Emit<'_>, stacked: &[(Val, Buffer)], roots: &[Val]) {
        let row = emit.enter(LoopKind::Serial, self.rows);
        self.bind_row(emit, &row);
        emit.unswitch(roots, &mut |emit| {
            self.over_lanes(emit, self.stored, stacked, &row, |emit, _| emit.store_results());
        });
        emit.leave();
    }

    /// Opens the unrolled loop over rows and says which row of the domain each is.
    fn over_rows<'n>(&self, emit: &mut Emit<'n>, body: impl FnOnce(&mut Emit<'n>, Index)) {
        let row = emit.enter_rows(self.rows);
        self.bind_row(emit, &row);
        body(emit, row);
        emit.leave_rows(self.rows);
    }

    /// Says which row of the domain a row of the tile is.
    fn bind_row(&self, emit: &mut Emit<'_>, row: &Index) {
        let extents: Vec<usize> = self.plan.rows.iter().map(|v| v.extent).collect();
        let position = Index::unflatten(&self.first_row.add(row), &extents);
        for (&var, index) in self.plan.rows.iter().zip(position) {
            emit.bind_anew(var, index);
        }
    }

    /// Opens the vector loop over lanes and says where finished reductions have this lane's result.
    fn over_lanes<'n>(
        &self,
        emit: &mut Emit<'n>,
        lanes: usize,
        done: &[(Val, Buffer)],
        row: &Index,
        body: impl FnOnce(&mut Emit<'n>, &Index),
    ) {
        let lane = emit.enter(LoopKind::Vector, lanes);
        emit.bind(self.plan.lane, self.panel.mul(self.plan.lanes as i64).add(&lane));
        for &(reduction, acc) in done {
            emit.place_result(reduction, acc, self.at(row, &lane));
        }
        body(emit, &lane);
        emit.leave();
    }
}
