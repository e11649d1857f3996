//! Reductions: partial results in registers, step by step, and folded lanes.

use windlass_ir::loops::{Buffer, Expr, Index, LoopKind, Reduction, Rhs, Val, Var};
use windlass_ir::{DType, ScalarFn};

use super::Emit;

impl Emit<'_> {
    /// The identity of a reduction, as a value.
    fn identity(&mut self, kind: Reduction, dtype: DType) -> Val {
        self.define(self.outermost, dtype, Rhs::Const(kind.identity(dtype)))
    }

    /// One step of a reduction: `acc` combined with the argument at the variables' present values.
    ///
    /// A sum of float products is one fma, its operand that varies with the lane first.
    pub fn step(&mut self, reduce: Val, acc: Val) -> Val {
        let Expr::Reduce { kind, arg, .. } = self.nest.expr(reduce) else {
            panic!("{reduce} is no reduction")
        };
        let (kind, arg) = (*kind, *arg);
        if let (Reduction::Sum, Expr::Apply(ScalarFn::Mul, factors)) = (kind, self.nest.expr(arg))
            && self.nest.dtype(arg).is_float()
        {
            let ((a, at_a), (b, at_b)) = (self.value_at(factors[0]), self.value_at(factors[1]));
            let lane = self.nest.domain.last();
            let varies = |factor: Val| lane.is_some_and(|lane| self.free[factor].contains(lane));
            let swapped = at_a < at_b || at_a == at_b && !varies(factors[0]) && varies(factors[1]);
            let (a, b) = if swapped { (b, a) } else { (a, b) };
            return self.apply(ScalarFn::Fma, &[a, b, acc]);
        }
        let arg = self.value(arg);
        self.combine(kind, acc, arg)
    }

    /// Two partial results of a reduction as one.
    fn combine(&mut self, kind: Reduction, a: Val, b: Val) -> Val {
        match kind {
            Reduction::Greatest => {
                let greater = self.apply(ScalarFn::Gt, &[a, b]);
                self.apply(ScalarFn::Select, &[greater, a, b])
            }
            Reduction::Sum | Reduction::Prod | Reduction::Max | Reduction::Min => {
                self.apply(kind.combine(), &[a, b])
            }
        }
    }

    /// A register buffer for partial results of a reduction, filled with its identity.
    pub fn accumulator(&mut self, reduce: Val, rows: usize, lanes: usize) -> Buffer {
        let buffer = self.register_tile(reduce, rows * lanes);
        self.fill_identity(reduce, buffer, rows, lanes, lanes);
        buffer
    }

    /// Fills a register tile, whose rows are `pitch` elements apart, with a reduction's identity.
    pub fn fill_identity(&mut self, reduce: Val, buffer: Buffer, rows: usize, lanes: usize, pitch: usize) {
        let Expr::Reduce { kind, .. } = self.nest.expr(reduce) else { panic!("{reduce} is no reduction") };
        let identity = self.identity(*kind, self.nest.dtype(reduce));
        let row = self.enter_rows(rows);
        let lane = self.enter(LoopKind::Vector, lanes);
        self.builder.store(buffer, row.mul(pitch as i64).add(&lane), identity);
        self.leave();
        self.leave_rows(rows);
    }

    /// Updates an element of an accumulator with one step of the reduction.
    pub fn accumulate(&mut self, reduce: Val, buffer: Buffer, index: Index) {
        let acc = self.load(buffer, index.clone());
        let next = self.step(reduce, acc);
        self.builder.store(buffer, index, next);
    }

    /// A reduction's result as a scalar of the present block, by plain loops in order.
    pub(super) fn reduce_serially(&mut self, reduce: Val) -> Val {
        let buffer = self.accumulator(reduce, 1, 1);
        let vars = self.reduce_vars(reduce);
        for &var in &vars {
            let index = self.enter(LoopKind::Serial, var.extent);
            self.bind(var, index);
        }
        self.accumulate(reduce, buffer, Index::constant(0));
        vars.iter().for_each(|_| self.leave());
        self.load(buffer, Index::constant(0))
    }

    /// The variables a reduction binds.
    pub fn reduce_vars(&self, reduce: Val) -> Vec<Var> {
        let Expr::Reduce { vars, .. } = self.nest.expr(reduce) else { panic!("{reduce} is no reduction") };
        vars.clone()
    }

    /// A reduction's result as a scalar of the present block, with partial results in `lanes` lanes over
    /// its variable `along`, which are then folded in halves. `before` is done in the loops over lanes, before each step.
    pub fn reduce_in_lanes(
        &mut self,
        reduce: Val,
        along: Var,
        lanes: usize,
        before: &mut dyn FnMut(&mut Self),
    ) {
        let buffer = self.accumulator(reduce, 1, lanes);
        let vars = self.reduce_vars(reduce);
        let outer: Vec<Var> = vars.into_iter().filter(|&v| v != along).collect();
        for &var in &outer {
            let index = self.enter(LoopKind::Serial, var.extent);
            self.bind(var, index);
        }
        let (whole, rest) = (along.extent / lanes, along.extent % lanes);
        if whole > 0 {
            let block = self.enter(LoopKind::Serial, whole);
            let lane = self.enter(LoopKind::Vector, lanes);
            self.bind(along, block.mul(lanes as i64).add(&lane));
            before(self);
            self.accumulate(reduce, buffer, lane);
            self.leave();
            self.leave();
        }
        if rest > 0 {
            let lane = self.enter(LoopKind::Vector, rest);
            self.bind(along, lane.add_const((whole * lanes) as i64));
            before(self);
            self.accumulate(reduce, buffer, lane);
            self.leave();
        }
        outer.iter().for_each(|_| self.leave());
        let Expr::Reduce { kind, .. } = *self.nest.expr(reduce) else { unreachable!("checked above") };
        let (mut from, mut width) = (buffer, lanes / 2);
        while width > 0 {
            // Half the lanes in a tile of their own: those of the whole are not kept beside them.
            let to = self.register_tile(reduce, width);
            let lane = self.enter(LoopKind::Vector, width);
            let low = self.load(from, lane.clone());
            let high = self.load(from, lane.add_const(width as i64));
            let sum = self.combine(kind, low, high);
            self.builder.store(to, lane, sum);
            self.leave();
            (from, width) = (to, width / 2);
        }
        let result = self.load(from, Index::constant(0));
        let depth = self.builder.depth();
        self.scopes[depth].insert(reduce, result);
    }
}
