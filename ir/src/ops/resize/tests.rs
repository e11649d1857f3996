//! Values by hand and those of the ONNX documentation.

use super::super::testing::check;
use super::*;
use crate::DType;

fn op(mode: Interpolation) -> Resize {
    Resize { mode, ..Resize::with_name("") }
}

fn run(op: &Resize, x: &[f32]) -> Vec<f64> {
    check(op.clone(), &[Tensor::new(&[x.len()], x)])[0].to_f64s()
}

#[test]
fn nearest_repeats_and_skips() {
    let twice = Resize { scales: vec![1.0, 2.0], ..op(Interpolation::Nearest) };
    let x = Tensor::new(&[2, 2], &[1u8, 2, 3, 4]);
    assert_eq!(check(twice, &[x])[0].to_ints(), [1, 1, 2, 2, 3, 3, 4, 4]);
    let sizes = |sizes: &[i64], coordinates, nearest| Resize {
        sizes: sizes.into(),
        coordinates,
        nearest,
        ..op(Interpolation::Nearest)
    };
    let x = [1.0, 2.0, 3.0, 4.0];
    let floor = sizes(&[7], Coordinates::Asymmetric, NearestMode::Floor);
    assert_eq!(run(&floor, &x), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0]);
    let ceil = sizes(&[7], Coordinates::Asymmetric, NearestMode::Ceil);
    assert_eq!(run(&ceil, &x), [1.0, 2.0, 3.0, 3.0, 4.0, 4.0, 4.0]);
    let half = sizes(&[8], Coordinates::AlignCorners, NearestMode::RoundPreferCeil);
    assert_eq!(run(&half, &x), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]);
}

/// Values from the examples of ONNX's `Resize`.
#[test]
fn linear_and_cubic_agree_with_onnx() {
    let x = Tensor::new(&[2, 2], &[1.0f32, 2.0, 3.0, 4.0]);
    let linear = Resize { scales: vec![2.0, 2.0], ..op(Interpolation::Linear) };
    let y = check(linear, &[x.clone()])[0].to_f64s();
    assert_eq!(y[..8], [1.0, 1.25, 1.75, 2.0, 1.5, 1.75, 2.25, 2.5]);
    let corners = Resize {
        scales: vec![2.0, 2.0],
        coordinates: Coordinates::AlignCorners,
        ..op(Interpolation::Linear)
    };
    let y = check(corners, &[x])[0].to_f64s();
    let close = |found: &[f64], expected: &[f64]| {
        found.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{found:?}"));
    };
    close(&y[..4], &[1.0, 1.333_333_3, 1.666_666_6, 2.0]);
    let x: Vec<f32> = (1..=16).map(|i| i as f32).collect();
    let x = Tensor::new(&[4, 4], &x);
    let cubic = Resize { scales: vec![2.0, 2.0], ..op(Interpolation::Cubic) };
    let y = check(cubic.clone(), &[x.clone()])[0].to_f64s();
    close(&y[..4], &[0.472_656_25, 0.769_531_25, 1.246_093_8, 1.875]);
    let excluded = Resize { exclude_outside: true, cubic_coeff_a: -0.5, ..cubic };
    let y = check(excluded, &[x.clone()])[0].to_f64s();
    close(&y[..4], &[0.558_823_5, 0.814_942, 1.356_982_5, 1.897_058_8]);
    let smaller = Resize { scales: vec![0.6, 0.6], antialias: true, ..op(Interpolation::Linear) };
    let y = check(smaller, &[x])[0].to_f64s();
    close(&y, &[2.875, 4.5, 9.375, 11.0]);
}

#[test]
fn crops_and_policies() {
    let crop = Resize {
        sizes: vec![3].into(),
        roi: vec![0.4, 1.2],
        coordinates: Coordinates::TfCropAndResize,
        extrapolation_value: 10.0,
        ..op(Interpolation::Linear)
    };
    let y = run(&crop, &[1.0, 2.0, 3.0, 4.0]);
    assert!((y[0] - 2.2).abs() < 1e-5 && y[2] == 10.0, "{y:?}");
    let policy = |aspect| Resize { sizes: vec![7, 8].into(), aspect, ..op(Interpolation::Nearest) };
    let x = TensorType::fixed(DType::F32, &[2, 4]);
    let dims = |aspect| policy(aspect).infer(&[&x]).unwrap()[0].to_string();
    assert_eq!(dims(AspectPolicy::Stretch), "f32[7, 8]");
    assert_eq!(dims(AspectPolicy::NotLarger), "f32[4, 8]");
    assert_eq!(dims(AspectPolicy::NotSmaller), "f32[7, 14]");
    let named = TensorType::new(DType::F32, [Dim::named("n"), Dim::Fixed(4)]);
    assert_eq!(policy(AspectPolicy::NotLarger).infer(&[&named]).unwrap()[0].to_string(), "f32[?, ?]");
    assert_eq!(policy(AspectPolicy::Stretch).infer(&[&named]).unwrap()[0].to_string(), "f32[7, 8]");
    let empty = TensorType::fixed(DType::F32, &[0, 4]);
    assert_eq!(policy(AspectPolicy::Stretch).infer(&[&empty]).unwrap_err().constraint, "C4");
}
