//! `group_norm` and `instance_norm`: the channels of each group scaled to unit variance.

use super::conv::Layout;
use super::conv_vjp::{channels_first, channels_last};
use super::formula::standardized;
use super::layer_norm::{per_channel, standardize};
use super::vjp;
use super::{Broadcast, LayerNorm, Lowered, OpDef, Reduce, ReduceKind, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Index, NestBuilder};
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType};

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias`, for `x` `[N, C, spatial..]`, or `[N, spatial.., C]` with
/// `channels_last`, with statistics over each group of channels and all spatial dimensions, and `scale` and `bias`
/// `[C]`. `instance_norm` makes each channel its own group.
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
    /// Whether the channels are the last dimension.
    pub channels_last: bool,
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
        GroupNorm { instance: name != "group_norm", num_groups: 1, epsilon: 1e-5, channels_last: false }
    }

    fn name(&self) -> &'static str {
        Self::NAMES[usize::from(self.instance)]
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        if !self.instance {
            codec.attr("num_groups", Slot::Int(&mut self.num_groups))?;
        }
        codec.attr("epsilon", Slot::Float(&mut self.epsilon))?;
        codec.attr("channels_last", Slot::Bool(&mut self.channels_last))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 3..=3)?;
        let x = ins[0];
        require!(x.dtype.is_float() && x.rank() >= 2, "C1", "{x} is not a float with channels");
        let channels = &x.dims[self.axis(x.rank())];
        if !self.instance {
            require!(self.num_groups > 0, "C2", "num_groups is {}", self.num_groups);
            if let Dim::Fixed(c) = *channels {
                let divides = c % self.num_groups as usize == 0;
                require!(divides, "C2", "{} groups do not divide the {c} channels of {x}", self.num_groups);
            }
        }
        per_channel(&ins[1..], channels, "C3")?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let axis = self.axis(x.shape().len());
        let (batch, channels) = (x.shape()[0], x.shape()[axis]);
        let (scale, bias) = (ins[1].to_f64s(), ins[2].to_f64s());
        let mut values = x.to_f64s();
        if !values.is_empty() {
            let groups = self.groups(channels);
            let of_group = channels / groups;
            let spatial = values.len() / (batch * channels);
            let at = |n: usize, c: usize, s: usize| match self.channels_last {
                true => (n * spatial + s) * channels + c,
                false => (n * channels + c) * spatial + s,
            };
            for (n, group) in (0..batch).flat_map(|n| (0..groups).map(move |group| (n, group))) {
                let places: Vec<(usize, usize)> = (group * of_group..(group + 1) * of_group)
                    .flat_map(|c| (0..spatial).map(move |s| (c, s)))
                    .map(|(c, s)| (c, at(n, c, s)))
                    .collect();
                let mut row: Vec<f64> = places.iter().map(|&(_, i)| values[i]).collect();
                standardize(&mut row, self.epsilon, true);
                for (&(c, i), unit) in places.iter().zip(row) {
                    values[i] = unit * scale[c] + bias[c];
                }
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &values)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let mut x = cx.ins[0];
        let rank = cx.shape(x).len();
        if self.channels_last {
            x = cx.transpose(x, &channels_first(rank))?;
        }
        let shape = cx.shape(x);
        let groups = self.groups(shape[1]);
        let size: usize = shape[1..].iter().product();
        let rows = cx.reshape(x, &[shape[0], groups, size / groups.max(1)])?;
        let norm = LayerNorm { rms: false, axis: -1, epsilon: self.epsilon };
        let unit = cx.push(norm, &[rows])?;
        let unit = cx.reshape(unit, &shape)?;
        let scale = cx.per_channel(cx.ins[1], 1, rank)?;
        let bias = cx.per_channel(cx.ins[2], 1, rank)?;
        let scaled = cx.map(ScalarFn::Mul, &[unit, scale])?;
        let mut result = cx.map(ScalarFn::Add, &[scaled, bias])?;
        if self.channels_last {
            result = cx.transpose(result, &channels_last(rank))?;
        }
        vjp::through(result)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.merged(self.clone(), &[Some(0), None, None], &[0])
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (shape, dtype) = (outs[0].shape(), ins[0].dtype);
        if self.channels_last && shape.len() > 2 && !shape.contains(&0) {
            return Lowered::graph(ins, |b, ins| self.by_channel(b, ins));
        }
        let layout = Layout::new(shape.len(), self.channels_last);
        let channels = shape[layout.channels];
        let per_group = channels / self.groups(channels).max(1);
        let mut n = NestBuilder::new(&shape);
        let operand = n.operand(dtype, &shape);
        let at = n.domain();
        let channel = at[layout.channels].clone();
        let first = channel.div(per_group.max(1) as i64).mul(per_group as i64);
        let load = |n: &mut NestBuilder, channel: Index, spatial: &[Index]| {
            let index = layout.assemble(at[0].clone(), channel, spatial.iter().cloned());
            let x = n.load(operand, &index);
            n.cast(x, dtype.accumulator())
        };
        let x = load(&mut n, channel.clone(), &at[layout.spatial.clone()]);
        let spatial = shape[layout.spatial.clone()].iter().copied();
        let extents: Vec<usize> = std::iter::once(per_group).chain(spatial).collect();
        let mut result =
            standardized(&mut n, x, &extents, self.epsilon, |n, k| load(n, first.add(&k[0]), &k[1..]));
        for (part, f) in ins[1..].iter().zip([ScalarFn::Mul, ScalarFn::Add]) {
            let operand = n.operand(part.dtype, &part.shape());
            let value = n.load(operand, std::slice::from_ref(&channel));
            let value = n.cast(value, dtype.accumulator());
            result = n.apply(f, &[result, value]);
        }
        let result = n.cast(result, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

impl GroupNorm {
    /// The dimension of the channels.
    fn axis(&self, rank: usize) -> usize {
        Layout::new(rank, self.channels_last).channels
    }

    /// By means of each channel, and of those of a group, for channels that are neighbours in memory.
    fn by_channel(&self, b: &mut Builder, ins: &[Value]) -> Result<Values, Error> {
        let ty = b.ty(ins[0]).clone();
        let (shape, wide) = (ty.shape(), ty.dtype.accumulator());
        let (batch, channels) = (shape[0], shape[shape.len() - 1]);
        let groups = self.groups(channels);
        let rows = shape[1..shape.len() - 1].iter().product();
        let mean = |b: &mut Builder, value: Value| {
            let of_channels = b.push1(Reduce::over(ReduceKind::Mean, &[1], true), &[value])?;
            if groups == channels {
                return Ok::<Value, Error>(of_channels);
            }
            let grouped = b.reshape(of_channels, &[batch, groups, channels / groups])?;
            let of_groups = b.push1(Reduce::over(ReduceKind::Mean, &[2], true), &[grouped])?;
            let shape = vec![batch as i64, groups as i64, (channels / groups) as i64];
            let each = b.push1(Broadcast { shape: shape.into() }, &[of_groups])?;
            b.reshape(each, &[batch, 1, channels])
        };
        let x = b.cast(ins[0], wide)?;
        let x = b.reshape(x, &[batch, rows, channels])?;
        let center = mean(b, x)?;
        let deviation = b.map(ScalarFn::Sub, &[x, center])?;
        let square = b.map(ScalarFn::Mul, &[deviation, deviation])?;
        let variance = mean(b, square)?;
        let epsilon = b.scalar(wide, self.epsilon);
        let shifted = b.map(ScalarFn::Add, &[variance, epsilon])?;
        let root = b.map(ScalarFn::Sqrt, &[shifted])?;
        let one = b.scalar(wide, 1.0);
        let inverse = b.map(ScalarFn::Div, &[one, root])?;
        let unit = b.map(ScalarFn::Mul, &[deviation, inverse])?;
        let scale = b.cast(ins[1], wide)?;
        let scaled = b.map(ScalarFn::Mul, &[unit, scale])?;
        let bias = b.cast(ins[2], wide)?;
        let result = b.map(ScalarFn::Add, &[scaled, bias])?;
        let result = b.reshape(result, &shape)?;
        Ok(Values::from_slice(&[b.cast(result, ty.dtype)?]))
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
                let last: Vec<usize> = channels_last(shape.len()).into_iter().map(|dim| shape[dim]).collect();
                let ins_last = [sample(dtype, &last, 1), ins[1].clone(), ins[2].clone()];
                for (instance, num_groups) in [(false, 1), (false, 2), (false, 6), (true, 1)] {
                    let op = GroupNorm { instance, num_groups, epsilon: 1e-2, channels_last: false };
                    check(op.clone(), &ins);
                    check(GroupNorm { channels_last: true, ..op }, &ins_last);
                }
            }
        }
        let empty: [(bool, &[usize]); 5] = [
            (false, &[0, 2, 3]),
            (true, &[0, 3, 2]),
            (true, &[1, 0, 2]),
            (true, &[2, 0, 4, 2]),
            (true, &[0, 2]),
        ];
        for (channels_last, shape) in empty {
            let [scale, bias] = [1, 2].map(|seed| sample(DType::F32, &[2], seed));
            let op = GroupNorm { instance: false, num_groups: 1, epsilon: 1e-5, channels_last };
            // Nothing is reshaped of them, which has no formula where there are no elements.
            let ty = TensorType::fixed(DType::F32, shape);
            let types = [ty.clone(), scale.ty(), bias.ty()];
            assert!(matches!(op.lower(&types, &[ty]).unwrap(), Lowered::Nest(_)));
            check(op, &[sample(DType::F32, shape, 1), scale, bias]);
        }
    }

    #[test]
    fn channels_may_be_last() {
        let (x, scale, bias) =
            (sample(DType::F64, &[2, 4, 3, 5], 1), sample(DType::F64, &[4], 2), sample(DType::F64, &[4], 3));
        let order = |x: &Tensor, perm: Vec<usize>| {
            let perm = super::super::Transpose::by(&perm);
            perm.eval(std::slice::from_ref(x)).unwrap().remove(0)
        };
        for num_groups in [1, 2, 4] {
            let op = GroupNorm { instance: false, num_groups, epsilon: 1e-5, channels_last: false };
            let first = check(op.clone(), &[x.clone(), scale.clone(), bias.clone()]);
            let last = order(&x, channels_last(4));
            let last = check(GroupNorm { channels_last: true, ..op }, &[last, scale.clone(), bias.clone()]);
            assert_eq!(order(&last[0], channels_first(4)), first[0]);
        }
    }

    #[test]
    fn an_instance_is_a_group_of_one_channel() {
        let ins =
            [sample(DType::F64, &[2, 3, 4], 1), sample(DType::F64, &[3], 2), sample(DType::F64, &[3], 3)];
        let op = GroupNorm { instance: true, num_groups: 1, epsilon: 1e-5, channels_last: false };
        let instance = check(op.clone(), &ins);
        let groups = check(GroupNorm { instance: false, num_groups: 3, ..op }, &ins);
        assert_eq!(instance, groups);
    }

    #[test]
    fn constraints_are_named() {
        let f32 = |shape: &[usize]| TensorType::fixed(DType::F32, shape);
        let violated = |num_groups, x: &TensorType, part: &TensorType| {
            let op = GroupNorm { instance: false, num_groups, epsilon: 1e-5, channels_last: false };
            op.infer(&[x, part, part]).unwrap_err().constraint
        };
        assert_eq!(violated(1, &f32(&[4]), &f32(&[4])), "C1");
        assert_eq!(violated(0, &f32(&[1, 4]), &f32(&[4])), "C2");
        assert_eq!(violated(3, &f32(&[1, 4]), &f32(&[4])), "C2");
        assert_eq!(violated(2, &f32(&[1, 4]), &f32(&[2])), "C3");
    }
}
