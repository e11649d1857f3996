//! Moving, selecting and generating elements: slices, pads, gathers, ranges.

use windlass_ir::ops::{ArgKind, CumulativeKind, PadMode};
use windlass_ir::{DType, Late, ScalarFn, Tensor, Value, normalize_axis, ops};

use crate::onnx::node::{Imported, NodeCx, late, late_or_empty};
use crate::onnx::problem::{invalid, unsupported};
use crate::onnx::registry::{Entry, entry, entry_at};

pub(super) const ENTRIES: &[Entry] = &[
    entry("Expand", expand),
    entry("Slice", slice),
    entry("Split", split),
    entry("Squeeze", squeeze),
    entry("Unsqueeze", unsqueeze),
    entry_at("Concat", 1..=3, old_concat),
    entry("Pad", pad),
    entry("Tile", tile),
    entry("ConstantOfShape", constant_of_shape),
    entry("EyeLike", eye_like),
    entry("OneHot", one_hot),
    entry("TopK", top_k),
    entry("ArgMax", |cx| arg_reduce(cx, ArgKind::Max)),
    entry("ArgMin", |cx| arg_reduce(cx, ArgKind::Min)),
    entry("CumSum", |cx| cumulative(cx, CumulativeKind::Sum)),
    entry("CumProd", |cx| cumulative(cx, CumulativeKind::Prod)),
    entry("Compress", compress),
    entry("DepthToSpace", depth_to_space),
    entry("SpaceToDepth", space_to_depth),
    entry("CenterCropPad", center_crop_pad),
    entry("Trilu", trilu),
];

fn expand(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (x, shape) = (cx.input(0)?, cx.input(1)?);
    let mut ins = vec![x];
    let shape = late(&mut ins, shape);
    cx.push_whole(ops::Broadcast { shape }, &ins)
}

fn slice(cx: &mut NodeCx<'_, '_>) -> Imported {
    let mut ins = vec![cx.input(0)?];
    if cx.version() < 10 {
        let (Some(starts), Some(ends)) = (cx.ints("starts")?, cx.ints("ends")?) else {
            invalid!("attribute `starts` or `ends` is missing");
        };
        let axes = cx.ints("axes")?.unwrap_or_default();
        let (starts, ends, axes) = (starts.into(), ends.into(), axes.into());
        return cx.push_whole(ops::Slice { starts, ends, axes, steps: Late::default() }, &ins);
    }
    let (starts, ends) = (cx.input(1)?, cx.input(2)?);
    let (axes, steps) = (cx.optional(3), cx.optional(4));
    let op = ops::Slice {
        starts: late(&mut ins, starts),
        ends: late(&mut ins, ends),
        axes: late_or_empty(&mut ins, axes),
        steps: late_or_empty(&mut ins, steps),
    };
    cx.push_whole(op, &ins)
}

/// One slice a result. Sizes that are not given are equal, the last one taking what is left.
fn split(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    let axis = cx.axis("axis", 0, cx.rank(x))?;
    let given = match (cx.ints("split")?, cx.optional(1)) {
        (None, Some(operand)) => match cx.constant(operand).map(Tensor::to_ints) {
            Some(sizes) => Some(sizes),
            None => return split_by(cx, x, axis, operand),
        },
        (attribute, _) => attribute,
    };
    let parts = match cx.int("num_outputs")? {
        Some(parts) => usize::try_from(parts).unwrap_or(0),
        None => cx.outputs(),
    };
    if parts == 0 || parts > cx.outputs().max(1) * 2 {
        invalid!("{parts} parts for {} results", cx.outputs());
    }
    let Some(sizes) = given else {
        return split_equally(cx, x, axis, parts);
    };
    let total = sizes.iter().try_fold(0i64, |sum, &n| sum.checked_add(n).filter(|_| n >= 0));
    if total.is_none() || cx.ty(x).dims[axis].as_fixed().is_some_and(|n| total != Some(n as i64)) {
        invalid!("sizes {sizes:?} do not split {} along axis {axis}", cx.ty(x));
    }
    let mut start = 0;
    let mut outs = Vec::with_capacity(sizes.len());
    for size in sizes {
        outs.push(cx.push(ops::Slice::along(axis, start, start + size), &[x])?);
        start += size;
    }
    Ok(outs)
}

/// With sizes that are known later.
fn split_by(cx: &mut NodeCx<'_, '_>, x: Value, axis: usize, sizes: Value) -> Imported {
    let mut start = cx.int_list(&[0]);
    let mut outs = Vec::with_capacity(cx.outputs());
    for i in 0..cx.outputs() as i64 {
        let size = cx.push(ops::Slice::along(0, i, i + 1), &[sizes])?;
        let end = cx.map(ScalarFn::Add, &[start, size])?;
        outs.push(slice_between(cx, x, axis, start, end)?);
        start = end;
    }
    Ok(outs)
}

