//! Values known before a model runs: constants, and what a few nodes make of constants.
//!
//! Large weights are not evaluated by passes. They stay expressions over constants, which lowering
//! sets apart and compiled code computes once; so a pass that changes weights adds nodes to them.

use cranelift_entity::SecondaryMap;
use windlass_ir::{Builder, DType, Error, Graph, Op, ScalarFn, Tensor, Value};

/// The most nodes between a value and the constants it is made from.
const DEPTH: usize = 12;

/// Whether a value is made from constants alone, by pure nodes.
pub fn is_known(graph: &Graph, value: Value) -> bool {
    fn within(graph: &Graph, value: Value, depth: usize) -> bool {
        let Some(data) = graph.def_node(value) else { return false };
        match &*data.op {
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

/// The same of every value of a graph, found in one walk.
pub struct Known {
    /// For each that is known, how many nodes there are at most between it and constants.
    depths: SecondaryMap<Value, Option<usize>>,
}

impl Known {
    /// Which of a graph's values are known.
    pub fn of(graph: &Graph) -> Known {
        let mut depths: SecondaryMap<Value, Option<usize>> = SecondaryMap::with_capacity(graph.value_count());
        for (_, data) in graph.nodes() {
            let depth = match &*data.op {
                Op::Constant(_) => Some(0),
                op if !op.is_pure() || data.ins.is_empty() => None,
                _ => data
                    .ins
                    .iter()
                    .map(|&v| depths[v])
                    .try_fold(0, |most, depth| Some(depth?.max(most)))
                    .map(|most| most + 1),
            };
            data.outs.iter().for_each(|&out| depths[out] = depth.filter(|&depth| depth <= DEPTH));
        }
        Known { depths }
    }

    /// Whether a value is known.
    pub fn contains(&self, value: Value) -> bool {
        self.depths[value].is_some()
    }
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

#[cfg(test)]
mod tests {
    use windlass_ir::TensorType;

    use super::*;

    #[test]
    fn both_ways_know_the_same() {
        let mut b = Builder::new("known");
        let x = b.input("x", TensorType::fixed(DType::F32, &[2]));
        // Each doubles the one before, so that there are 2 to the n ways to the constant.
        let mut doubled = b.scalar(DType::F32, 1.0);
        for _ in 0..2 * DEPTH {
            doubled = b.map(ScalarFn::Add, &[doubled, doubled]).unwrap();
        }
        let sum = b.map(ScalarFn::Add, &[x, doubled]).unwrap();
        b.output("sum", sum);
        let graph = b.finish().unwrap();
        let known = Known::of(&graph);
        let all: Vec<Value> = graph.nodes().flat_map(|(_, data)| data.outs.to_vec()).collect();
        assert!(all.iter().all(|&value| known.contains(value) == is_known(&graph, value)));
        assert_eq!(all.iter().filter(|&&value| known.contains(value)).count(), 1 + DEPTH);
        assert!(!known.contains(x));
    }
}
