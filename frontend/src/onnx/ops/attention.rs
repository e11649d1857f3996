//! Attention and rotary embedding.

use windlass_ir::ops::{PadMode, Scores};
use windlass_ir::{DType, Late, ScalarFn, Value, ops};

use crate::onnx::node::{Imported, NodeCx, late};
use crate::onnx::problem::{invalid, unsupported};
use crate::onnx::registry::{Entry, entry};

pub(super) const ENTRIES: &[Entry] =
    &[entry("Attention", attention), entry("RotaryEmbedding", rotary_embedding)];

/// `[B, S, H * D]` as `[B, H, S, D]`.
fn split_heads(cx: &mut NodeCx<'_, '_>, x: Value, heads: i64) -> Imported<Value> {
    let split = cx.reshape(x, &[0, 0, heads, -1], true)?;
    cx.push(ops::Transpose::by(&[0, 2, 1, 3]), &[split])
}

/// `[B, H, S, D]` as `[B, S, H * D]`.
fn merge_heads(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let rows = cx.push(ops::Transpose::by(&[0, 2, 1, 3]), &[x])?;
    cx.reshape(rows, &[0, 0, -1], true)
}

/// One size of a value, as a list of one.
fn size_at(cx: &mut NodeCx<'_, '_>, x: Value, axis: i64) -> Imported<Value> {
    let sizes = cx.shape_of(x)?;
    cx.push(ops::Slice::along(0, axis, axis + 1), &[sizes])
}

fn heads_attribute(cx: &mut NodeCx<'_, '_>, name: &str) -> Imported<i64> {
    match cx.int(name)? {
        Some(heads) if heads > 0 => Ok(heads),
        _ => invalid!("attribute `{name}` is missing or not positive"),
    }
}

/// Operands: q, k, v, mask, past key, past value, number of keys that are not padding.
fn attention(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (mut q, mut k, mut v) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let flat = cx.rank(q) == 3;
    if flat {
        let (heads, groups) = (heads_attribute(cx, "q_num_heads")?, heads_attribute(cx, "kv_num_heads")?);
        q = split_heads(cx, q, heads)?;
        k = split_heads(cx, k, groups)?;
        v = split_heads(cx, v, groups)?;
    } else {
        for name in ["q_num_heads", "kv_num_heads"] {
            cx.ignore(name);
        }
    }
    let mut op = ops::Attention {
        scale: cx.float_or("scale", 0.0)?,
        softcap: cx.float_or("softcap", 0.0)?,
        is_causal: cx.bool_or("is_causal", false)?,
        left: cx.int_or("left_window_size", -1)?,
        right: cx.int_or("right_window_size", -1)?,
        ..ops::Attention::plain()
    };
    if cx.has("scale") && op.scale == 0.0 {
        unsupported!("attribute `scale` is 0");
    }
    let dtype = cx.dtype_of(q);
    if let Some(precision) = cx.dtype("softmax_precision")?
        && precision == DType::F64
        && dtype != DType::F64
    {
        unsupported!("attribute `softmax_precision` is f64 for {dtype}");
    }
    let (past_key, past_value) = (cx.optional(4), cx.optional(5));
    if let (Some(past_key), Some(past_value)) = (past_key, past_value) {
        k = cx.push(ops::Concat { axis: 2 }, &[past_key, k])?;
        v = cx.push(ops::Concat { axis: 2 }, &[past_value, v])?;
    }
    let mut mask = match cx.optional(3) {
        Some(mask) => Some(full_mask(cx, mask, k, dtype)?),
        None => None,
    };
    let mut offset = match past_key {
        Some(past_key) => Some(size_at(cx, past_key, 2)?),
        None => None,
    };
    if let Some(lengths) = cx.optional(6) {
        // Bounds that differ from batch to batch are a mask.
        mask = Some(length_mask(cx, &op, mask, q, k, lengths)?);
        (op.is_causal, op.left, op.right, offset) = (false, -1, -1, None);
    }
    let mode = cx.int_or("qk_matmul_output_mode", 0)?;
    let wants_scores = cx.wants_output(3);
    if wants_scores {
        op.scores = match mode {
            0 => Scores::Product,
            1 => Scores::Capped,
            2 => Scores::Masked,
            3 => Scores::Softmax,
            other => invalid!("attribute `qk_matmul_output_mode` is {other}"),
        };
    }
    let mut ins = vec![q, k, v];
    ins.extend(mask);
    if let Some(offset) = offset.filter(|_| op.is_causal || op.left >= 0 || op.right >= 0) {
        op.offset = late(&mut ins, offset);
    }
    let results = cx.push_all(op, &ins)?;
    let y = if flat { merge_heads(cx, results[0])? } else { results[0] };
    let mut outs = vec![y, k, v];
    outs.extend(results.get(1));
    Ok(outs)
}

