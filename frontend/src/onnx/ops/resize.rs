//! Resize, its forerunner Upsample, and the first form of GridSample.

use windlass_ir::attrs::KeywordSlot;
use windlass_ir::ops::{Coordinates, NearestMode, SampleMode, SamplePadding};
use windlass_ir::{DType, Late, ScalarFn, Value, ops};

use crate::onnx::node::{Imported, NodeCx, late};
use crate::onnx::problem::{invalid, unsupported};
use crate::onnx::registry::{Entry, entry_at};

pub(super) const ENTRIES: &[Entry] = &[
    entry_at("Upsample", 7..=9, upsample),
    entry_at("Resize", 10..=10, upsample),
    entry_at("Resize", 11..=u32::MAX, resize),
    entry_at("GridSample", 16..=19, old_grid_sample),
];

/// Sets a keyword from an attribute, if that is given.
fn keyword(cx: &mut NodeCx<'_, '_>, name: &str, field: &mut dyn KeywordSlot) -> Imported<()> {
    if let Some(word) = cx.string(name)?
        && !field.set_word(&word)
    {
        unsupported!("attribute `{name}` is `{word}`");
    }
    Ok(())
}

fn plain() -> ops::Resize {
    <ops::Resize as ops::OpDef>::with_name("resize")
}

/// A list of floats, or the bits of one that is known later.
fn floats_or_bits(cx: &mut NodeCx<'_, '_>, value: Value, ins: &mut Vec<Value>) -> Imported<(Vec<f64>, Late)> {
    if let Some(tensor) = cx.constant(value) {
        return Ok((tensor.to_f64s(), Late::default()));
    }
    let floats = cx.cast(value, DType::F32)?;
    let bits = cx.map(ScalarFn::Bitcast(DType::I32), &[floats])?;
    Ok((Vec::new(), late(ins, bits)))
}

/// The first forms: scales only, and the element before a position is the nearest.
fn upsample(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    let mut op = ops::Resize { coordinates: Coordinates::Asymmetric, nearest: NearestMode::Floor, ..plain() };
    keyword(cx, "mode", &mut op.mode)?;
    let mut ins = vec![x];
    match cx.floats("scales")? {
        Some(scales) => op.scales = scales,
        None => {
            let scales = cx.input(1)?;
            (op.scales, op.scale_bits) = floats_or_bits(cx, scales, &mut ins)?;
        }
    }
    cx.push_whole(op, &ins)
}

/// An operand that is given and not an empty list.
fn given(cx: &NodeCx<'_, '_>, index: usize) -> Option<Value> {
    cx.optional(index).filter(|&value| cx.ty(value).as_len() != Some(0))
}

/// Operands: x, region of interest, scales, sizes.
fn resize(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    let mut op = plain();
    keyword(cx, "mode", &mut op.mode)?;
    keyword(cx, "coordinate_transformation_mode", &mut op.coordinates)?;
    keyword(cx, "nearest_mode", &mut op.nearest)?;
    keyword(cx, "keep_aspect_ratio_policy", &mut op.aspect)?;
    op.cubic_coeff_a = cx.float_or("cubic_coeff_a", -0.75)?;
    op.exclude_outside = cx.bool_or("exclude_outside", false)?;
    op.extrapolation_value = cx.float_or("extrapolation_value", 0.0)?;
    op.antialias = cx.bool_or("antialias", false)?;
    op.axes = cx.ints("axes")?.unwrap_or_default();
    let mut ins = vec![x];
    if let Some(roi) = given(cx, 1)
        && op.coordinates == Coordinates::TfCropAndResize
    {
        (op.roi, op.roi_bits) = floats_or_bits(cx, roi, &mut ins)?;
    }
    match (given(cx, 2), given(cx, 3)) {
        (Some(scales), None) => (op.scales, op.scale_bits) = floats_or_bits(cx, scales, &mut ins)?,
        (None, Some(sizes)) => op.sizes = late(&mut ins, sizes),
        _ => invalid!("exactly one of scales and sizes is given"),
    }
    cx.push_whole(op, &ins)
}

/// Before operator set 20 the modes had the names of two dimensions.
fn old_grid_sample(cx: &mut NodeCx<'_, '_>) -> Imported {
    let mode = match cx.string_or("mode", "bilinear")?.as_str() {
        "bilinear" => SampleMode::Linear,
        "bicubic" => SampleMode::Cubic,
        "nearest" => SampleMode::Nearest,
        other => unsupported!("attribute `mode` is `{other}`"),
    };
    let mut padding_mode = SamplePadding::Zeros;
    keyword(cx, "padding_mode", &mut padding_mode)?;
    let align_corners = cx.bool_or("align_corners", false)?;
    let ins = cx.inputs()?;
    cx.push_whole(ops::GridSample { mode, padding_mode, align_corners }, &ins)
}
