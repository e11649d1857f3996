//! Constant weights, scaled and transposed in one go: models have hundreds of megabytes of them, and
//! each copy costs more than all other work of the passes together.

use windlass_ir::graph::Graph;
use windlass_ir::ops::Transpose;
use windlass_ir::{Element, Op, Tensor, Value, eval_op, with_element};

use crate::permutation::Permutation;

/// A constant, perhaps transposed, but not computed yet.
#[derive(Clone, Debug)]
pub struct Weights {
    tensor: Tensor,
    perm: Option<Permutation>,
}

impl Weights {
    /// What a value is, if it is a constant or the transpose of one.
    pub fn of(graph: &Graph, value: Value) -> Option<Weights> {
        if let Some(tensor) = graph.as_constant(value) {
            return Some(Weights { tensor: tensor.clone(), perm: None });
        }
        let data = graph.def_node(value)?;
        let Op::Transpose(op) = &data.op else { return None };
        let tensor = graph.as_constant(data.ins[0])?.clone();
        let perm = op.perm(tensor.rank()).into_iter().collect();
        Some(Weights { tensor, perm: Some(perm) })
    }

    /// The element type.
    pub fn dtype(&self) -> windlass_ir::DType {
        self.tensor.dtype()
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.tensor.rank()
    }

    /// The size of a dimension.
    pub fn size(&self, dim: usize) -> usize {
        self.tensor.shape()[self.source(dim)]
    }

    fn source(&self, dim: usize) -> usize {
        self.perm.as_ref().map_or(dim, |perm| perm.source(dim))
    }

    /// The tensor.
    pub fn computed(&self) -> Tensor {
        match &self.perm {
            Some(perm) => transposed(&self.tensor, perm, None),
            None => self.tensor.clone(),
        }
    }

    /// The tensor with slice `i` along a dimension multiplied by `factors[i]`: in f64, rounded once.
    pub fn scaled(&self, dim: usize, factors: &[f64]) -> Tensor {
        if factors.iter().all(|&f| f == 1.0) {
            return self.computed();
        }
        match (&self.perm, self.source(dim)) {
            (Some(perm), 0) if perm.source(perm.rank() - 1) == 0 && !self.tensor.is_empty() => {
                transposed(&self.tensor, perm, Some(factors))
            }
            (Some(perm), source) => transposed(&scaled(&self.tensor, source, factors), perm, None),
            (None, source) => scaled(&self.tensor, source, factors),
        }
    }
}

/// Each slice along a dimension multiplied by its factor.
fn scaled(tensor: &Tensor, dim: usize, factors: &[f64]) -> Tensor {
    let inner: usize = tensor.shape()[dim + 1..].iter().product();
    let mut out = Tensor::zeros(tensor.dtype(), tensor.shape());
    if out.is_empty() {
        return out;
    }
    with_element!(tensor.dtype(), T => {
        let rows = tensor.as_slice::<T>().chunks_exact(inner);
        for ((to, from), &factor) in out.as_mut_slice::<T>().chunks_exact_mut(inner).zip(rows).zip(factors.iter().cycle()) {
            for (to, &from) in to.iter_mut().zip(from) {
                *to = T::from_f64(Element::to_f64(from) * factor);
            }
        }
    });
    out
}

/// A transpose of a constant, with slices along its first dimension multiplied by factors if given.
///
/// # Panics
/// If factors are given for a permutation that does not put the first dimension last.
pub fn transposed(tensor: &Tensor, perm: &Permutation, factors: Option<&[f64]>) -> Tensor {
    let rank = tensor.rank();
    if rank < 2 || perm.source(rank - 1) != 0 || tensor.is_empty() {
        assert!(factors.is_none(), "only the first dimension, put last, is scaled");
        let outs = eval_op(&Transpose::by(perm.as_slice()).into(), std::slice::from_ref(tensor));
        return outs.expect("a permutation of this rank").remove(0);
    }
    let shape: Vec<usize> = perm.as_slice().iter().map(|&d| tensor.shape()[d]).collect();
    // The operand is `rows` of `row` elements; element j of each goes to column `rows` of place[j].
    let rows = tensor.shape()[0];
    let row = tensor.len() / rows;
    let mut strides: Vec<usize> = vec![0; rank];
    let mut stride = rows;
    for d in (0..rank - 1).rev() {
        strides[perm.source(d)] = stride;
        stride *= shape[d];
    }
    let mut places: Vec<usize> = vec![0];
    for (&size, &stride) in tensor.shape().iter().zip(&strides).skip(1) {
        let along = |p: usize| (0..size).map(move |i| p + i * stride);
        places = places.iter().flat_map(|&p| along(p)).collect();
    }
    let mut out = Tensor::zeros(tensor.dtype(), &shape);
    with_element!(tensor.dtype(), T => {
        let (from, to) = (tensor.as_slice::<T>(), out.as_mut_slice::<T>());
        // Blocks of a cache line read by several lines written.
        for first in (0..rows).step_by(BLOCK) {
            for start in (0..row).step_by(BLOCK) {
                let columns = first..rows.min(first + BLOCK);
                for j in start..row.min(start + BLOCK) {
                    let to = &mut to[places[j]..places[j] + rows][columns.clone()];
                    let from = from[columns.start * row + j..].iter().step_by(row);
                    match factors {
                        None => to.iter_mut().zip(from).for_each(|(to, &from)| *to = from),
                        Some(factors) => {
                            for ((to, &from), factor) in to.iter_mut().zip(from).zip(&factors[columns.clone()]) {
                                *to = T::from_f64(Element::to_f64(from) * factor);
                            }
                        }
                    }
                }
            }
        }
    });
    out
}

/// The rows and columns of a block: 16 f32 fill a cache line, twice that amortizes the edges.
const BLOCK: usize = 32;

#[cfg(test)]
mod tests {
    use windlass_ir::{DType, TensorType};

    use super::*;
    use crate::testing::seeded;

    #[test]
    fn transposing_and_scaling_agree_with_the_interpreter() {
        for (shape, order) in [
            (vec![70, 5, 3, 3], vec![2, 3, 1, 0]),
            (vec![33, 40], vec![1, 0]),
            (vec![4, 3, 2], vec![0, 2, 1]),
            (vec![3, 0, 2], vec![2, 1, 0]),
        ] {
            let tensor = seeded(&TensorType::fixed(DType::F32, &shape), 1);
            let perm: Permutation = order.iter().copied().collect();
            let factors: Vec<f64> = (0..shape[0]).map(|i| i as f64 - 1.5).collect();
            let weights = Weights { tensor: tensor.clone(), perm: Some(perm) };
            let op: Op = Transpose::by(&order).into();
            assert_eq!(weights.computed(), eval_op(&op, &[tensor.clone()]).unwrap()[0]);
            let dim = order.iter().position(|&d| d == 0).unwrap();
            let expected = eval_op(&op, &[scaled(&tensor, 0, &factors)]).unwrap();
            assert_eq!(weights.scaled(dim, &factors), expected[0]);
        }
    }
}
