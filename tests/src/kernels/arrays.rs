//! Pieces with an array of their own: register tiles, and arrays on the stack.

use windlass_ir::loops::{Index, LoopKind, Role};
use windlass_ir::{DType, ScalarFn};

use super::{Grow, WORK};

impl Grow<'_> {
    /// A register tile: filled, accumulated over a serial loop, perhaps folded, and stored.
    pub(super) fn tile(&mut self) {
        let dtype = loop {
            let dtype = self.dtype();
            if !matches!(dtype, DType::Bool | DType::F16 | DType::BF16) {
                break dtype;
            }
        };
        let rows = 1 + self.rng.below(4);
        let lanes = *self.rng.choose(&[1, 2, 3, 4, 5, 8, 12, 16, 32]);
        let steps = 1 + self.rng.below(6);
        if rows * lanes * steps * self.work > 4 * WORK {
            return self.leaf();
        }
        let name = self.name("acc");
        let acc = self.b.buffer(&name, dtype, rows * lanes, Role::Register);
        let start = self.simple(dtype);
        self.over_tile(rows, lanes, &mut |grow, at| grow.b.store(acc, at, start));
        let combine = match dtype.is_float() {
            true => {
                *self.rng.choose(&[ScalarFn::Fma, ScalarFn::Fma, ScalarFn::Add, ScalarFn::Max, ScalarFn::Min])
            }
            false => *self.rng.choose(&[ScalarFn::Add, ScalarFn::Mul, ScalarFn::Max, ScalarFn::Xor]),
        };
        self.enter(LoopKind::Serial, steps);
        let scalar = self.load(dtype);
        self.over_tile(rows, lanes, &mut |grow, at| {
            let value = grow.load(dtype);
            let old = grow.b.load(acc, at.clone());
            let new = match combine {
                ScalarFn::Fma => grow.b.apply(combine, &[value, scalar, old]),
                _ => grow.b.apply(combine, &[old, value]),
            };
            grow.b.store(acc, at, new);
        });
        self.leave();
        if rows == 1 && lanes.is_power_of_two() && self.rng.flag() {
            let fold = if combine == ScalarFn::Fma { ScalarFn::Add } else { combine };
            let mut width = lanes / 2;
            while width > 0 {
                let lane = self.enter(LoopKind::Vector, width);
                let (low, high) =
                    (self.b.load(acc, lane.clone()), self.b.load(acc, lane.add_const(width as i64)));
                let sum = self.b.apply(fold, &[low, high]);
                self.b.store(acc, lane, sum);
                self.leave();
                width /= 2;
            }
            let total = self.b.load(acc, Index::constant(0));
            self.keep(total);
            return self.leaf();
        }
        self.over_tile(rows, lanes, &mut |grow, at| {
            let value = grow.b.load(acc, at);
            grow.keep(value);
            grow.leaf();
        });
    }

    fn over_tile(&mut self, rows: usize, lanes: usize, body: &mut dyn FnMut(&mut Self, Index)) {
        let row = if rows > 1 { self.enter(LoopKind::Unroll, rows) } else { Index::constant(0) };
        let lane = self.enter(LoopKind::Vector, lanes);
        body(self, row.mul(lanes as i64).add(&lane));
        self.leave();
        if rows > 1 {
            self.leave();
        }
    }

    /// An array on the stack, written by lanes and then read in another order.
    pub(super) fn stack(&mut self) {
        let dtype = self.dtype();
        let extent = self.extent();
        let name = self.name("row");
        let row = self.b.buffer(&name, dtype, extent, Role::Stack);
        let lane = self.enter(LoopKind::Vector, extent);
        let value = self.expression(dtype, 2);
        self.b.store(row, lane, value);
        self.leave();
        let kind = *self.rng.choose(&[LoopKind::Vector, LoopKind::Serial]);
        let i = self.enter(kind, extent);
        let at = match self.rng.below(3) {
            0 => Index::constant(extent as i64 - 1).sub(&i),
            1 => i.mul(3).rem(extent as i64),
            _ => i,
        };
        let value = self.b.load(row, at);
        self.keep(value);
        self.leaf();
        self.leave();
    }
}
