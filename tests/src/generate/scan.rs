//! Scans of random bodies: several states, slices and captures, along any axis, either way.

use std::sync::Arc;

use windlass_ir::ops::{MatMul, Reduce, ReduceKind, Scan};
use windlass_ir::{Builder, DType, Op, ScalarFn, TensorType, Value};

use super::values::Values;
use super::{Growing, Precision, Proposal, Wanted};

/// Functions of one float that keep values benign.
const UNARY: [ScalarFn; 5] =
    [ScalarFn::Neg, ScalarFn::Abs, ScalarFn::Relu, ScalarFn::Tanh, ScalarFn::Sigmoid];

const BINARY: [ScalarFn; 4] = [ScalarFn::Add, ScalarFn::Sub, ScalarFn::Max, ScalarFn::Mul];

impl Growing<'_> {
    /// A `scan` over floats.
    pub(super) fn scan(&mut self) -> Option<Proposal> {
        let dtype = *self.rng.choose(&[DType::F32, DType::F64]);
        let (rows, columns) = (1 + self.rng.below(4), 1 + self.rng.below(6));
        let shapes = [vec![rows, columns], vec![columns], vec![rows, 1], vec![]];
        let length = self.rng.below(10);
        let [states, scanned, captures] = [self.rng.below(4), 1 + self.rng.below(2), self.rng.below(3)];
        let mut wanted = Vec::new();
        let mut b = Builder::new("body");
        let mut values: Vec<Value> = Vec::new();
        let mut axes = [Vec::new(), Vec::new()];
        let mut directions = [Vec::new(), Vec::new()];
        for i in 0..states + scanned + captures {
            // The matrix that products are with comes last.
            let shape = match i + 1 == states + scanned + captures && captures > 0 {
                true => vec![columns, columns],
                false => self.rng.choose(&shapes).clone(),
            };
            values.push(b.input(&format!("in{i}"), TensorType::fixed(dtype, &shape)));
            let mut whole = shape.clone();
            if (states..states + scanned).contains(&i) {
                let axis = self.rng.below(whole.len() + 1);
                whole.insert(axis, length);
                axes[0].push(axis as i64);
                directions[0].push(i64::from(self.rng.flag()));
            }
            wanted.push(Wanted::New(dtype, whole, Values::Within(-1.0, 1.0)));
        }
        for _ in 0..self.rng.below(8) {
            let value = self.step(&mut b, &values, captures > 0)?;
            values.push(value);
        }
        for state in 0..states {
            let next = self.next_state(&mut b, &values, values[state])?;
            b.output(&format!("next{state}"), next);
        }
        let stacks = if states == 0 { 1 } else { 0 } + self.rng.below(3);
        for i in 0..stacks {
            let value = *self.rng.choose(&values);
            let rank = b.ty(value).rank();
            axes[1].push(self.rng.below(rank + 1) as i64 - if self.rng.flag() { rank as i64 + 1 } else { 0 });
            directions[1].push(i64::from(self.rng.flag()));
            b.output(&format!("stacked{i}"), value);
        }
        let [scan_input_axes, scan_output_axes] = axes;
        let [scan_input_directions, scan_output_directions] = directions;
        let op = Scan {
            body: Arc::new(b.finish().ok()?),
            num_scan_inputs: scanned as i64,
            num_captures: captures as i64,
            scan_input_axes,
            scan_input_directions,
            scan_output_axes,
            scan_output_directions,
        };
        Some(Proposal { op: Op::Scan(op), wanted, precision: Precision::Approximate, jumps: false })
    }

    /// Another value of what there is.
    fn step(&mut self, b: &mut Builder, values: &[Value], has_matrix: bool) -> Option<Value> {
        let (x, y) = (*self.rng.choose(values), *self.rng.choose(values));
        let sum = Reduce { kind: ReduceKind::Sum, axes: vec![-1].into(), keep: true, none_if_empty: false };
        let made = match self.rng.below(4) {
            0 => b.map(*self.rng.choose(&UNARY), &[x]),
            1 if has_matrix => {
                let matrix = b.graph().inputs().last()?.1;
                let product = b.push1(MatMul::default(), &[x, matrix]);
                product.and_then(|product| b.map(ScalarFn::Tanh, &[product]))
            }
            2 => b.push1(sum, &[x]),
            _ => b.map(*self.rng.choose(&BINARY), &[x, y]),
        };
        // Shapes that do not fit leave the value as it is.
        made.or_else(|_| b.map(ScalarFn::Neg, &[x])).ok()
    }

    /// A value of the type of a state: a sum that grows, a bounded one, or another state of that type.
    fn next_state(&mut self, b: &mut Builder, values: &[Value], state: Value) -> Option<Value> {
        let x = *self.rng.choose(values);
        let same = |b: &Builder, value: Value| b.ty(value) == b.ty(state);
        let sum = b.map(ScalarFn::Add, &[state, x]).ok().filter(|&sum| same(b, sum));
        match self.rng.below(3) {
            0 if same(b, x) => Some(x),
            1 => b.map(ScalarFn::Tanh, &[sum.unwrap_or(state)]).ok(),
            _ => Some(sum.unwrap_or(state)),
        }
    }
}
