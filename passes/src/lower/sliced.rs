//! Arrays between units seen as slices along one of their dimensions, of which a few at a time are enough.

use windlass_ir::Shape;
use windlass_ir::loops::{Expr, Index, Nest, Var};

/// An array seen as slices along one of its dimensions.
pub struct Sliced {
    shape: Shape,
    dim: usize,
}

impl Sliced {
    /// An array of this shape, as slices along a dimension.
    pub fn new(shape: &[usize], dim: usize) -> Sliced {
        Sliced { shape: Shape::from_slice(shape), dim }
    }

    /// Whether an element lies in the slice of a variable's number.
    pub fn is_in_slice(&self, flat: &Index, number: Var) -> bool {
        flat.values().is_empty() && Index::unflatten(flat, &self.shape)[self.dim] == Index::var(number)
    }

    /// The elements of so many slices.
    pub fn elements(&self, count: usize) -> usize {
        let others = self.shape.iter().enumerate().filter(|(dim, _)| *dim != self.dim);
        others.map(|(_, extent)| extent).product::<usize>() * count
    }

    /// Where an element stands in an array of so many slices, in the one of this number.
    pub fn place(&self, flat: &Index, number: &Index, count: usize) -> Index {
        let mut index = Index::unflatten(flat, &self.shape);
        index[self.dim] = number.clone();
        let mut shape = self.shape.clone();
        shape[self.dim] = count;
        Index::flatten(&index, &shape)
    }

    /// The variable of a formula's domain that counts the slices, where the array is its result.
    pub fn counted_by(&self, nest: &Nest) -> Option<Var> {
        let within: usize = self.shape[self.dim + 1..].iter().product();
        let mut inner = 1;
        nest.domain.iter().rev().copied().find(|var| {
            let found = inner == within && var.extent == self.shape[self.dim];
            inner *= var.extent;
            found
        })
    }

    /// Whether a formula reads, of the array that is one of its operands, the slice of this number alone.
    pub fn is_read_by(&self, nest: &Nest, operand: usize, number: Var) -> bool {
        nest.needed(&nest.roots).into_iter().all(|val| match nest.expr(val) {
            Expr::Load { operand: at, index, guards } if *at as usize == operand => {
                guards.is_empty() && self.is_in_slice(&index[0], number)
            }
            _ => true,
        })
    }
}
