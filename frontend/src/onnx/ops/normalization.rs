//! Normalizations and softmax.

use windlass_ir::ops::ReduceKind;
use windlass_ir::{DType, Late, ScalarFn, Value, normalize_axis, ops};

use crate::onnx::node::{Imported, NodeCx};
use crate::onnx::problem::{invalid, unsupported};
use crate::onnx::registry::{Entry, entry, entry_at};

pub(super) const ENTRIES: &[Entry] = &[
    entry_at("Softmax", 1..=12, |cx| {
        flattened(cx, |axis| ops::Softmax { log: false, axis, masked: false }.into())
    }),
    entry_at("LogSoftmax", 1..=12, |cx| {
        flattened(cx, |axis| ops::Softmax { log: true, axis, masked: false }.into())
    }),
    entry_at("Hardmax", 1..=12, |cx| flattened(cx, |axis| ops::Hardmax { axis }.into())),
    entry("BatchNormalization", batch_normalization),
    entry("LRN", lrn),
    entry("InstanceNormalization", instance_normalization),
    entry("LayerNormalization", layer_normalization),
    entry("RMSNormalization", rms_normalization),
    entry("GroupNormalization", group_normalization),
    entry("MeanVarianceNormalization", mean_variance_normalization),
];

/// Before operator set 13 these work on a matrix: dimensions from `axis` on are one.
fn flattened(cx: &mut NodeCx<'_, '_>, op: fn(i64) -> windlass_ir::Op) -> Imported {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    // The rank itself means that there are no dimensions from the axis on.
    let axis = match cx.int_or("axis", 1)? {
        axis if axis == rank as i64 => rank,
        axis => match normalize_axis(axis, rank) {
            Some(axis) => axis,
            None => invalid!("attribute `axis` is {axis}, outside rank {rank}"),
        },
    };
    if axis + 1 == rank {
        return cx.push_whole(op(-1), &[x]);
    }
    let sizes = cx.shape_of(x)?;
    let matrix = cx.push(ops::Flatten { axis: axis as i64 }, &[x])?;
    let y = cx.push(op(1), &[matrix])?;
    Ok(vec![cx.reshape_like(y, sizes)?])
}

fn mean_over(cx: &mut NodeCx<'_, '_>, x: Value, axes: &[i64], keep: bool) -> Imported<Value> {
    cx.push(ops::Reduce::over(ReduceKind::Mean, axes, keep), &[x])
}

/// The mean and variance over axes, which stay with size 1.
fn moments(cx: &mut NodeCx<'_, '_>, x: Value, axes: &[i64]) -> Imported<(Value, Value, Value)> {
    let mean = mean_over(cx, x, axes, true)?;
    let centered = cx.map(ScalarFn::Sub, &[x, mean])?;
    let square = cx.map(ScalarFn::Mul, &[centered, centered])?;
    let variance = mean_over(cx, square, axes, true)?;
    Ok((mean, variance, centered))
}

fn batch_normalization(cx: &mut NodeCx<'_, '_>) -> Imported {
    cx.ignore("consumed_inputs");
    let version = cx.version();
    let momentum = cx.float_or("momentum", 0.9)?;
    let epsilon = cx.float_or("epsilon", 1e-5)?;
    if version < 9 && !cx.bool_or("spatial", true)? {
        unsupported!("attribute `spatial` is 0");
    }
    let training = match version {
        0..7 => !cx.bool_or("is_test", false)?,
        7..14 => cx.wants_output(1),
        _ => cx.bool_or("training_mode", false)?,
    };
    let ins = cx.inputs()?;
    let &[x, scale, bias, mean, variance] = ins.as_slice() else {
        invalid!("takes 5 operands, found {}", ins.len());
    };
    let op = ops::BatchNorm { epsilon, channels_last: false };
    if !training {
        return cx.push_whole(op, &ins);
    }
    if version < 14 {
        unsupported!("training mode of operator set {version}");
    }
    // The batch's own statistics, and running ones moved towards them.
    let rank = cx.rank(x) as i64;
    let axes: Vec<i64> = (0..rank).filter(|&axis| axis != 1).collect();
    let stash = cx.dtype_of(x).accumulator();
    let wide = cx.cast(x, stash)?;
    let (batch_mean, batch_variance, _) = moments(cx, wide, &axes)?;
    let mut outs = Vec::with_capacity(3);
    let (batch_mean, batch_variance) = (cx.squeeze(batch_mean, &axes)?, cx.squeeze(batch_variance, &axes)?);
    outs.push(cx.push(op, &[x, scale, bias, batch_mean, batch_variance])?);
    for (running, batch) in [(mean, batch_mean), (variance, batch_variance)] {
        let dtype = cx.dtype_of(running);
        let running = cx.cast(running, stash)?;
        let kept = cx.map_constant(ScalarFn::Mul, running, momentum)?;
        let moved = cx.map_constant(ScalarFn::Mul, batch, 1.0 - momentum)?;
        let sum = cx.map(ScalarFn::Add, &[kept, moved])?;
        outs.push(cx.cast(sum, dtype)?);
    }
    Ok(outs)
}

