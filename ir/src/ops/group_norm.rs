//! `group_norm` and `instance_norm`: the channels of each group scaled to unit variance.

use super::formula::standardized;
use super::layer_norm::{per_channel, standardize};
use super::vjp;
use super::{LayerNorm, Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::error::{Error, Violation};
use crate::loops::{Index, NestBuilder};
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType};

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias`, for `x` `[N, C, spatial..]` with statistics
/// over each group of channels and all spatial dimensions, and `scale` and `bias` `[C]`.
/// `instance_norm` makes each channel its own group.
///
/// Everything is computed in f32 (f64 for f64) and rounded once.
///
/// - (C1) `x` is a float of rank 2 or more;
/// - (C2) the number of groups is positive and divides C;
/// - (C3) scale and bias are floats with C elements.
///
/// ONNX: `InstanceNormalization` (6..); `GroupNormalization` (18..) by its importer.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupNorm {
    /// Whether each channel is its own group.
    pub instance: bool,
    /// The number of groups, unless `instance`.
    pub num_groups: i64,
    /// Added to the variance.
    pub epsilon: f64,
}

impl GroupNorm {
    fn groups(&self, channels: usize) -> usize {
        if self.instance { channels } else { self.num_groups as usize }
    }
}

impl OpDef for GroupNorm {
    const NAMES: &'static [&'static str] = &["group_norm", "instance_norm"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] =
        &[("InstanceNormalization", 6..=u32::MAX)];

    fn with_name(name: &str) -> GroupNorm {
        GroupNorm { instance: name != "group_norm", num_groups: 1, epsilon: 1e-5 }
    }

    fn name(&self) -> &'static str {
        Self::NAMES[usize::from(self.instance)]
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        if !self.instance {
            codec.attr("num_groups", Slot::Int(&mut self.num_groups))?;
        }
        codec.attr("epsilon", Slot::Float(&mut self.epsilon))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 3..=3)?;
        let x = ins[0];
        require!(x.dtype.is_float() && x.rank() >= 2, "C1", "{x} is not a float with channels");
        if !self.instance {
            require!(self.num_groups > 0, "C2", "num_groups is {}", self.num_groups);
            if let Dim::Fixed(c) = x.dims[1] {
                let divides = c % self.num_groups as usize == 0;
                require!(divides, "C2", "{} groups do not divide the {c} channels of {x}", self.num_groups);
            }
        }
        per_channel(&ins[1..], &x.dims[1], "C3")?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let (batch, channels) = (x.shape()[0], x.shape()[1]);
        let (scale, bias) = (ins[1].to_f64s(), ins[2].to_f64s());
        let mut values = x.to_f64s();
        let rows = batch * self.groups(channels);
        if !values.is_empty() {
            let row = values.len() / rows;
            values.chunks_exact_mut(row).for_each(|row| standardize(row, self.epsilon, true));
            let spatial = values.len() / (batch * channels);
            for (i, value) in values.iter_mut().enumerate() {
                let c = i / spatial % channels;
                *value = *value * scale[c] + bias[c];
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &values)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let x = cx.ins[0];
        let shape = cx.shape(x);
        let groups = self.groups(shape[1]);
        let size: usize = shape[1..].iter().product();
        let rows = cx.reshape(x, &[shape[0], groups, size / groups.max(1)])?;
        let norm = LayerNorm { rms: false, axis: -1, epsilon: self.epsilon };
        let unit = cx.push(norm, &[rows])?;
        let unit = cx.reshape(unit, &shape)?;
        let scale = cx.per_channel(cx.ins[1], 1, shape.len())?;
        let bias = cx.per_channel(cx.ins[2], 1, shape.len())?;
        let scaled = cx.map(ScalarFn::Mul, &[unit, scale])?;
        vjp::through(cx.map(ScalarFn::Add, &[scaled, bias])?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.merged(self.clone(), &[Some(0), None, None], &[0])
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (shape, dtype) = (outs[0].shape(), ins[0].dtype);
        let per_group = shape[1] / self.groups(shape[1]).max(1);
        let mut n = NestBuilder::new(&shape);
        let operand = n.operand(dtype, &shape);
        let at = n.domain();
        let first = at[1].div(per_group.max(1) as i64).mul(per_group as i64);
        let load = |n: &mut NestBuilder, batch: &Index, rest: &[Index]| {
            let index: Vec<Index> = std::iter::once(batch).chain(rest).cloned().collect();
            let x = n.load(operand, &index);
            n.cast(x, dtype.accumulator())
        };
        let x = load(&mut n, &at[0], &at[1..]);
        let extents: Vec<usize> = std::iter::once(per_group).chain(shape[2..].iter().copied()).collect();
        let mut result = standardized(&mut n, x, &extents, self.epsilon, |n, k| {
            let mut rest = k.to_vec();
            rest[0] = first.add(&k[0]);
            load(n, &at[0], &rest)
        });
        for (part, f) in ins[1..].iter().zip([ScalarFn::Mul, ScalarFn::Add]) {
            let operand = n.operand(part.dtype, &part.shape());
            let value = n.load(operand, &at[1..2]);
            let value = n.cast(value, dtype.accumulator());
            result = n.apply(f, &[result, value]);
        }
        let result = n.cast(result, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::testing::{check, sample};

    #[test]
    fn groups_and_instances_agree_with_the_formula() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            for shape in [&[2, 6, 3, 4][..], &[1, 6], &[2, 6, 5]] {
                let ins = [sample(dtype, shape, 1), sample(dtype, &[6], 2), sample(dtype, &[6], 3)];
                for num_groups in [1, 2, 6] {
                    check(GroupNorm { instance: false, num_groups, epsilon: 1e-2 }, &ins);
                }
                check(GroupNorm { instance: true, num_groups: 1, epsilon: 1e-2 }, &ins);
            }
        }
        let empty =
            [sample(DType::F32, &[0, 2, 3], 1), sample(DType::F32, &[2], 1), sample(DType::F32, &[2], 1)];
        check(GroupNorm { instance: true, num_groups: 1, epsilon: 1e-5 }, &empty);
    }

    #[test]
    fn an_instance_is_a_group_of_one_channel() {
        let ins =
            [sample(DType::F64, &[2, 3, 4], 1), sample(DType::F64, &[3], 2), sample(DType::F64, &[3], 3)];
        let instance = check(GroupNorm { instance: true, num_groups: 1, epsilon: 1e-5 }, &ins);
        let groups = check(GroupNorm { instance: false, num_groups: 3, epsilon: 1e-5 }, &ins);
        assert_eq!(instance, groups);
    }

    #[test]
    fn constraints_are_named() {
        let f32 = |shape: &[usize]| TensorType::fixed(DType::F32, shape);
        let violated = |num_groups, x: &TensorType, part: &TensorType| {
            let op = GroupNorm { instance: false, num_groups, epsilon: 1e-5 };
            op.infer(&[x, part, part]).unwrap_err().constraint
        };
        assert_eq!(violated(1, &f32(&[4]), &f32(&[4])), "C1");
        assert_eq!(violated(0, &f32(&[1, 4]), &f32(&[4])), "C2");
        assert_eq!(violated(3, &f32(&[1, 4]), &f32(&[4])), "C2");
        assert_eq!(violated(2, &f32(&[1, 4]), &f32(&[2])), "C3");
    }
}
