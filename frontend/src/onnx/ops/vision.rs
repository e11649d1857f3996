//! Sampling, regions and boxes: what detection models are made of besides convolutions.

use windlass_ir::ops::{PadMode, RoiMode, SampleMode, SamplePadding, ScatterElements};
use windlass_ir::{DType, Late, ScalarFn, ops};

use crate::onnx::node::{Imported, NodeCx, late};
use crate::onnx::ops::convolution::spatial_list;
use crate::onnx::problem::{invalid, unsupported};
use crate::onnx::registry::{Entry, entry, entry_at};

pub(super) const ENTRIES: &[Entry] = &[
    entry("Col2Im", col2im),
    entry("DeformConv", deform_conv),
    // Newer versions are the op attribute by attribute.
    entry_at("GridSample", 16..=19, grid_sample),
    entry("MaxUnpool", max_unpool),
    entry("NonMaxSuppression", non_max_suppression),
    entry("RoiAlign", roi_align),
];

fn grid_sample(cx: &mut NodeCx<'_, '_>) -> Imported {
    let mode = match cx.string_or("mode", "bilinear")?.as_str() {
        "bilinear" => SampleMode::Linear,
        "nearest" => SampleMode::Nearest,
        "bicubic" => SampleMode::Cubic,
        other => invalid!("attribute `mode` is `{other}`"),
    };
    let padding_mode = match cx.string_or("padding_mode", "zeros")?.as_str() {
        "zeros" => SamplePadding::Zeros,
        "border" => SamplePadding::Border,
        "reflection" => SamplePadding::Reflection,
        other => invalid!("attribute `padding_mode` is `{other}`"),
    };
    let align_corners = cx.bool_or("align_corners", false)?;
    let ins = cx.inputs()?;
    cx.push_whole(ops::GridSample { mode, padding_mode, align_corners }, &ins)
}

/// Operands: columns, the image's shape, the block's shape.
fn col2im(cx: &mut NodeCx<'_, '_>) -> Imported {
    let list = |list: Option<Vec<i64>>| list.unwrap_or_default();
    let (strides, pads) = (list(cx.ints("strides")?), list(cx.ints("pads")?));
    let dilations = list(cx.ints("dilations")?);
    let (image, block) = (cx.input(1)?, cx.input(2)?);
    let mut ins = vec![cx.input(0)?];
    let (image, block) = (late(&mut ins, image), late(&mut ins, block));
    cx.push_whole(ops::Col2Im { image, block, strides, pads, dilations }, &ins)
}

/// Operands: x, weights, offsets, bias, mask.
fn deform_conv(cx: &mut NodeCx<'_, '_>) -> Imported {
    cx.ignore("kernel_shape");
    let list = |list: Option<Vec<i64>>| list.unwrap_or_default();
    let (strides, pads) = (list(cx.ints("strides")?), list(cx.ints("pads")?));
    let dilations = list(cx.ints("dilations")?);
    let (group, offset_group) = (cx.int_or("group", 1)?, cx.int_or("offset_group", 1)?);
    let (bias, mask) = (cx.optional(3), cx.optional(4));
    let mut ins = vec![cx.input(0)?, cx.input(1)?, cx.input(2)?];
    ins.extend(bias.into_iter().chain(mask));
    let (bias, mask) = (bias.is_some(), mask.is_some());
    cx.push_whole(ops::DeformConv { strides, pads, dilations, group, offset_group, bias, mask }, &ins)
}

/// Operands: x, the positions that max pooling gave, the result's shape. Positions count in the shape
/// that follows from the window; a larger result has that shape at its beginning.
fn max_unpool(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (x, indices) = (cx.input(0)?, cx.input(1)?);
    let Some(n) = cx.rank(x).checked_sub(2) else { invalid!("{} has no channels", cx.ty(x)) };
    let kernel = spatial_list(cx, "kernel_shape", n, 1, 1)?;
    let strides = spatial_list(cx, "strides", n, 1, 1)?;
    let pads = spatial_list(cx, "pads", 2 * n, 0, 0)?;
    let sizes: Option<Vec<i64>> =
        cx.ty(x).dims.iter().map(|d| d.as_fixed().and_then(|n| i64::try_from(n).ok())).collect();
    let Some(mut shape) = sizes else {
        unsupported!("{}, of sizes that are not known", cx.ty(x));
    };
    for d in 0..n {
        let reach = kernel[d] - pads[d] - pads[n + d];
        shape[d + 2] = (shape[d + 2] - 1).saturating_mul(strides[d]).saturating_add(reach);
        if shape[d + 2] < 0 {
            invalid!("dimension {d} of the result would have size {}", shape[d + 2]);
        }
    }
    let count = shape.iter().fold(1i64, |n, &d| n.saturating_mul(d));
    let zero = cx.scalar_like(x, 0.0);
    let zeros = cx.push(ops::Broadcast { shape: vec![count].into() }, &[zero])?;
    let (places, values) = (cx.reshape(indices, &[-1], false)?, cx.reshape(x, &[-1], false)?);
    let flat = cx.push(ScatterElements::default(), &[zeros, places, values])?;
    let mut result = cx.reshape(flat, &shape, false)?;
    if let Some(wanted) = cx.optional(2) {
        let inner = cx.int_list(&shape);
        let after = cx.map(ScalarFn::Sub, &[wanted, inner])?;
        let before = cx.int_list(&vec![0; n + 2]);
        let pads = cx.push(ops::Concat { axis: 0 }, &[before, after])?;
        let mut ins = vec![result, zero];
        let pads = late(&mut ins, pads);
        result = cx.push(ops::Pad { pads, axes: Late::default(), mode: PadMode::Constant }, &ins)?;
    }
    Ok(vec![result])
}

/// Operands: boxes, scores, and of one element each the number of boxes, the overlap, the least score.
fn non_max_suppression(cx: &mut NodeCx<'_, '_>) -> Imported {
    let center_point_box = cx.bool_or("center_point_box", false)?;
    let most = match cx.optional(2) {
        Some(most) => cx.cast(most, DType::I64)?,
        None => cx.scalar(DType::I64, 0.0),
    };
    let overlap = match cx.optional(3) {
        Some(overlap) => overlap,
        None => cx.scalar(DType::F32, 0.0),
    };
    let mut ins = vec![cx.input(0)?, cx.input(1)?, most, overlap];
    ins.extend(cx.optional(4));
    cx.push_whole(ops::NonMaxSuppression { center_point_box }, &ins)
}

/// Operands: x, regions, the image of each.
fn roi_align(cx: &mut NodeCx<'_, '_>) -> Imported {
    let half_pixel = match cx.string("coordinate_transformation_mode")?.as_deref() {
        Some("half_pixel") => true,
        Some("output_half_pixel") => false,
        // The attribute came with version 16, and its default changed what the operator does.
        None => cx.version() >= 16,
        Some(other) => invalid!("attribute `coordinate_transformation_mode` is `{other}`"),
    };
    let mode = match cx.string_or("mode", "avg")?.as_str() {
        "avg" => RoiMode::Avg,
        "max" => RoiMode::Max,
        other => invalid!("attribute `mode` is `{other}`"),
    };
    let op = ops::RoiAlign {
        mode,
        output_height: cx.int_or("output_height", 1)?,
        output_width: cx.int_or("output_width", 1)?,
        sampling_ratio: cx.int_or("sampling_ratio", 0)?,
        spatial_scale: cx.float_or("spatial_scale", 1.0)?,
        half_pixel,
    };
    let ins = cx.inputs()?;
    cx.push_whole(op, &ins)
}
