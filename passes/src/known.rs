//! Values known before a model runs: constants, and what a few nodes make of constants.
//!
//! Large weights are not evaluated by passes. They stay expressions over constants, which lowering
//! sets apart and compiled code computes once; so a pass that changes weights adds nodes to them.

use windlass_ir::{Builder, DType, Error, Graph, Op, ScalarFn, Tensor, Value};

/// The most nodes between a value and the constants it is made from.
const DEPTH: usize = 12;

/// Whether a value is made from constants alone, by pure nodes.
pub fn is_known(graph: &Graph, value: Value) -> bool {
    fn within(graph: &Graph, value: Value, depth: usize) -> bool {
        let Some(data) = graph.def_node(value) else { return false };
        match &data.op {
            Op::Constant(_) => true,
            op => {
                depth > 0
                    && op.is_pure()
                    && !data.ins.is_empty()
                    && data.ins.iter().all(|&v| within(graph, v, depth - 1))
            }
        }
    }
    within(graph, value, DEPTH)
}

/// The value in f64.
pub fn widened(b: &mut Builder, value: Value) -> Result<Value, Error> {
    b.cast(value, DType::F64)
}

/// A float tensor with slice `i` along a dimension multiplied by `factors[i]`: in f64, rounded once.
pub fn scaled(b: &mut Builder, value: Value, dim: usize, factors: &[f64]) -> Result<Value, Error> {
    if factors.iter().all(|&f| f == 1.0) {
        return Ok(value);
    }
    let (dtype, rank) = (b.ty(value).dtype, b.ty(value).rank());
    let mut shape = vec![1; rank];
    shape[dim] = factors.len();
    let factors = b.constant(Tensor::new(&shape, factors));
    let wide = widened(b, value)?;
    let product = b.map(ScalarFn::Mul, &[wide, factors])?;
    b.cast(product, dtype)
}