fn slice_between(
    cx: &mut NodeCx<'_, '_>,
    x: Value,
    axis: usize,
    start: Value,
    end: Value,
) -> Imported<Value> {
    let mut ins = vec![x];
    let (starts, ends) = (late(&mut ins, start), late(&mut ins, end));
    let axes = Late::Known(vec![axis as i64]);
    cx.push(ops::Slice { starts, ends, axes, steps: Late::default() }, &ins)
}

fn split_equally(cx: &mut NodeCx<'_, '_>, x: Value, axis: usize, parts: usize) -> Imported {
    let mut outs = Vec::with_capacity(parts);
    if let Some(size) = cx.ty(x).dims[axis].as_fixed() {
        let part = size.div_ceil(parts);
        if cx.version() < 18 && size % parts != 0 {
            invalid!("{} does not split into {parts} equal parts along axis {axis}", cx.ty(x));
        }
        for i in 0..parts {
            let (start, end) = ((i * part).min(size), ((i + 1) * part).min(size));
            outs.push(cx.push(ops::Slice::along(axis, start as i64, end as i64), &[x])?);
        }
        return Ok(outs);
    }
    // ceil(size / parts), computed when the size is known.
    let sizes = cx.shape_of(x)?;
    let size = cx.push(ops::Slice::along(0, axis as i64, axis as i64 + 1), &[sizes])?;
    let raised = cx.map_constant(ScalarFn::Add, size, parts as f64 - 1.0)?;
    let part = cx.map_constant(ScalarFn::Div, raised, parts as f64)?;
    for i in 0..parts {
        let start = cx.map_constant(ScalarFn::Mul, part, i as f64)?;
        let end = cx.map(ScalarFn::Add, &[start, part])?;
        outs.push(slice_between(cx, x, axis, start, end)?);
    }
    Ok(outs)
}

/// Axes as an attribute, or since operand set 13 as an operand.
fn axes(cx: &mut NodeCx<'_, '_>, ins: &mut Vec<Value>) -> Imported<Option<Late>> {
    if let Some(axes) = cx.ints("axes")? {
        return Ok(Some(Late::Known(axes)));
    }
    Ok(cx.optional(1).map(|axes| late(ins, axes)))
}

fn squeeze(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    let mut ins = vec![x];
    let axes = axes(cx, &mut ins)?.unwrap_or_default();
    if axes == Late::default() {
        if cx.ty(x).as_shape().is_none() {
            unsupported!("no axes, and sizes of {} are not known", cx.ty(x));
        }
    } else if let Late::Operand(_) = axes
        && cx.ty(ins[1]).dims.first().and_then(|d| d.as_fixed()) == Some(0)
    {
        // No axes at all mean every dimension of 1.
        ins.pop();
        return cx.push_whole(ops::Squeeze::default(), &ins);
    }
    cx.push_whole(ops::Squeeze { axes }, &ins)
}

fn unsqueeze(cx: &mut NodeCx<'_, '_>) -> Imported {
    let mut ins = vec![cx.input(0)?];
    let Some(axes) = axes(cx, &mut ins)? else { invalid!("axes are missing") };
    cx.push_whole(ops::Unsqueeze { axes }, &ins)
}

fn old_concat(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (axis, ins) = (cx.int_or("axis", 1)?, cx.inputs()?);
    cx.push_whole(ops::Concat { axis }, &ins)
}

fn pad(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    let mode = match cx.string_or("mode", "constant")?.as_str() {
        "constant" => PadMode::Constant,
        "reflect" => PadMode::Reflect,
        "edge" => PadMode::Edge,
        "wrap" => PadMode::Wrap,
        other => unsupported!("attribute `mode` is `{other}`"),
    };
    if cx.version() < 11 {
        let name = if cx.version() < 2 { "paddings" } else { "pads" };
        let Some(pads) = cx.ints(name)? else { invalid!("attribute `{name}` is missing") };
        let fill = cx.float_or("value", 0.0)?;
        let fill = cx.scalar_like(x, fill);
        let op = ops::Pad { pads: Late::Known(pads), axes: Late::default(), mode };
        return cx.push_whole(op, &[x, fill]);
    }
    let fill = match cx.optional(2) {
        Some(fill) => fill,
        None => cx.scalar_like(x, 0.0),
    };
    let mut ins = vec![x, fill];
    let pads = cx.input(1)?;
    let axes = cx.optional(3);
    let op = ops::Pad { pads: late(&mut ins, pads), axes: late_or_empty(&mut ins, axes), mode };
    cx.push_whole(op, &ins)
}

