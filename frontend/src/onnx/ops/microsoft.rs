//! Operators of onnxruntime's own domain, `com.microsoft`, that exporters of language models write.

use windlass_ir::{DType, ScalarFn, Tensor, Value, ops};

use crate::onnx::node::{Imported, NodeCx};
use crate::onnx::problem::{invalid, unsupported};
use crate::onnx::registry::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[entry("MatMulNBits", matmul_n_bits)];

/// `a * b'` for a `b` of `N` rows of `K` integers, unsigned and of 4 or 8 bits, that share a scale in blocks.
///
/// Rows are filled up to whole blocks; blocks, and rows of zero points of 4 bits, to whole bytes.
fn matmul_n_bits(cx: &mut NodeCx<'_, '_>) -> Imported {
    let size = |cx: &mut NodeCx<'_, '_>, name: &str| match cx.int(name)? {
        Some(size) if (1..1 << 31).contains(&size) => Ok(size as usize),
        Some(size) => invalid!("attribute `{name}` is {size}"),
        None => invalid!("attribute `{name}` is missing"),
    };
    let (steps, columns, block) = (size(cx, "K")?, size(cx, "N")?, size(cx, "block_size")?);
    let bits = match cx.int_or("bits", 4)? {
        bits @ (4 | 8) => bits as usize,
        bits => unsupported!("{bits} bits"),
    };
    // It allows products of integers; ours are of floats.
    cx.ignore("accuracy_level");
    if cx.optional(4).is_some() {
        unsupported!("operand `g_idx`");
    }
    if !block.is_power_of_two() || block < 16 {
        invalid!("blocks of {block}");
    }
    let (a, b, scales) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (zeros, bias) = (cx.optional(3), cx.optional(5));
    let to = cx.dtype_of(a);
    let blocks = steps.div_ceil(block);

    let q = integers(cx, b, columns, blocks * block, bits)?;
    let q = cx.leading(q, 1, steps)?;
    let scales = cx.reshape(scales, &[columns as i64, blocks as i64], false)?;
    let dequantize = ops::DequantizeLinear { axis: 1, block_size: block as i64, to };
    let b = match zeros {
        Some(zeros) if cx.dtype_of(zeros).is_float() => {
            // `(q - zero) * scale` of floats.
            let one = cx.scalar_like(scales, 1.0);
            let unscaled = cx.push(ops::DequantizeLinear { axis: 1, block_size: 0, to }, &[q, one])?;
            let zeros = cx.reshape(zeros, &[columns as i64, blocks as i64], false)?;
            let [zeros, scales] = [each_step(cx, zeros, block, steps)?, each_step(cx, scales, block, steps)?];
            let distance = cx.map(ScalarFn::Sub, &[unscaled, zeros])?;
            cx.map(ScalarFn::Mul, &[distance, scales])?
        }
        Some(zeros) => {
            let packed = (blocks * bits).div_ceil(8) * 8 / bits;
            let zeros = integers(cx, zeros, columns, packed, bits)?;
            let zeros = cx.leading(zeros, 1, blocks)?;
            cx.push(dequantize, &[q, scales, zeros])?
        }
        None => {
            let middle = cx.add_constant(Tensor::scalar(1u8 << (bits - 1)));
            cx.push(dequantize, &[q, scales, middle])?
        }
    };
    let mut y = cx.push(ops::MatMul { trans_a: false, trans_b: true }, &[a, b])?;
    if let Some(bias) = bias {
        y = cx.map(ScalarFn::Add, &[y, bias])?;
    }
    Ok(vec![y])
}

/// Rows of integers as u8 from their bytes, whatever shape those have.
fn integers(
    cx: &mut NodeCx<'_, '_>,
    bytes: Value,
    rows: usize,
    stored: usize,
    bits: usize,
) -> Imported<Value> {
    let ty = cx.ty(bytes);
    if ty.dtype != DType::U8 || ty.as_len().is_some_and(|len| len * 8 != rows * stored * bits) {
        invalid!("{ty} does not hold {rows} rows of {stored} integers of {bits} bits");
    }
    match bits {
        4 => cx.unpack(bytes, &[rows, stored], false),
        _ => cx.reshape(bytes, &[rows as i64, stored as i64], false),
    }
}

/// An element a block as one for each of its steps.
fn each_step(cx: &mut NodeCx<'_, '_>, value: Value, block: usize, steps: usize) -> Imported<Value> {
    let shape = cx.ty(value).as_shape();
    let Some([rows, blocks]) = shape.as_deref().and_then(|shape| <[usize; 2]>::try_from(shape).ok()) else {
        invalid!("{} has no known shape", cx.ty(value));
    };
    let wide = cx.unsqueeze(value, &[2])?;
    let wide = cx.push(ops::Broadcast::to(&[rows, blocks, block]), &[wide])?;
    let wide = cx.reshape(wide, &[rows as i64, (blocks * block) as i64], false)?;
    cx.leading(wide, 1, steps)
}
