//! `det`: the determinant of square matrices.

use super::vjp;
use super::{Gather, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::error::{Error, Violation};
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// The determinant of the last two dimensions.
///
/// - (C1) the operand is a float of rank 2 or more;
/// - (C2) the last two dimensions are equal.
///
/// ONNX: `Det` (11..).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Det;

impl OpDef for Det {
    const NAMES: &'static [&'static str] = &["det"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("Det", 11..=u32::MAX)];

    fn with_name(_: &str) -> Det {
        Det
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        let x = ins[0];
        require!(x.dtype.is_float() && x.rank() >= 2, "C1", "{x} does not hold matrices of floats");
        let (batch, matrix) = x.dims.split_at(x.rank() - 2);
        require!(matrix[0].may_equal(&matrix[1]), "C2", "{x} does not hold square matrices");
        Ok(vec![TensorType::new(x.dtype, batch.iter().cloned())])
    }

    /// By elimination with the largest pivot of each column.
    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let (batch, n) = (&x.shape()[..x.rank() - 2], x.shape()[x.rank() - 1]);
        let mut values = x.to_f64s();
        let count: usize = batch.iter().product();
        let determinant = |m: usize| {
            let a = &mut values[m * n * n..(m + 1) * n * n];
            let mut product = 1.0;
            for column in 0..n {
                let size = |row: usize| a[row * n + column].abs();
                let pivot =
                    (column..n).reduce(|b, r| if size(r) > size(b) { r } else { b }).unwrap_or(column);
                if pivot != column {
                    (0..n).for_each(|j| a.swap(pivot * n + j, column * n + j));
                    product = -product;
                }
                let head = a[column * n + column];
                product *= head;
                if head == 0.0 {
                    break;
                }
                for row in column + 1..n {
                    let factor = a[row * n + column] / head;
                    (column..n).for_each(|j| a[row * n + j] -= factor * a[column * n + j]);
                }
            }
            product
        };
        let results: Vec<f64> = (0..count).map(determinant).collect();
        Ok(vec![Tensor::from_f64s(x.dtype(), batch, &results)])
    }

    /// By cofactors, the determinants of what is left without a row and a column, which are right for singular matrices
    /// too.
    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (x, g) = (cx.ins[0], cx.dout(0));
        let shape = cx.shape(x);
        let (batch, n) = (shape.len() - 2, shape[shape.len() - 1]);
        let others: Vec<i64> =
            (0..n).flat_map(|i| (0..n).filter(move |&j| j != i)).map(|j| j as i64).collect();
        let others = cx.builder.constant(Tensor::new(&[n, n.saturating_sub(1)], &others));
        // [.., i, other rows, columns], then [.., i, other rows, j, other columns].
        let rows = cx.push(Gather { axis: batch as i64 }, &[x, others])?;
        let minors = cx.push(Gather { axis: batch as i64 + 2 }, &[rows, others])?;
        let perm: Vec<usize> = (0..batch).chain([0, 2, 1, 3].map(|d| batch + d)).collect();
        let minors = cx.transpose(minors, &perm)?;
        let minors = cx.push(Det, &[minors])?;
        let signs: Vec<f64> = (0..n * n).map(|i| if (i / n + i % n) % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let signs = cx.builder.constant(Tensor::from_f64s(cx.dtype(x), &[n, n], &signs));
        let cofactors = cx.map(ScalarFn::Mul, &[minors, signs])?;
        let mut each = shape.clone();
        each[batch..].fill(1);
        let g = cx.reshape(g, &each)?;
        vjp::one(cx.map(ScalarFn::Mul, &[cofactors, g])?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.along(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::interpret::eval_op;

    #[test]
    fn small_matrices() {
        let run = |shape: &[usize], values: &[f64]| {
            eval_op(&Det.into(), &[Tensor::new(shape, values)]).unwrap()[0].to_f64s()
        };
        assert_eq!(run(&[2, 2], &[0., 1., 2., 3.]), [-2.]);
        assert_eq!(run(&[2, 2, 2], &[1., 2., 2., 4., 1., 0., 0., 5.]), [0., 5.]);
        assert_eq!(run(&[0, 0], &[]), [1.]);
        let found = run(&[3, 3], &[2., 0., 1., 1., 3., 2., 1., 1., 4.])[0];
        assert!((found - 18.0).abs() < 1e-12);
    }

    #[test]
    fn constraints_are_named() {
        let violated =
            |shape: &[usize]| Det.infer(&[&TensorType::fixed(DType::F32, shape)]).unwrap_err().constraint;
        assert_eq!(violated(&[2]), "C1");
        assert_eq!(violated(&[2, 3]), "C2");
    }
}
