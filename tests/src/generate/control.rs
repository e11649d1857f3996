//! Rows of the generator's table for ops with bodies.

use std::sync::Arc;

use windlass_ir::ops::{If, Loop};
use windlass_ir::{Builder, DType, Op, ScalarFn, TensorType, Value};

use super::values::Values;
use super::{Growing, Precision, Proposal, Wanted};

/// Functions of one float that keep values benign.
const UNARY: [ScalarFn; 5] =
    [ScalarFn::Neg, ScalarFn::Abs, ScalarFn::Relu, ScalarFn::Tanh, ScalarFn::Sigmoid];

impl Growing<'_> {
    /// A few functions, one after another.
    fn chain(&mut self, b: &mut Builder, mut x: Value) -> Value {
        for _ in 0..=self.rng.below(3) {
            let f = *self.rng.choose(&UNARY);
            x = b.map(f, &[x]).expect("a function of a float");
        }
        x
    }

    /// `if`, `loop` or `scan` over floats.
    pub(super) fn control(&mut self, name: &str) -> Option<Proposal> {
        let (x, dtype, shape) = self.main(DType::is_float, 0, 2, false);
        let ty = TensorType::fixed(dtype, &shape);
        let flag = TensorType::fixed(DType::Bool, &[]);
        let condition = Wanted::New(DType::Bool, vec![], Values::Any);
        let (op, wanted): (Op, Vec<Wanted>) = match name {
            "if" => {
                let mut branch = |name: &str| {
                    let mut b = Builder::new(name);
                    let input = b.input("x", ty.clone());
                    let result = self.chain(&mut b, input);
                    b.output("y", result);
                    b.finish().map(Arc::new)
                };
                let (then_branch, else_branch) = (branch("then").ok()?, branch("else").ok()?);
                (If { then_branch, else_branch }.into(), vec![condition, x])
            }
            "loop" => {
                let mut b = Builder::new("body");
                b.input("i", TensorType::fixed(DType::I64, &[]));
                let again = b.input("again", flag);
                let state = b.input("state", ty.clone());
                let captured = b.input("captured", ty);
                let next = self.chain(&mut b, state);
                let sum = b.map(ScalarFn::Add, &[next, captured]).ok()?;
                for (name, value) in [("again", again), ("state", sum), ("stacked", next)] {
                    b.output(name, value);
                }
                let op = Loop { body: Arc::new(b.finish().ok()?), num_states: 1 };
                let trips = Wanted::New(DType::I64, vec![], Values::Within(0.0, 4.0));
                let state = Wanted::New(dtype, shape, Values::Any);
                (op.into(), vec![trips, condition, state, x])
            }
            _ => return self.scan(),
        };
        Some(Proposal { op, wanted, precision: Precision::Approximate, jumps: false })
    }
}
