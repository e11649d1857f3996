//! Quantization with explicit scales.

use windlass_ir::{DType, ops};

use crate::onnx::node::{Imported, NodeCx};
use crate::onnx::problem::unsupported;
use crate::onnx::registry::{Entry, entry};

pub(super) const ENTRIES: &[Entry] =
    &[entry("QuantizeLinear", quantize), entry("DequantizeLinear", dequantize)];

/// An element type of which 0 means that it is not given.
fn optional_dtype(cx: &mut NodeCx<'_, '_>, name: &str) -> Imported<Option<DType>> {
    match cx.int_or(name, 0)? {
        0 => Ok(None),
        _ => cx.dtype(name),
    }
}

fn quantize(cx: &mut NodeCx<'_, '_>) -> Imported {
    // Only conversions to 8-bit floats saturate or not, and those types are not supported.
    cx.ignore("saturate");
    let mut ins = vec![cx.input(0)?, cx.input(1)?];
    let zero_point = cx.optional(2);
    let named = optional_dtype(cx, "output_dtype")?;
    let to = named.or(zero_point.map(|zero| cx.dtype_of(zero))).unwrap_or(DType::U8);
    if let Some(precision) = optional_dtype(cx, "precision")?
        && precision != DType::F32
    {
        unsupported!("attribute `precision` is {precision}");
    }
    ins.extend(zero_point);
    let (axis, block_size) = (cx.int_or("axis", 1)?, cx.int_or("block_size", 0)?);
    cx.push_whole(ops::QuantizeLinear { axis, block_size, to }, &ins)
}

fn dequantize(cx: &mut NodeCx<'_, '_>) -> Imported {
    let scale = cx.input(1)?;
    let mut ins = vec![cx.input(0)?, scale];
    ins.extend(cx.optional(2));
    let to = optional_dtype(cx, "output_dtype")?.unwrap_or(cx.dtype_of(scale));
    let (axis, block_size) = (cx.int_or("axis", 1)?, cx.int_or("block_size", 0)?);
    cx.push_whole(ops::DequantizeLinear { axis, block_size, to }, &ins)
}
