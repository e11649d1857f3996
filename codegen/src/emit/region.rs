//! Regions: where code goes.
//!
//! A region is the function's entry, a loop's body or one side of a branch. Each open region has a block
//! that code is added to, before the jump into the region that is open inside it. So a value emitted in an outer region dominates everything still to come in
//! the inner ones, and code moves out of loops by being emitted where its operands are known. Pure
//! values are remembered by what computes them and never emitted twice in one region.

use std::collections::hash_map::Entry;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use windlass_ir::loops::Buffer;

use super::address::{Division, Linear, Terms};
use super::{Emitter, Number};
use crate::ssa::{Block, End, Op, Type, Value};

/// What computes a pure value.
pub(super) type Key = (Op, Type, SmallVec<[Value; 3]>);

#[derive(Clone, Debug)]
pub(super) struct Region {
    pub kind: RegionKind,
    /// The block that code is added to.
    pub block: Block,
    pub cache: FxHashMap<Key, Value>,
    /// Divisions of indices made while this was the innermost region.
    pub divisions: FxHashMap<Division, Linear>,
    /// Addresses made meanwhile, by where they start and what is added.
    pub addresses: FxHashMap<(Value, Terms), Value>,
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
    pub iv: Value,
    pub start: Value,
    pub end: Value,
    pub step: i64,
    pub header: Block,
    pub exit: Block,
    /// The block that ends with the jump to the header, its first target.
    pub entry: Block,
    /// Multiples of the counter that are counted along with it.
    pub derived: Vec<(i64, Value)>,
    /// Parts of register buffers that are parameters of the header and the exit, in order.
    pub carried: Vec<(Buffer, usize)>,
    /// Register buffers that live within one iteration.
    pub dropped: Vec<Buffer>,
    /// Whether there is at least one iteration.
    pub runs: bool,
}

impl Region {
    pub fn new(kind: RegionKind, block: Block) -> Region {
        let (cache, divisions, addresses) = Default::default();
        Region { kind, block, cache, divisions, addresses }
    }
}

impl Emitter<'_> {
    /// Emits an instruction without a result at the current position.
    pub(super) fn effect(&mut self, op: Op, args: &[Value]) {
        let block = self.top().block;
        self.func.push_effect(block, op, args);
    }

    /// Emits a value of the type of its operands in an open region.
    pub(super) fn at(&mut self, region: usize, op: Op, args: &[Value]) -> Value {
        let ty = self.func.result_type(op, args);
        self.typed(region, op, ty, args)
    }

    /// Emits a value of a given type in an open region.
    pub(super) fn typed(&mut self, region: usize, op: Op, ty: Type, args: &[Value]) -> Value {
        let value = self.func.push(self.regions[region].block, op, ty, args);
        self.home[value] = region as u32;
        value
    }

    /// A value of a given type, remembered in a region.
    pub(super) fn cached(&mut self, region: usize, op: Op, ty: Type, args: &[Value]) -> Value {
        let key: Key = (op, ty, SmallVec::from_slice(args));
        let next = self.func.values.next_key();
        match self.regions[region].cache.entry(key) {
            Entry::Occupied(known) => return *known.get(),
            Entry::Vacant(place) => place.insert(next),
        };
        self.typed(region, op, ty, args)
    }

    /// A cheap pure value, emitted where its operands are known.
    pub(super) fn pure(&mut self, op: Op, args: &[Value]) -> Value {
        let known = args.iter().map(|&v| self.home[v] as usize).max().unwrap_or(0);
        let region = self.sunk(known);
        let ty = self.func.result_type(op, args);
        self.cached(region, op, ty, args)
    }

    /// The innermost region that runs no more often than a given one: inside the branches that it ends with.
    fn sunk(&self, region: usize) -> usize {
        let inner = &self.regions[region + 1..];
        region + inner.iter().take_while(|r| matches!(r.kind, RegionKind::Branch)).count()
    }

    /// The outermost region where arithmetic on these operands may go: not out of a branch, which may be
    /// taken rarely.
    pub(super) fn hoisted(&self, operands: &[Value]) -> usize {
        let known = operands.iter().map(|&v| self.home[v] as usize).max().unwrap_or(0);
        let branch = self.regions.iter().rposition(|r| matches!(r.kind, RegionKind::Branch));
        known.max(branch.unwrap_or(0))
    }

    /// The outermost region where a load from an address may go: only out of loops that run.
    pub(super) fn load_region(&self, address: Value) -> usize {
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
    pub(super) fn int(&mut self, value: i64) -> Value {
        self.cached(0, Op::Const(value as u64), Type::I64, &[])
    }

    pub(super) fn number(&mut self, number: Number) -> Value {
        match number {
            Number::Known(n) => self.int(n),
            Number::Value(value) => value,
        }
    }

    /// `value * scale`. A multiple of a loop's counter is either a scaled index, which addresses take for
    /// free, or counted along.
    pub(super) fn scaled(&mut self, value: Value, scale: i64) -> Value {
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
        match scale > 0 && scale & (scale - 1) == 0 {
            true => self.shifted(Op::Shl, value, scale.trailing_zeros()),
            false => {
                let factor = self.int(scale);
                self.pure(Op::Mul, &[value, factor])
            }
        }
    }

    /// A value shifted by a constant.
    pub(super) fn shifted(&mut self, op: Op, value: Value, count: u32) -> Value {
        let count = self.int(i64::from(count));
        self.pure(op, &[value, count])
    }

    /// A multiple of a loop's counter, as a counter of its own.
    fn derived(&mut self, level: usize, scale: i64) -> Value {
        let RegionKind::Loop(region) = &self.regions[level].kind else { unreachable!("found as a loop") };
        if let Some(&(_, value)) = region.derived.iter().find(|(s, _)| *s == scale) {
            return value;
        }
        let (start, entry, header) = (region.start, region.entry, region.header);
        let first = if self.func.as_const(start) == Some(0) { start } else { self.scaled(start, scale) };
        let param = self.func.param(header, Type::I64);
        self.home[param] = level as u32;
        match &mut self.func.blocks[entry].end {
            End::Jump(target) | End::Branch(_, [target, _]) => target.args.push(first),
            End::Open | End::Return => unreachable!("a loop's entry jumps to it"),
        }
        let RegionKind::Loop(region) = &mut self.regions[level].kind else { unreachable!("as above") };
        region.derived.push((scale, param));
        param
    }
}