/// A mask as long as the keys: what it does not cover is left out.
fn full_mask(cx: &mut NodeCx<'_, '_>, mask: Value, k: Value, dtype: DType) -> Imported<Value> {
    let mask = if cx.dtype_of(mask) == DType::Bool { mask } else { cx.cast(mask, dtype)? };
    let rank = cx.rank(mask);
    let Some(last) = rank.checked_sub(1) else { invalid!("the mask is {}", cx.ty(mask)) };
    let (covered, keys) = (&cx.ty(mask).dims[last], &cx.ty(k).dims[2]);
    if covered == keys && !matches!(keys, windlass_ir::Dim::Unknown) {
        return Ok(mask);
    }
    let (covered, keys) = (size_at(cx, mask, last as i64)?, size_at(cx, k, 2)?);
    let missing = cx.map(ScalarFn::Sub, &[keys, covered])?;
    let missing = cx.map_constant(ScalarFn::Max, missing, 0.0)?;
    let none = cx.int_list(&[0]);
    let pads = cx.push(ops::Concat { axis: 0 }, &[none, missing])?;
    let fill = if cx.dtype_of(mask) == DType::Bool { 0.0 } else { f64::NEG_INFINITY };
    let fill = cx.scalar_like(mask, fill);
    let mut ins = vec![mask, fill];
    let pads = late(&mut ins, pads);
    cx.push(ops::Pad { pads, axes: Late::Known(vec![-1]), mode: PadMode::Constant }, &ins)
}

/// The mask for keys of which the first `lengths[batch]` count, queries being the last of them.
fn length_mask(
    cx: &mut NodeCx<'_, '_>,
    op: &ops::Attention,
    mask: Option<Value>,
    q: Value,
    k: Value,
    lengths: Value,
) -> Imported<Value> {
    let (queries, keys) = (size_at(cx, q, 2)?, size_at(cx, k, 2)?);
    let count = |cx: &mut NodeCx<'_, '_>, shape: Value| {
        cx.push(ops::Iota { shape: Late::Operand(0), axis: 0, dtype: DType::I64 }, &[shape])
    };
    let key = count(cx, keys)?;
    let lengths = cx.cast(lengths, DType::I64)?;
    let lengths = cx.reshape(lengths, &[-1, 1, 1, 1], false)?;
    let mut seen = cx.map(ScalarFn::Lt, &[key, lengths])?;
    let query = count(cx, queries)?;
    let query = cx.unsqueeze(query, &[1])?;
    let first = cx.map(ScalarFn::Sub, &[lengths, queries])?;
    let position = cx.map(ScalarFn::Add, &[query, first])?;
    let distance = cx.map(ScalarFn::Sub, &[key, position])?;
    let mut bounds = Vec::new();
    if op.is_causal {
        bounds.push((ScalarFn::Le, 0));
    }
    if op.left >= 0 {
        bounds.push((ScalarFn::Ge, -op.left));
    }
    if op.right >= 0 {
        bounds.push((ScalarFn::Le, op.right));
    }
    for (f, bound) in bounds {
        let inside = cx.map_constant(f, distance, bound as f64)?;
        seen = cx.map(ScalarFn::And, &[seen, inside])?;
    }
    match mask {
        None => Ok(seen),
        Some(mask) if cx.dtype_of(mask) == DType::Bool => cx.map(ScalarFn::And, &[seen, mask]),
        Some(mask) => {
            let lowest = cx.scalar_like(mask, f64::NEG_INFINITY);
            cx.map(ScalarFn::Select, &[seen, mask, lowest])
        }
    }
}

