//! The parts of a Winograd convolution, together and by themselves.

use super::*;
use crate::ops::testing::{check, sample};
use crate::ops::{Conv, MatMul};

#[test]
fn the_three_parts_are_a_convolution() {
    for (x, to, pads) in [
        ([1, 8, 8, 4], 3, [1, 1, 1, 1]),
        ([2, 7, 9, 40], 5, [1, 0, 2, 1]),
        ([1, 3, 3, 1], 33, [0, 0, 0, 0]),
        ([3, 1, 2, 2], 2, [2, 1, 0, 3]),
    ] {
        let conv = Conv { pads: pads.to_vec(), channels_last: true, ..Conv::plain() };
        parts_are(&conv, &x, &[3, 3, x[3], to]);
    }
}

#[test]
fn taps_along_other_dimensions_are_as_channels() {
    let plain = Conv { channels_last: true, ..Conv::plain() };
    let padded = Conv { pads: vec![1, 1, 0, 1, 2, 1], ..plain.clone() };
    let apart = Conv { strides: vec![2, 1, 1], dilations: vec![3, 1, 1], ..padded.clone() };
    for conv in [&plain, &padded, &apart] {
        parts_are(conv, &[2, 7, 6, 9, 5], &[3, 3, 3, 5, 4]);
        parts_are(conv, &[1, 5, 3, 3, 33], &[1, 3, 3, 33, 2]);
    }
    parts_are(&plain, &[1, 3, 4, 4, 5, 3], &[2, 3, 3, 3, 3, 2]);
}

#[test]
fn convolutions_without_the_form() {
    let plain = Conv { channels_last: true, ..Conv::plain() };
    assert!(Winograd::input_of(&plain, &[2, 3, 3]).is_some());
    assert_eq!(Winograd::input_of(&plain, &[3, 3, 2]), None);
    assert_eq!(Winograd::input_of(&plain, &[3]), None);
    assert_eq!(Winograd::input_of(&Conv::plain(), &[3, 3]), None);
    assert_eq!(Winograd::input_of(&Conv { group: 2, ..plain.clone() }, &[3, 3]), None);
    assert_eq!(Winograd::input_of(&Conv { strides: vec![1, 2], ..plain.clone() }, &[3, 3]), None);
    assert_eq!(Winograd::input_of(&Conv { dilations: vec![1, 1, 2], ..plain }, &[1, 3, 3]), None);
}

/// Compares the parts with the convolution that they are.
fn parts_are(conv: &Conv, x: &[usize], w: &[usize]) {
    let x = sample(DType::F64, x, 1);
    let w = sample(DType::F64, w, 2);
    let (kernel, &[_, to]) = w.shape().split_last_chunk().unwrap();
    let bias = sample(DType::F64, &[to], 3);
    let expected = conv.eval(&[x.clone(), w.clone(), bias.clone()]).unwrap().remove(0);
    let input = Winograd::input_of(conv, kernel).unwrap();
    let u = check(Winograd::weight(), &[w]).remove(0);
    let v = check(input, &[x]).remove(0);
    let product = MatMul { trans_a: false, trans_b: false };
    let sums = product.eval(&[v, u]).unwrap().remove(0);
    let (_, out) = expected.shape().split_last().unwrap();
    let y = check(Winograd::output(out), &[sums, bias]).remove(0);
    assert_eq!(y.shape(), expected.shape());
    for (found, expected) in y.to_f64s().iter().zip(expected.to_f64s()) {
        assert!((found - expected).abs() < 1e-11 * (1.0 + expected.abs()), "{found}, {expected}");
    }
}

#[test]
fn integers_are_exact_although_sums_overflow() {
    for (x, kernel, to, pads) in [
        (&[1, 8, 8, 4][..], &[3, 3][..], 3, &[1, 1, 1, 1][..]),
        (&[2, 7, 9, 40], &[3, 3], 5, &[1, 0, 2, 1]),
        (&[1, 3, 3, 1], &[3, 3], 33, &[0, 0, 0, 0]),
        (&[1, 4, 5, 6, 2], &[2, 3, 3], 40, &[0, 1, 1, 1, 1, 1]),
    ] {
        let byte = |i: usize, seed: usize| (i * 7919 + seed).pow(2) / 31 % 256;
        let weights = [kernel, &[x[x.len() - 1], to]].concat();
        let x = Tensor::from_fn::<i16>(x, |i| if i % 3 == 0 { 255 } else { byte(i, 5) as i16 });
        let w = Tensor::from_fn::<i16>(&weights, |i| byte(i, 8) as i16 - 128);
        let conv = Conv { pads: pads.to_vec(), channels_last: true, ..Conv::plain() };
        let input = Winograd::input_of(&conv, kernel).unwrap();
        let u = check(Winograd::weight(), std::slice::from_ref(&w)).remove(0);
        let v = check(input, std::slice::from_ref(&x)).remove(0);
        let [x, w, u, v] = [x, w, u, v].map(|t| Tensor::from_i128s(DType::I32, t.shape(), &t.to_i128s()));
        let expected = conv.eval(&[x, w]).unwrap().remove(0);
        let product = MatMul { trans_a: false, trans_b: false };
        let sums = product.eval(&[v, u]).unwrap().remove(0);
        let (_, out) = expected.shape().split_last().unwrap();
        let y = check(Winograd::output(out), &[sums]).remove(0);
        assert_eq!(y.to_ints(), expected.to_ints());
    }
}

#[test]
fn results_of_integers_up_to_a_bound() {
    for (dtype, bits) in [(DType::I32, 26), (DType::I16, 10)] {
        let past: i128 = 1 << (bits - 1);
        for y in [past - 1, past, -past, -past - 1, 0, 9, -7] {
            let right = divided(dtype, (576 * y) as f64) == y as f64;
            assert_eq!(right, Winograd::holds(dtype, y, y), "{y} as {dtype}");
        }
    }
}

#[test]
fn constraints_are_named() {
    let f32 = |shape: &[usize]| TensorType::fixed(DType::F32, shape);
    let violated =
        |op: Winograd, ins: &[TensorType]| op.infer(&ins.iter().collect::<Vec<_>>()).unwrap_err().constraint;
    let strided = Winograd { kernel: vec![2], strides: vec![1, 2], ..Winograd::input(&[]) };
    let no_taps = Winograd { kernel: vec![0], ..Winograd::input(&[]) };
    assert_eq!(violated(Winograd::input(&[1, 1]), &[f32(&[1, 4, 4, 4])]), "C1");
    assert_eq!(violated(strided, &[f32(&[1, 4, 4, 4, 2])]), "C1");
    assert_eq!(violated(Winograd::input(&[]), &[f32(&[1, 2, 4, 4])]), "C2");
    assert_eq!(violated(no_taps, &[f32(&[1, 4, 4, 4, 2])]), "C2");
    assert_eq!(violated(Winograd::weight(), &[f32(&[3, 2, 4, 4])]), "C3");
    assert_eq!(violated(Winograd::input(&[]), &[f32(&[1, 4, 4, 4, 2])]), "C3");
    assert_eq!(violated(Winograd::output(&[1, 4, 5]), &[f32(&[36, 1, 4])]), "C4");
    assert_eq!(violated(Winograd::output(&[4, 5]), &[f32(&[36, 2, 4])]), "C4");
    assert_eq!(violated(Winograd::output(&[1, 4, 5]), &[f32(&[36, 2, 4]), f32(&[5])]), "C5");
    let empty = Winograd::input(&[]).infer(&[&f32(&[0, 4, 4, 4])]).unwrap();
    assert_eq!(empty[0].to_string(), "f32[36, 0, 4]");
}
