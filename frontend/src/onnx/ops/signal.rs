//! Fourier transforms and the windows they look through.

use windlass_ir::{DType, Late, ScalarFn, Tensor, ops};

use crate::onnx::node::{Imported, NodeCx, late};
use crate::onnx::problem::{invalid, unsupported};
use crate::onnx::registry::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[
    entry("DFT", dft),
    entry("STFT", stft),
    entry("HannWindow", |cx| window(cx, [0.5, 0.5, 0.0])),
    entry("HammingWindow", |cx| window(cx, [25.0 / 46.0, 21.0 / 46.0, 0.0])),
    entry("BlackmanWindow", |cx| window(cx, [0.42, 0.5, 0.08])),
];

/// Operands: x, the length, and since version 20 the axis.
fn dft(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (inverse, onesided) = (cx.bool_or("inverse", false)?, cx.bool_or("onesided", false)?);
    let mut ins = vec![cx.input(0)?];
    let length = match cx.optional(1) {
        Some(length) => late(&mut ins, length),
        None => Late::default(),
    };
    let axis = match cx.version() {
        ..20 => vec![cx.int_or("axis", 1)?].into(),
        _ => match cx.optional(2) {
            Some(axis) => late(&mut ins, axis),
            None => vec![-2].into(),
        },
    };
    cx.push_whole(ops::Dft { axis, inverse, onesided, length }, &ins)
}

/// Operands: the signal `[B, L, 1 or 2]`, the step, the window, the length of a frame.
fn stft(cx: &mut NodeCx<'_, '_>) -> Imported {
    let onesided = cx.bool_or("onesided", true)?;
    let signal = cx.input(0)?;
    let single = |cx: &NodeCx<'_, '_>, index: usize| {
        let value = cx.optional(index)?;
        cx.constant(value).and_then(|t| t.to_ints().first().copied())
    };
    let window = cx.optional(2);
    let of_window = window.and_then(|w| cx.ty(w).dims.first()?.as_fixed()).map(|n| n as i64);
    let samples = cx.ty(signal).dims.get(1).and_then(|d| d.as_fixed());
    let (Some(step), Some(length), Some(samples)) = (single(cx, 1), single(cx, 3).or(of_window), samples)
    else {
        unsupported!("a signal, step or frame of a length that is not known");
    };
    let samples = samples as i64;
    if step < 1 || length < 1 || length > samples || cx.rank(signal) != 3 {
        invalid!("{} has no frames of {length} every {step}", cx.ty(signal));
    }
    let frames = (samples - length) / step + 1;
    let places: Vec<i64> = (0..frames).flat_map(|f| (0..length).map(move |i| f * step + i)).collect();
    let places = cx.add_constant(Tensor::new(&[frames as usize, length as usize], &places));
    let mut cut = cx.push(ops::Gather { axis: 1 }, &[signal, places])?;
    if let Some(window) = window {
        let column = cx.reshape(window, &[-1, 1], false)?;
        cut = cx.map(ScalarFn::Mul, &[cut, column])?;
    }
    cx.push_whole(
        ops::Dft { axis: vec![2].into(), inverse: false, onesided, length: Late::default() },
        &[cut],
    )
}

/// `a - b cos(2 pi n / N) + c cos(4 pi n / N)`, N being the size, or one less if the window is symmetric.
fn window(cx: &mut NodeCx<'_, '_>, [a, b, c]: [f64; 3]) -> Imported {
    let size = cx.input(0)?;
    let periodic = cx.bool_or("periodic", true)?;
    let to = cx.dtype("output_datatype")?.unwrap_or(DType::F32);
    let size = cx.cast(size, DType::I64)?;
    let (zero, one) = (cx.scalar(DType::I64, 0.0), cx.scalar(DType::I64, 1.0));
    let n = cx.push(ops::Range, &[zero, size, one])?;
    let n = cx.cast(n, DType::F64)?;
    let mut period = cx.cast(size, DType::F64)?;
    if !periodic {
        period = cx.map_constant(ScalarFn::Sub, period, 1.0)?;
    }
    let turns = cx.map(ScalarFn::Div, &[n, period])?;
    let mut result = cx.scalar(DType::F64, a);
    for (factor, turn) in [(-b, 1.0), (c, 2.0)] {
        let angle = cx.map_constant(ScalarFn::Mul, turns, turn * 2.0 * std::f64::consts::PI)?;
        let cos = cx.map(ScalarFn::Cos, &[angle])?;
        let part = cx.map_constant(ScalarFn::Mul, cos, factor)?;
        result = cx.map(ScalarFn::Add, &[part, result])?;
    }
    Ok(vec![cx.cast(result, to)?])
}