/// Rotates pairs of elements by angles: `(a, b)` becomes `(a cos - b sin, a sin + b cos)`.
fn rotary_embedding(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    let (mut cos, mut sin) = (cx.input(1)?, cx.input(2)?);
    let interleaved = cx.bool_or("interleaved", false)?;
    let flat = cx.rank(x) == 3;
    let heads = cx.int_or("num_heads", 0)?;
    let dtype = cx.dtype_of(x);
    let wide = cx.cast(x, dtype.accumulator())?;
    let rows = match flat {
        true if heads > 0 => split_heads(cx, wide, heads)?,
        true => invalid!("attribute `num_heads` is missing or not positive"),
        false => wide,
    };
    if cx.rank(rows) != 4 {
        invalid!("{} has neither 3 nor 4 dimensions", cx.ty(x));
    }
    let Some(size) = cx.ty(rows).dims[3].as_fixed() else {
        unsupported!("{}, of a head size that is not known", cx.ty(x));
    };
    let size = size as i64;
    let rotated = match cx.int_or("rotary_embedding_dim", 0)? {
        0 => size,
        n if (1..=size).contains(&n) => n,
        n => invalid!("attribute `rotary_embedding_dim` is {n} of {size}"),
    };
    if rotated % 2 != 0 {
        invalid!("{rotated} elements are not pairs");
    }
    for angles in [&mut cos, &mut sin] {
        *angles = cx.cast(*angles, dtype.accumulator())?;
        if let Some(positions) = cx.optional(3) {
            *angles = cx.push(ops::Gather { axis: 0 }, &[*angles, positions])?;
        }
        // [B, S, pairs]: the same for every head.
        *angles = cx.unsqueeze(*angles, &[1])?;
    }
    let part = cx.push(ops::Slice::along(3, 0, rotated), &[rows])?;
    let (a, b) = if interleaved {
        let pairs = cx.reshape(part, &[0, 0, 0, rotated / 2, 2], true)?;
        let one = |cx: &mut NodeCx<'_, '_>, i| {
            let half = cx.push(ops::Slice::along(4, i, i + 1), &[pairs])?;
            cx.squeeze(half, &[4])
        };
        (one(cx, 0)?, one(cx, 1)?)
    } else {
        let middle = rotated / 2;
        let first = cx.push(ops::Slice::along(3, 0, middle), &[part])?;
        (first, cx.push(ops::Slice::along(3, middle, rotated), &[part])?)
    };
    let (a_cos, b_sin) = (cx.map(ScalarFn::Mul, &[a, cos])?, cx.map(ScalarFn::Mul, &[b, sin])?);
    let (a_sin, b_cos) = (cx.map(ScalarFn::Mul, &[a, sin])?, cx.map(ScalarFn::Mul, &[b, cos])?);
    let real = cx.map(ScalarFn::Sub, &[a_cos, b_sin])?;
    let imaginary = cx.map(ScalarFn::Add, &[a_sin, b_cos])?;
    let mut y = if interleaved {
        let (real, imaginary) = (cx.unsqueeze(real, &[4])?, cx.unsqueeze(imaginary, &[4])?);
        let pairs = cx.push(ops::Concat { axis: 4 }, &[real, imaginary])?;
        cx.reshape(pairs, &[0, 0, 0, rotated], true)?
    } else {
        cx.push(ops::Concat { axis: 3 }, &[real, imaginary])?
    };
    if rotated < size {
        let rest = cx.push(ops::Slice::along(3, rotated, size), &[rows])?;
        y = cx.push(ops::Concat { axis: 3 }, &[y, rest])?;
    }
    if flat {
        y = merge_heads(cx, y)?;
    }
    Ok(vec![cx.cast(y, dtype)?])
}
