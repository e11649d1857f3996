//! `reshape`: the same elements in row-major order under another shape.

use super::movement::late_count;
use super::{Gradients, Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Late, Slot};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Index, NestBuilder};
use crate::ops::Op;
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, Dims, TensorType};

/// The operand's elements, in order, under the shape given.
///
/// - (C1) every size is at least -1, and at most one is -1: that one is inferred;
/// - (C2) with `copy_zero`, a size of 0 takes the operand's size at the same position, which exists;
/// - (C3) the number of elements stays the same.
///
/// ONNX: `Reshape` (1..), whose `allowzero` is the opposite of `copy_zero`.
#[derive(Clone, Debug, PartialEq)]
pub struct Reshape {
    /// The new sizes.
    pub shape: Late,
    /// Whether 0 means "as in the operand".
    pub copy_zero: bool,
}

impl Reshape {
    /// To a shape of known sizes.
    pub fn to(shape: &[usize]) -> Reshape {
        Reshape { shape: Late::Known(shape.iter().map(|&n| n as i64).collect()), copy_zero: false }
    }
}

impl OpDef for Reshape {
    const NAMES: &'static [&'static str] = &["reshape"];

    fn with_name(_: &str) -> Reshape {
        Reshape { shape: Late::default(), copy_zero: false }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("shape", Slot::Late(&mut self.shape))?;
        codec.attr("copy_zero", Slot::Bool(&mut self.copy_zero))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=2)?;
        let from = ins[0];
        let sizes = match &self.shape {
            Late::Known(sizes) => sizes,
            Late::Operand(_) => {
                let rank = late_count(&self.shape, ins);
                require!(rank.is_some(), "C1", "the rank of the result is not known");
                let dims = vec![Dim::Unknown; rank.unwrap_or(0)];
                return Ok(vec![TensorType::new(from.dtype, dims)]);
            }
        };
        require!(sizes.iter().all(|&n| n >= -1), "C1", "{sizes:?} has a size below -1");
        require!(sizes.iter().filter(|&&n| n == -1).count() <= 1, "C1", "{sizes:?} has more than one -1");
        let mut dims: Dims = Dims::new();
        for (i, &n) in sizes.iter().enumerate() {
            dims.push(match n {
                -1 => Dim::Unknown,
                0 if self.copy_zero => {
                    require!(
                        i < from.rank(),
                        "C2",
                        "size {i} is copied from {from}, which has no such dimension"
                    );
                    from.dims[i].clone()
                }
                n => Dim::Fixed(n as usize),
            });
        }
        let known = TensorType { dtype: from.dtype, dims };
        let (Some(total), Some(inferred)) = (from.as_len(), sizes.iter().position(|&n| n == -1)) else {
            if let (Some(total), Some(found)) = (from.as_len(), known.as_len()) {
                require!(total == found, "C3", "{from} has {total} elements, {sizes:?} has {found}");
            }
            return Ok(vec![known]);
        };
        let mut result = known;
        result.dims[inferred] = Dim::Fixed(1);
        if let Some(rest) = result.as_len() {
            require!(
                rest > 0 && total % rest == 0,
                "C3",
                "{from} has {total} elements, no multiple of {rest}"
            );
            result.dims[inferred] = Dim::Fixed(total / rest);
        } else {
            result.dims[inferred] = Dim::Unknown;
        }
        Ok(vec![result])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let out = self.infer(&[&ins[0].ty()]).map_err(|v| v.to_string())?.remove(0);
        Ok(vec![ins[0].reshaped(&out.shape())])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (g, shape) = (cx.dout(0), cx.shape(cx.ins[0]));
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        gradients[0] = Some(cx.reshape(g, &shape)?);
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.reshaped()
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (from, to) = (ins[0].shape(), outs[0].shape());
        let mut n = NestBuilder::new(&to);
        let operand = n.operand(ins[0].dtype, &from);
        let flat = Index::flatten(&n.domain(), &to);
        let element = n.load(operand, &Index::unflatten(&flat, &from));
        Ok(Lowered::nest(n.finish(&[element])))
    }

    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        let Some(shape) = self.infer(&[b.ty(ins[0])]).ok().and_then(|t| t[0].as_shape()) else {
            return Ok(None);
        };
        if b.ty(ins[0]).as_shape().is_some_and(|from| from == shape) {
            return Ok(Some(Values::from_slice(&[ins[0]])));
        }
        // reshape(reshape(x)) = reshape(x)
        if let Some(producer) = b.graph().def_node(ins[0])
            && let Op::Reshape(_) = *producer.op
        {
            let source = producer.ins[0];
            return Ok(Some(Values::from_slice(&[b.push1(Reshape::to(&shape), &[source])?])));
        }
        Ok(None)
    }
}