fn lrn(cx: &mut NodeCx<'_, '_>) -> Imported {
    let op = ops::Lrn {
        alpha: cx.float_or("alpha", 1e-4)?,
        beta: cx.float_or("beta", 0.75)?,
        bias: cx.float_or("bias", 1.0)?,
        size: cx.int_or("size", 0)?,
        channels_last: false,
    };
    let ins = cx.inputs()?;
    cx.push_whole(op, &ins)
}

/// Statistics are computed in f32 (f64 for f64), which is what `stash_type` asks for.
fn check_stash_type(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<DType> {
    let wide = cx.dtype_of(x).accumulator();
    match cx.dtype("stash_type")? {
        None => Ok(DType::F32),
        Some(stash) if stash == wide || stash == DType::F32 => Ok(stash),
        Some(stash) => unsupported!("attribute `stash_type` is {stash} for {}", cx.ty(x)),
    }
}

fn layer_normalization(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    let axis = cx.axis("axis", -1, cx.rank(x))?;
    let epsilon = cx.float_or("epsilon", 1e-5)?;
    let stash = check_stash_type(cx, x)?;
    let mut ins = vec![x, cx.input(1)?];
    ins.extend(cx.optional(2));
    let mut outs = vec![cx.push(ops::LayerNorm { rms: false, axis: axis as i64, epsilon }, &ins)?];
    if cx.wants_output(1) || cx.wants_output(2) {
        let axes: Vec<i64> = (axis as i64..cx.rank(x) as i64).collect();
        let wide = cx.cast(x, stash)?;
        let (mean, variance, _) = moments(cx, wide, &axes)?;
        let shifted = cx.map_constant(ScalarFn::Add, variance, epsilon)?;
        let deviation = cx.map(ScalarFn::Sqrt, &[shifted])?;
        let one = cx.scalar_like(deviation, 1.0);
        outs.extend([mean, cx.map(ScalarFn::Div, &[one, deviation])?]);
    }
    Ok(outs)
}

fn rms_normalization(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    let axis = cx.axis("axis", -1, cx.rank(x))? as i64;
    let epsilon = cx.float_or("epsilon", 1e-5)?;
    check_stash_type(cx, x)?;
    let scale = cx.input(1)?;
    cx.push_whole(ops::LayerNorm { rms: true, axis, epsilon }, &[x, scale])
}

fn instance_normalization(cx: &mut NodeCx<'_, '_>) -> Imported {
    cx.ignore("consumed_inputs");
    let epsilon = cx.float_or("epsilon", 1e-5)?;
    let ins = cx.inputs()?;
    cx.push_whole(ops::GroupNorm { instance: true, num_groups: 1, epsilon, channels_last: false }, &ins)
}

/// Before operator set 21, scale and bias have an element a group; since then one a channel.
fn group_normalization(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (x, mut scale, mut bias) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let epsilon = cx.float_or("epsilon", 1e-5)?;
    let Some(num_groups) = cx.int("num_groups")? else { invalid!("attribute `num_groups` is missing") };
    check_stash_type(cx, x)?;
    if cx.version() < 21 {
        let Some(channels) = cx.ty(x).dims.get(1).and_then(|d| d.as_fixed()) else {
            unsupported!("{}, of a number of channels that is not known", cx.ty(x));
        };
        let groups = usize::try_from(num_groups).unwrap_or(0);
        if groups == 0 || channels % groups != 0 {
            invalid!("{channels} channels in {num_groups} groups");
        }
        for part in [&mut scale, &mut bias] {
            let column = cx.unsqueeze(*part, &[1])?;
            let shape = Late::Known(vec![num_groups, (channels / groups) as i64]);
            let each = cx.push(ops::Broadcast { shape }, &[column])?;
            *part = cx.reshape(each, &[channels as i64], false)?;
        }
    }
    cx.push_whole(
        ops::GroupNorm { instance: false, num_groups, epsilon, channels_last: false },
        &[x, scale, bias],
    )
}

/// `(x - mean) / (sqrt(variance) + 1e-9)`
fn mean_variance_normalization(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    if cx.version() < 9 {
        unsupported!("operator set {}", cx.version());
    }
    let axes = cx.ints("axes")?.unwrap_or_else(|| vec![0, 2, 3]);
    let dtype = cx.dtype_of(x);
    let wide = cx.cast(x, dtype.accumulator())?;
    let (_, variance, centered) = moments(cx, wide, &axes)?;
    let deviation = cx.map(ScalarFn::Sqrt, &[variance])?;
    let deviation = cx.map_constant(ScalarFn::Add, deviation, 1e-9)?;
    let y = cx.map(ScalarFn::Div, &[centered, deviation])?;
    Ok(vec![cx.cast(y, dtype)?])
}
