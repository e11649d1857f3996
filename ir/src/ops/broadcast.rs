//! `broadcast`: a tensor repeated along dimensions of size 1.

use super::movement::{late_count, pick, position, unknown};
use super::vjp;
use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity, elementwise::broadcast_index};
use crate::attrs::{AttrError, Codec, Late, Slot};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::NestBuilder;
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, broadcast_dims, strides};

/// The operand broadcast together with a shape, in both directions: a 1 in either takes the other's size.
///
/// - (C1) sizes are not negative, and how many there are is known;
/// - (C2) the operand's shape and the given one broadcast.
///
/// ONNX: `Expand` (8..), whose shape is an operand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Broadcast {
    /// The shape to broadcast with.
    pub shape: Late,
}

impl Broadcast {
    /// To a shape of known sizes.
    pub fn to(shape: &[usize]) -> Broadcast {
        Broadcast { shape: Late::Known(shape.iter().map(|&n| n as i64).collect()) }
    }
}

impl OpDef for Broadcast {
    const NAMES: &'static [&'static str] = &["broadcast"];

    fn with_name(_: &str) -> Broadcast {
        Broadcast::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("shape", Slot::Late(&mut self.shape))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=2)?;
        let x = ins[0];
        let Some(sizes) = self.shape.as_known() else {
            let count = late_count(&self.shape, ins);
            require!(count.is_some(), "C1", "the rank of the result is not known");
            return Ok(vec![unknown(x.dtype, x.rank().max(count.unwrap_or(0)))]);
        };
        require!(sizes.iter().all(|&n| n >= 0), "C1", "{sizes:?} has a negative size");
        let to: Vec<Dim> = sizes.iter().map(|&n| Dim::Fixed(n as usize)).collect();
        match broadcast_dims(&x.dims, &to) {
            Some(dims) => Ok(vec![TensorType { dtype: x.dtype, dims }]),
            None => Err(Violation::new("C2", format!("{x} does not broadcast to {sizes:?}"))),
        }
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let shape = self.infer(&[&x.ty()]).map_err(|v| v.to_string())?.remove(0).shape();
        let skipped = shape.len() - x.rank();
        let mut stride = strides(x.shape());
        for (step, &n) in stride.iter_mut().zip(x.shape()) {
            *step = if n == 1 { 0 } else { *step };
        }
        Ok(vec![pick(&[x], &shape, |index| (0, position(&index[skipped..], &stride)))])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (g, shape) = (cx.dout(0), cx.shape(cx.ins[0]));
        vjp::one(cx.sum_to(g, &shape)?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let shape = cx.over_batch(&cx.outs[0].shape());
        let x = cx.aligned(0, cx.outs[0].rank())?;
        cx.push(Broadcast::to(&shape), &[x])
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let mut n = NestBuilder::new(&outs[0].shape());
        let from = ins[0].shape();
        let operand = n.operand(ins[0].dtype, &from);
        let element = n.load(operand, &broadcast_index(&n.domain(), &from));
        Ok(Lowered::nest(n.finish(&[element])))
    }

    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        let same = self.shape.as_known().is_some()
            && self
                .infer(&[b.ty(ins[0])])
                .is_ok_and(|to| to[0] == *b.ty(ins[0]) && to[0].as_shape().is_some());
        Ok(same.then(|| Values::from_slice(&[ins[0]])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasts_in_both_directions() {
        let x = Tensor::new(&[3, 1], &[1i32, 2, 3]);
        let y = Broadcast::to(&[2, 1, 2]).eval(&[x.clone()]).unwrap().remove(0);
        assert_eq!(y, Tensor::new(&[2, 3, 2], &[1i32, 1, 2, 2, 3, 3, 1, 1, 2, 2, 3, 3]));
        assert_eq!(Broadcast::to(&[1]).eval(&[x.clone()]).unwrap(), [x.clone()]);
        assert_eq!(Broadcast::to(&[3, 0]).eval(&[x.clone()]).unwrap()[0].shape(), [3, 0]);
        assert_eq!(Broadcast::to(&[2, 2]).infer(&[&x.ty()]).unwrap_err().constraint, "C2");
    }
}