fn tile(cx: &mut NodeCx<'_, '_>) -> Imported {
    if cx.version() < 6 {
        unsupported!("operator `Tile` of operator set {}", cx.version());
    }
    let mut ins = vec![cx.input(0)?];
    let repeats = cx.input(1)?;
    let repeats = late(&mut ins, repeats);
    cx.push_whole(ops::Tile { repeats }, &ins)
}

fn constant_of_shape(cx: &mut NodeCx<'_, '_>) -> Imported {
    let value = cx.tensor("value")?.unwrap_or_else(|| Tensor::scalar(0f32));
    if value.len() != 1 {
        invalid!("attribute `value` is {}, not one element", value.ty());
    }
    let sizes = cx.input(0)?;
    let scalar = cx.add_constant(value.reshaped(&[]));
    let mut ins = vec![scalar];
    let shape = late(&mut ins, sizes);
    cx.push_whole(ops::Broadcast { shape }, &ins)
}

/// `column == row + k`
fn eye_like(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    if cx.rank(x) != 2 {
        invalid!("{} is not a matrix", cx.ty(x));
    }
    let dtype = match cx.dtype("dtype")? {
        Some(dtype) => dtype,
        None => cx.dtype_of(x),
    };
    let k = cx.int_or("k", 0)?;
    let sizes = cx.shape_of(x)?;
    let shape = Late::Operand(0);
    let row = cx.push(ops::Iota { shape: shape.clone(), axis: 0, dtype: DType::I64 }, &[sizes])?;
    let column = cx.push(ops::Iota { shape, axis: 1, dtype: DType::I64 }, &[sizes])?;
    let k = cx.add_constant(Tensor::scalar(k));
    let wanted = cx.map(ScalarFn::Add, &[row, k])?;
    let eye = cx.map(ScalarFn::Eq, &[column, wanted])?;
    Ok(vec![cx.cast(eye, dtype)?])
}

fn one_hot(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (indices, depth, values) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let axis = cx.int_or("axis", -1)?;
    let depth = if cx.dtype_of(depth).is_int() { depth } else { cx.cast(depth, DType::I64)? };
    let mut ins = vec![indices, values];
    let depth = late(&mut ins, depth);
    cx.push_whole(ops::OneHot { depth, axis }, &ins)
}

fn top_k(cx: &mut NodeCx<'_, '_>) -> Imported {
    let mut ins = vec![cx.input(0)?];
    let axis = cx.int_or("axis", -1)?;
    let (largest, sorted) = (cx.bool_or("largest", true)?, cx.bool_or("sorted", true)?);
    let k = if cx.version() < 10 {
        let Some(k) = cx.int("k")? else { invalid!("attribute `k` is missing") };
        Late::Known(vec![k])
    } else {
        let k = cx.input(1)?;
        late(&mut ins, k)
    };
    cx.push_whole(ops::TopK { k, axis, largest, sorted }, &ins)
}

fn arg_reduce(cx: &mut NodeCx<'_, '_>, kind: ArgKind) -> Imported {
    let x = cx.input(0)?;
    let op = ops::ArgReduce {
        kind,
        axis: cx.int_or("axis", 0)?,
        keep: cx.bool_or("keepdims", true)?,
        last: cx.bool_or("select_last_index", false)?,
    };
    cx.push_whole(op, &[x])
}

fn cumulative(cx: &mut NodeCx<'_, '_>, kind: CumulativeKind) -> Imported {
    let mut ins = vec![cx.input(0)?];
    let axis = cx.input(1)?;
    let (exclusive, reverse) = (cx.bool_or("exclusive", false)?, cx.bool_or("reverse", false)?);
    let axis = late(&mut ins, axis);
    cx.push_whole(ops::Cumulative { kind, axis, exclusive, reverse }, &ins)
}

fn compress(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (x, condition) = (cx.input(0)?, cx.input(1)?);
    match cx.int("axis")? {
        Some(axis) => cx.push_whole(ops::Compress { axis }, &[x, condition]),
        None => {
            let flat = cx.reshape(x, &[-1], false)?;
            cx.push_whole(ops::Compress { axis: 0 }, &[flat, condition])
        }
    }
}

fn trilu(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    let upper = cx.bool_or("upper", true)?;
    let mut ins = vec![x];
    ins.extend(cx.optional(1));
    cx.push_whole(ops::Trilu { upper }, &ins)
}

