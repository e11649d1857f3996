//! Regions: where code goes.
//!
//! A region is the function's entry, a loop's body or one side of a branch. Each open region has an
//! insertion point: its current block's end, or, when a region is open inside it, just before the
//! jump into that one. So a value emitted in an outer region dominates everything still to come in
//! the inner ones, and code moves out of loops by being emitted where its operands are known. Pure
//! values are remembered by what computes them and never emitted twice in one region.

use std::collections::HashMap;

use cranelift_codegen::cursor::{Cursor, FuncCursor};
use cranelift_codegen::ir::{self, BlockArg, InstBuilder, Type, types};
use windlass_ir::loops::Buffer;

use super::{Emitter, Number};

/// What computes a pure value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Bits(u64, Type),
    Add(ir::Value, ir::Value),
    Scale(ir::Value, i64),
    Product(ir::Value, ir::Value),
    Div(ir::Value, i64),
    Below(ir::Value, u64),
    Both(ir::Value, ir::Value),
    Guarded(ir::Value, ir::Value),
    Zeros,
    Load(ir::Value, i32, Type),
    Splat(ir::Value, Type),
    Negated(ir::Value),
    Iota(i64),
}

#[derive(Clone, Debug)]
pub(super) struct Region {
    pub kind: RegionKind,
    /// The block that code is appended to.
    pub block: ir::Block,
    /// The jump into the region open inside this one.
    pub before: Option<ir::Inst>,
    pub cache: HashMap<Key, ir::Value>,
}

#[derive(Clone, Debug)]
pub(super) enum RegionKind {
    Entry,
    Loop(LoopRegion),
    Branch,
}

#[derive(Clone, Debug)]
pub(super) struct LoopRegion {
    /// The counter.
    pub iv: ir::Value,
    pub start: ir::Value,
    pub end: ir::Value,
    pub step: i64,
    pub header: ir::Block,
    pub exit: ir::Block,
    /// The jump to the header, which is its first destination.
    pub entry: ir::Inst,
    /// Multiples of the counter that are counted along with it.
    pub derived: Vec<(i64, ir::Value)>,
    /// Parts of register buffers that are parameters of the header and the exit, in order.
    pub carried: Vec<(Buffer, usize)>,
    /// Register buffers that live within one iteration.
    pub dropped: Vec<Buffer>,
    /// Whether there is at least one iteration.
    pub runs: bool,
}

impl Region {
    pub fn new(kind: RegionKind, block: ir::Block) -> Region {
        Region { kind, block, before: None, cache: HashMap::new() }
    }
}

