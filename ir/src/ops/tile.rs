//! `tile`: a tensor repeated along its dimensions.

use super::movement::{pick, position, unknown};
use super::vjp;
use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Late, Slot};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Index, NestBuilder};
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, strides};

/// The operand repeated a number of times along each dimension.
///
/// - (C1) there is one number for each dimension, not negative, and the sizes do not overflow.
///
/// ONNX: `Tile` (6..), whose repeats are an operand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tile {
    /// How often the tensor occurs along each dimension.
    pub repeats: Late,
}

impl OpDef for Tile {
    const NAMES: &'static [&'static str] = &["tile"];

    fn with_name(_: &str) -> Tile {
        Tile::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("repeats", Slot::Late(&mut self.repeats))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=2)?;
        let x = ins[0];
        let Some(repeats) = self.repeats.as_known() else {
            return Ok(vec![unknown(x.dtype, x.rank())]);
        };
        let fits = repeats.len() == x.rank() && repeats.iter().all(|&n| n >= 0);
        require!(fits, "C1", "{repeats:?} does not say how often {x} repeats");
        let mut dims = Vec::with_capacity(x.rank());
        for (dim, &n) in x.dims.iter().zip(repeats) {
            dims.push(match (dim, n as usize) {
                (_, 0) => Dim::Fixed(0),
                (dim, 1) => dim.clone(),
                (Dim::Fixed(size), n) => match size.checked_mul(n) {
                    Some(size) => Dim::Fixed(size),
                    None => return Err(Violation::new("C1", format!("{size} times {n} overflows"))),
                },
                (Dim::Named(_) | Dim::Unknown, _) => Dim::Unknown,
            });
        }
        Ok(vec![TensorType::new(x.dtype, dims)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let repeats = self.repeats.known();
        let shape: Vec<usize> = x.shape().iter().zip(repeats).map(|(&n, &r)| n * r as usize).collect();
        let stride = strides(x.shape());
        let mut at = shape.clone();
        Ok(vec![pick(&[x], &shape, |index| {
            for ((slot, &i), &n) in at.iter_mut().zip(index).zip(x.shape()) {
                *slot = i % n;
            }
            (0, position(&at, &stride))
        })])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (g, shape) = (cx.dout(0), cx.shape(cx.ins[0]));
        let split: Vec<usize> =
            self.repeats.known().iter().zip(&shape).flat_map(|(&times, &n)| [times as usize, n]).collect();
        let apart = cx.reshape(g, &split)?;
        let copies: Vec<usize> = (0..shape.len()).map(|d| 2 * d).collect();
        vjp::one(cx.sum(apart, &copies, false)?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let repeats: Vec<i64> = [1].into_iter().chain(self.repeats.known().iter().copied()).collect();
        cx.along(Tile { repeats: repeats.into() })
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let shape = ins[0].shape();
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(ins[0].dtype, &shape);
        let part = |(i, &n): (Index, &usize)| i.rem(n.max(1) as i64);
        let index: Vec<Index> = n.domain().into_iter().zip(&shape).map(part).collect();
        let element = n.load(operand, &index);
        Ok(Lowered::nest(n.finish(&[element])))
    }

    fn simplify(&self, _: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        let once = self.repeats.as_known().is_some_and(|r| r.iter().all(|&n| n == 1));
        Ok(once.then(|| Values::from_slice(&[ins[0]])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_along_each_dimension() {
        let x = Tensor::new(&[2, 1], &[1i64, 2]);
        let y = Tile { repeats: vec![1, 2].into() }.eval(&[x.clone()]).unwrap().remove(0);
        assert_eq!(y, Tensor::new(&[2, 2], &[1i64, 1, 2, 2]));
        assert_eq!(Tile { repeats: vec![0, 2].into() }.eval(&[x.clone()]).unwrap()[0].shape(), [0, 2]);
        assert_eq!(Tile { repeats: vec![2].into() }.infer(&[&x.ty()]).unwrap_err().constraint, "C1");
        assert_eq!(Tile::default().eval(&[Tensor::scalar(3u32)]).unwrap()[0].to_ints(), [3]);
    }
}
