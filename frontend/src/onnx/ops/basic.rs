//! Constants, identities, casts, shapes.

use windlass_ir::{DType, Late, ScalarFn, Tensor, ops};

use crate::onnx::node::{Imported, NodeCx, late};
use crate::onnx::problem::{invalid, unsupported};
use crate::onnx::registry::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[
    entry("Constant", constant),
    entry("Identity", identity),
    entry("Dropout", dropout),
    entry("Cast", cast),
    entry("CastLike", cast_like),
    entry("BitCast", bitcast),
    entry("Reshape", reshape),
    entry("Shape", shape),
    entry("Size", size),
];

fn constant(cx: &mut NodeCx<'_, '_>) -> Imported {
    let names = cx.attribute_names();
    let [name] = names.as_slice() else {
        invalid!("a constant has one attribute, found {}", names.join(", "));
    };
    let tensor = match name.as_str() {
        "value" => cx.tensor(name)?,
        "sparse_value" => cx.sparse_tensor(name)?,
        "value_int" => cx.int(name)?.map(Tensor::scalar),
        "value_ints" => cx.ints(name)?.map(|ints| Tensor::from_ints(&ints)),
        "value_float" => cx.float(name)?.map(|x| Tensor::scalar(x as f32)),
        "value_floats" => cx.floats(name)?.map(|xs| {
            let floats: Vec<f32> = xs.iter().map(|&x| x as f32).collect();
            Tensor::new(&[floats.len()], &floats)
        }),
        _ => unsupported!("attribute `{name}`"),
    };
    let Some(tensor) = tensor else { invalid!("attribute `{name}` holds no value") };
    cx.push_whole(ops::Constant { value: tensor }, &[])
}

fn identity(cx: &mut NodeCx<'_, '_>) -> Imported {
    Ok(vec![cx.input(0)?])
}

/// At inference dropout is the identity; its mask is all true.
fn dropout(cx: &mut NodeCx<'_, '_>) -> Imported {
    for name in ["seed", "ratio"] {
        cx.ignore(name);
    }
    let x = cx.input(0)?;
    if cx.version() < 7 && cx.int_or("is_test", 0)? == 0 {
        unsupported!("dropout in training mode");
    }
    if let Some(training) = cx.optional(2) {
        // A ratio of 0 drops nothing even in training.
        let keeps = |t: Option<&Tensor>| t.is_some_and(|t| t.as_uniform_f64() == Some(0.0));
        let ratio = cx.optional(1);
        if !keeps(cx.constant(training)) && !ratio.is_some_and(|ratio| keeps(cx.constant(ratio))) {
            unsupported!("dropout in training mode");
        }
    }
    // Before operator set 10 the mask is not a bool, and nothing reads it.
    if !cx.wants_output(1) || cx.version() < 10 {
        return Ok(vec![x]);
    }
    let sizes = cx.shape_of(x)?;
    let yes = cx.add_constant(Tensor::new(&[], &[windlass_ir::Bool8(1)]));
    let mut ins = vec![yes];
    let shape = late(&mut ins, sizes);
    let mask = cx.push(ops::Broadcast { shape }, &ins)?;
    Ok(vec![x, mask])
}

fn cast(cx: &mut NodeCx<'_, '_>) -> Imported {
    // Only conversions to 8-bit floats saturate, and those types are not supported.
    cx.ignore("saturate");
    cx.ignore("round_mode");
    let to = if cx.version() < 6 { named_dtype(cx)? } else { cx.dtype("to")? };
    let Some(to) = to else { invalid!("attribute `to` is missing") };
    let x = cx.input(0)?;
    Ok(vec![cx.cast(x, to)?])
}

fn named_dtype(cx: &mut NodeCx<'_, '_>) -> Imported<Option<DType>> {
    use crate::onnx::proto::tensor_proto::DataType;
    match cx.string("to")?.map(|name| DataType::from_str_name(&name)) {
        None => Ok(None),
        Some(Some(known)) => Ok(Some(crate::onnx::tensor::dtype(known as i32)?)),
        Some(None) => invalid!("attribute `to` is no element type"),
    }
}

fn cast_like(cx: &mut NodeCx<'_, '_>) -> Imported {
    cx.ignore("saturate");
    cx.ignore("round_mode");
    let (x, like) = (cx.input(0)?, cx.input(1)?);
    let to = cx.dtype_of(like);
    Ok(vec![cx.cast(x, to)?])
}

fn bitcast(cx: &mut NodeCx<'_, '_>) -> Imported {
    let Some(to) = cx.dtype("to")? else { invalid!("attribute `to` is missing") };
    let x = cx.input(0)?;
    let from = cx.dtype_of(x);
    if from == to {
        return Ok(vec![x]);
    }
    // A bool is stored as a byte of 0 or 1, which is also its value.
    let x = if from == DType::Bool { cx.cast(x, DType::U8)? } else { x };
    if to == DType::Bool {
        return Ok(vec![cx.cast(x, to)?]);
    }
    match cx.dtype_of(x) == to {
        true => Ok(vec![x]),
        false => Ok(vec![cx.map(ScalarFn::Bitcast(to), &[x])?]),
    }
}

fn reshape(cx: &mut NodeCx<'_, '_>) -> Imported {
    let copy_zero = !cx.bool_or("allowzero", false)?;
    let mut ins = vec![cx.input(0)?];
    let shape = if cx.version() < 5 {
        cx.ignore("consumed_inputs");
        Late::Known(cx.ints("shape")?.unwrap_or_default())
    } else {
        let shape = cx.input(1)?;
        late(&mut ins, shape)
    };
    cx.push_whole(ops::Reshape { shape, copy_zero }, &ins)
}

fn shape(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    let rank = cx.rank(x) as i64;
    let clamp = |at: i64| if at < 0 { at.saturating_add(rank) } else { at }.clamp(0, rank);
    let (start, end) = (clamp(cx.int_or("start", 0)?), clamp(cx.int_or("end", rank)?));
    let sizes = cx.shape_of(x)?;
    if (start, end) == (0, rank) {
        return Ok(vec![sizes]);
    }
    let end = end.max(start);
    cx.push_whole(ops::Slice::along(0, start, end), &[sizes])
}

fn size(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    let sizes = cx.shape_of(x)?;
    cx.push_whole(ops::Reduce::over(ops::ReduceKind::Prod, &[0], false), &[sizes])
}