impl Emitter<'_> {
    /// Emits an instruction in an open region.
    pub(super) fn effect(
        &mut self,
        region: usize,
        build: impl FnOnce(ir::InsertBuilder<'_, &mut FuncCursor<'_>>) -> ir::Inst,
    ) -> ir::Inst {
        let Region { block, before, .. } = &self.regions[region];
        let cursor = FuncCursor::new(&mut self.func);
        let mut cursor = match before {
            Some(inst) => cursor.at_inst(*inst),
            None => cursor.at_bottom(*block),
        };
        build(cursor.ins())
    }

    /// Emits a value in an open region.
    pub(super) fn at(
        &mut self,
        region: usize,
        build: impl FnOnce(ir::InsertBuilder<'_, &mut FuncCursor<'_>>) -> ir::Value,
    ) -> ir::Value {
        let Region { block, before, .. } = &self.regions[region];
        let cursor = FuncCursor::new(&mut self.func);
        let mut cursor = match before {
            Some(inst) => cursor.at_inst(*inst),
            None => cursor.at_bottom(*block),
        };
        let value = build(cursor.ins());
        self.home[value] = region as u32;
        value
    }

    /// A value remembered in a region.
    pub(super) fn cached(
        &mut self,
        region: usize,
        key: Key,
        build: impl FnOnce(ir::InsertBuilder<'_, &mut FuncCursor<'_>>) -> ir::Value,
    ) -> ir::Value {
        if let Some(&value) = self.regions[region].cache.get(&key) {
            return value;
        }
        let value = self.at(region, build);
        self.regions[region].cache.insert(key, value);
        value
    }

    /// A cheap pure value, emitted where its operands are known.
    pub(super) fn pure(
        &mut self,
        key: Key,
        operands: &[ir::Value],
        build: impl FnOnce(ir::InsertBuilder<'_, &mut FuncCursor<'_>>) -> ir::Value,
    ) -> ir::Value {
        let region = operands.iter().map(|&v| self.home[v] as usize).max().unwrap_or(0);
        self.cached(region, key, build)
    }

    /// The outermost region where arithmetic on these operands may go: not out of a branch, which may be
    /// taken rarely.
    pub(super) fn hoisted(&self, operands: &[ir::Value]) -> usize {
        let known = operands.iter().map(|&v| self.home[v] as usize).max().unwrap_or(0);
        let branch = self.regions.iter().rposition(|r| matches!(r.kind, RegionKind::Branch));
        known.max(branch.unwrap_or(0))
    }

    /// The outermost region where a load from an address may go: only out of loops that run.
    pub(super) fn load_region(&self, address: ir::Value) -> usize {
        let known = self.home[address] as usize;
        let mut region = self.top_index();
        while region > known && matches!(&self.regions[region].kind, RegionKind::Loop(l) if l.runs) {
            region -= 1;
        }
        region
    }

    /// Where a constant is made: outside the innermost loop, so that it neither is made in each iteration
    /// nor occupies a register in loops that do not use it.
    pub(super) fn constant_region(&self) -> usize {
        let top = self.top_index();
        match self.regions[top].kind {
            RegionKind::Loop(_) => top - 1,
            RegionKind::Entry | RegionKind::Branch => top,
        }
    }

    /// An i64 constant; mostly it ends up as an immediate.
    pub(super) fn int(&mut self, value: i64) -> ir::Value {
        self.cached(0, Key::Bits(value as u64, types::I64), |ins| ins.iconst(types::I64, value))
    }

    pub(super) fn number(&mut self, number: Number) -> ir::Value {
        match number {
            Number::Known(n) => self.int(n),
            Number::Value(value) => value,
        }
    }

    /// `value * scale`. A multiple of a loop's counter is either a scaled index, which addresses take for
    /// free, or counted along.
    pub(super) fn scaled(&mut self, value: ir::Value, scale: i64) -> ir::Value {
        if scale == 1 {
            return value;
        }
        if !matches!(scale, 2 | 4 | 8) {
            let counted = self
                .regions
                .iter()
                .position(|r| matches!(&r.kind, RegionKind::Loop(region) if region.iv == value));
            if let Some(level) = counted {
                return self.derived(level, scale);
            }
        }
        let factor = self.int(scale);
        self.pure(Key::Scale(value, scale), &[value], |ins| {
            if scale > 0 && scale & (scale - 1) == 0 {
                ins.ishl_imm_u(value, i64::from(scale.trailing_zeros()))
            } else {
                ins.imul(value, factor)
            }
        })
    }

    /// A multiple of a loop's counter, as a counter of its own.
    fn derived(&mut self, level: usize, scale: i64) -> ir::Value {
        let RegionKind::Loop(region) = &self.regions[level].kind else { unreachable!("found as a loop") };
        if let Some(&(_, value)) = region.derived.iter().find(|(s, _)| *s == scale) {
            return value;
        }
        let (start, entry) = (region.start, region.entry);
        let header = region.header;
        let zero = self.regions[0].cache.get(&Key::Bits(0, types::I64)).copied();
        let first = if Some(start) == zero { start } else { self.scaled(start, scale) };
        let param = self.func.dfg.append_block_param(header, types::I64);
        self.home[param] = level as u32;
        let dfg = &mut self.func.dfg;
        let destinations =
            dfg.insts[entry].branch_destination_mut(&mut dfg.jump_tables, &mut dfg.exception_tables);
        destinations[0].append_argument(BlockArg::Value(first), &mut dfg.value_lists);
        let RegionKind::Loop(region) = &mut self.regions[level].kind else { unreachable!("as above") };
        region.derived.push((scale, param));
        param
    }
}
