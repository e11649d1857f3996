//! Norms and weighted sums of the gradients of single examples, without making them where that is more work.
//!
//! The gradient of a dense layer's weights for one example is a product of matrices, `X' G`, for inputs `X` `[t, k]` and
//! what flows back `G` `[t, n]`. Its square norm is the sum of `(X X') * (G G')`, element by element, and the weighted sum
//! over all examples is one product over examples and rows. Source: Li, Tramer, Liang and Hashimoto, "Large Language
//! Models Can Be Strong Differentially Private Learners" (2022); Bu, Wang, Zha and Karypis, "Differentially Private
//! Optimization on Large Model at Small Cost" (2023).

use windlass_ir::graph::Def;
use windlass_ir::ops::{MatMul, Op, Reduce, ReduceKind};
use windlass_ir::{Builder, Error, ScalarFn, Value};

/// The gradients of one parameter, those of every example along the first dimension.
pub(super) enum PerExample {
    /// As they are.
    Whole(Value),
    /// Products of `left` `[examples, t, k]`, transposed, and `right` `[examples, t, n]`.
    Product {
        /// The inputs of a layer.
        left: Value,
        /// What flows back to its results.
        right: Value,
        /// The product.
        whole: Value,
    },
}

fn sum(b: &mut Builder, value: Value, axes: &[i64]) -> Result<Value, Error> {
    b.push1(Reduce::over(ReduceKind::Sum, axes, false), &[value])
}

impl PerExample {
    /// What a value is made of.
    pub fn new(b: &mut Builder, value: Value) -> Result<PerExample, Error> {
        let mut from = value;
        let whole = PerExample::Whole(value);
        // Another shape of one example changes neither norm nor sum.
        let examples = b.ty(value).shape()[0];
        let product = loop {
            let Def::Output { node, .. } = b.graph().def(from) else { return Ok(whole) };
            let data = b.graph().node(node);
            match &*data.op {
                Op::Reshape(_) if b.ty(data.ins[0]).shape().first() == Some(&examples) => from = data.ins[0],
                Op::MatMul(product) => break (product.clone(), data.ins[0], data.ins[1]),
                _ => return Ok(whole),
            }
        };
        let (MatMul { trans_a, trans_b }, left, right) = product;
        let rank_3 =
            |b: &Builder, value: Value| b.ty(value).rank() == 3 && b.ty(value).shape()[0] == examples;
        if !rank_3(b, left) || !rank_3(b, right) {
            return Ok(whole);
        }
        let left = if trans_a { left } else { b.transpose(left, &[0, 2, 1])? };
        let right = if trans_b { b.transpose(right, &[0, 2, 1])? } else { right };
        let (x, g) = (b.ty(left).shape(), b.ty(right).shape());
        let (rows, columns) = (x[1], x[2] + g[2]);
        // Products of rows with each other against the product itself, made and read again.
        let cheaper = rows * rows * columns <= rows * x[2] * g[2];
        Ok(if cheaper { PerExample::Product { left, right, whole: value } } else { whole })
    }

    /// The sum of squares of each example's gradient: `[examples]`.
    pub fn square_norms(&self, b: &mut Builder) -> Result<Value, Error> {
        let squares = |b: &mut Builder, value: Value| -> Result<Value, Error> {
            let square = b.map(ScalarFn::Mul, &[value, value])?;
            let axes: Vec<i64> = (1..b.ty(value).rank() as i64).collect();
            sum(b, square, &axes)
        };
        match *self {
            PerExample::Whole(value) => squares(b, value),
            PerExample::Product { left, right, .. } if b.ty(left).shape()[1] == 1 => {
                let (left, right) = (squares(b, left)?, squares(b, right)?);
                b.map(ScalarFn::Mul, &[left, right])
            }
            PerExample::Product { left, right, .. } => {
                let rows = MatMul { trans_a: false, trans_b: true };
                let left = b.push1(rows.clone(), &[left, left])?;
                let right = b.push1(rows, &[right, right])?;
                let product = b.map(ScalarFn::Mul, &[left, right])?;
                sum(b, product, &[1, 2])
            }
        }
    }

    /// The sum of the gradients times a number for each example.
    pub fn weighted_sum(&self, b: &mut Builder, weights: Value) -> Result<Value, Error> {
        let factor = |b: &mut Builder, value: Value| -> Result<Value, Error> {
            let mut shape = vec![1; b.ty(value).rank()];
            shape[0] = b.ty(weights).shape()[0];
            let weights = b.reshape(weights, &shape)?;
            b.map(ScalarFn::Mul, &[value, weights])
        };
        match *self {
            PerExample::Whole(value) => {
                let weighted = factor(b, value)?;
                sum(b, weighted, &[0])
            }
            PerExample::Product { left, right, whole } => {
                let right = factor(b, right)?;
                let mut sides = [left, right];
                for side in &mut sides {
                    let shape = b.ty(*side).shape();
                    *side = b.reshape(*side, &[shape[0] * shape[1], shape[2]])?;
                }
                let product = b.push1(MatMul { trans_a: true, trans_b: false }, &sides)?;
                let shape = b.ty(whole).shape();
                b.reshape(product, &shape[1..])
            }
        }
    }
}