/// The sizes of an image `[N, C, H, W]` as scalars-in-lists, and the block size.
fn blocks(cx: &mut NodeCx<'_, '_>) -> Imported<(Value, [Value; 4], i64)> {
    let x = cx.input(0)?;
    if cx.rank(x) != 4 {
        invalid!("{} is not of rank 4", cx.ty(x));
    }
    let Some(block) = cx.int("blocksize")?.filter(|&block| block > 0) else {
        invalid!("attribute `blocksize` is not positive");
    };
    let sizes = cx.shape_of(x)?;
    let mut parts = Vec::with_capacity(4);
    for i in 0..4 {
        parts.push(cx.push(ops::Slice::along(0, i, i + 1), &[sizes])?);
    }
    Ok((x, [parts[0], parts[1], parts[2], parts[3]], block))
}

fn reshape_to(cx: &mut NodeCx<'_, '_>, x: Value, sizes: &[Value]) -> Imported<Value> {
    let shape = cx.push(ops::Concat { axis: 0 }, sizes)?;
    cx.reshape_like(x, shape)
}

fn depth_to_space(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (x, [n, c, h, w], block) = blocks(cx)?;
    let depth_first = match cx.string_or("mode", "DCR")?.as_str() {
        "DCR" => true,
        "CRD" => false,
        other => unsupported!("attribute `mode` is `{other}`"),
    };
    let b = cx.int_list(&[block]);
    let square = cx.int_list(&[block.saturating_mul(block)]);
    let channels = cx.map(ScalarFn::Div, &[c, square])?;
    let (split, perm) = match depth_first {
        true => ([n, b, b, channels, h, w], [0, 3, 4, 1, 5, 2]),
        false => ([n, channels, b, b, h, w], [0, 1, 4, 2, 5, 3]),
    };
    let y = reshape_to(cx, x, &split)?;
    let y = cx.push(ops::Transpose::by(&perm), &[y])?;
    let (height, width) = (cx.map(ScalarFn::Mul, &[h, b])?, cx.map(ScalarFn::Mul, &[w, b])?);
    Ok(vec![reshape_to(cx, y, &[n, channels, height, width])?])
}

fn space_to_depth(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (x, [n, c, h, w], block) = blocks(cx)?;
    let depth_first = match cx.string_or("mode", "DCR")?.as_str() {
        "DCR" => true,
        "CRD" => false,
        other => unsupported!("attribute `mode` is `{other}`"),
    };
    let b = cx.int_list(&[block]);
    let square = cx.int_list(&[block.saturating_mul(block)]);
    let (height, width) = (cx.map(ScalarFn::Div, &[h, b])?, cx.map(ScalarFn::Div, &[w, b])?);
    let y = reshape_to(cx, x, &[n, c, height, b, width, b])?;
    let perm = if depth_first { [0, 3, 5, 1, 2, 4] } else { [0, 1, 3, 5, 2, 4] };
    let y = cx.push(ops::Transpose::by(&perm), &[y])?;
    let channels = cx.map(ScalarFn::Mul, &[c, square])?;
    Ok(vec![reshape_to(cx, y, &[n, channels, height, width])?])
}

/// Crops or pads each axis to a size, evenly on both sides, what is odd at the end.
fn center_crop_pad(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (x, target) = (cx.input(0)?, cx.input(1)?);
    let rank = cx.rank(x);
    let axes = cx.ints("axes")?.unwrap_or_else(|| (0..rank as i64).collect());
    let Some(axes): Option<Vec<i64>> =
        axes.iter().map(|&axis| normalize_axis(axis, rank).map(|axis| axis as i64)).collect()
    else {
        invalid!("attribute `axes` is {axes:?} for rank {rank}");
    };
    let sizes = cx.shape_of(x)?;
    let positions = cx.int_list(&axes);
    let sizes = cx.push(ops::Gather { axis: 0 }, &[sizes, positions])?;
    let target = cx.cast(target, DType::I64)?;
    let difference = cx.map(ScalarFn::Sub, &[target, sizes])?;
    // A crop starts at half of what goes, rounded down; so does a border.
    let before = cx.map_constant(ScalarFn::Div, difference, 2.0)?;
    let after = cx.map(ScalarFn::Sub, &[difference, before])?;
    let pads = cx.push(ops::Concat { axis: 0 }, &[before, after])?;
    let zero = cx.scalar_like(x, 0.0);
    let mut ins = vec![x, zero];
    let pads = late(&mut ins, pads);
    cx.push_whole(ops::Pad { pads, axes: axes.into(), mode: PadMode::Constant }, &ins)
}
