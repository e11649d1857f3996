//! Sweeps of every expansion against the definition.

use super::*;
use crate::dtype::Element;
use crate::loops::interpret::{Region, run_kernel};
use crate::loops::{KernelBuilder, LoopKind, Role};
use crate::scalar::{self, Operand};
use crate::tensor::Tensor;
use crate::with_element;

/// Every how manieth bit pattern of f32 is tried.
const STRIDE: usize = 39_989;

/// The function of columns of operands, by the interpreter of the expanded kernel.
fn run(f: ScalarFn, columns: &[Tensor]) -> Tensor {
    let len = columns[0].len();
    let mut b = KernelBuilder::new("f");
    let types: Vec<DType> = columns.iter().map(Tensor::dtype).collect();
    let buffers: Vec<_> =
        types.iter().enumerate().map(|(i, &t)| b.buffer(&format!("x{i}"), t, len, Role::In)).collect();
    let to = f.result_type(&types).unwrap();
    let out = b.buffer("y", to, len, Role::Out);
    b.repeat(LoopKind::Vector, len, |b, i| {
        let args: Vec<Val> = buffers.iter().map(|&x| b.load(x, i.clone())).collect();
        let y = b.apply(f, &args);
        b.store(out, i, y);
    });
    let kernel = expand_kernel(&b.finish(), Native::default());
    check_expanded(&kernel, Native::default()).unwrap();
    let mut y = Tensor::zeros(to, &[len]);
    let mut args: Vec<Region<'_>> = columns.iter().map(|t| Region::Read(t.bytes())).collect();
    args.push(Region::Write(y.bytes_mut()));
    run_kernel(&kernel, &mut args).unwrap();
    y
}

fn wide(tensor: &Tensor) -> Vec<Operand> {
    match tensor.dtype().is_float() {
        true => tensor.to_f64s().into_iter().map(Operand::Float).collect(),
        false => tensor.to_i128s().into_iter().map(Operand::Int).collect(),
    }
}

/// The definition, not yet rounded.
fn defined(f: ScalarFn, columns: &[Tensor]) -> Vec<Operand> {
    let wide: Vec<Vec<Operand>> = columns.iter().map(wide).collect();
    let dtype = columns[columns.len() - 1].dtype();
    (0..columns[0].len())
        .map(|i| scalar::eval(f, dtype, &wide.iter().map(|c| c[i]).collect::<Vec<_>>()))
        .collect()
}

/// The distance in units in the last place of `dtype` at the expected value.
fn ulps(dtype: DType, found: f64, expected: f64) -> f64 {
    let (digits, lowest, largest) = match dtype {
        DType::F16 => (11, -24, 65504.0),
        DType::BF16 => (8, -133, f64::from(crate::bf16::MAX)),
        DType::F32 => (24, -149, f64::from(f32::MAX)),
        _ => (53, -1074, f64::MAX),
    };
    if found == expected || (found.is_nan() && expected.is_nan()) {
        return 0.0;
    }
    // Infinity counts as the number after the largest.
    let unit = |x: f64| {
        let exponent = if x == 0.0 { -2000 } else { libm::ilogb(x) };
        libm::ldexp(1.0, (exponent - digits + 1).max(lowest))
    };
    let finite = |x: f64| match x.is_infinite() {
        true => x.signum() * largest,
        false => x.clamp(-largest, largest),
    };
    let extra = f64::from(u8::from(found.is_infinite() && expected.abs() < largest));
    (finite(found) - finite(expected)).abs() / unit(finite(expected)) + extra
}

/// Fails where a result is further from the definition than `bound`; gives the largest distance.
fn check(f: ScalarFn, columns: &[Tensor], bound: f64) -> f64 {
    let found = run(f, columns);
    let (dtype, found) = (found.dtype(), found.to_f64s());
    let mut worst = 0.0f64;
    for (i, expected) in defined(f, columns).into_iter().enumerate() {
        let Operand::Float(expected) = expected else { panic!("{f} gives floats") };
        let distance = ulps(dtype, found[i], expected);
        let at = || columns.iter().map(|c| format!("{:?} ", c.to_f64s()[i])).collect::<String>();
        assert!(distance <= bound, "{f} {dtype} at {}: {:?}, not {expected:?}", at(), found[i]);
        let zeros = found[i] == 0.0 && expected == 0.0;
        assert!(
            !zeros || found[i].is_sign_negative() == expected.is_sign_negative(),
            "{f} at {}: sign",
            at()
        );
        worst = worst.max(distance);
    }
    worst
}

/// Special values and numbers around thresholds.
const SPECIAL: &[f64] = &[
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    2.0,
    -2.0,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
    1e-45,
    -1e-45,
    5e-324,
    1.1754943508222875e-38,
    1.1754942106924411e-38,
    2.2250738585072014e-308,
    2.225073858507201e-308,
    3.4028234663852886e38,
    f64::MAX,
    f64::MIN,
    88.7228,
    88.73,
    -87.33,
    -103.97,
    -104.5,
    709.78,
    709.79,
    710.4,
    -708.4,
    -745.1,
    -745.2,
    0.34657,
    0.34658,
    1.5707963267948966,
    3.141592653589793,
    6.283185307179586,
    0.7071067811865476,
    1.4142135623730951,
    0.9999999403953552,
    1.0000001192092896,
    3.95,
    6.0,
    10.0,
    20.0,
    0.41421356,
    2.41421356,
    1e22,
    7.0,
    3.0,
    -3.0,
];

fn f32_sweep() -> Tensor {
    let mut values: Vec<f32> = (0..=u32::MAX).step_by(STRIDE).map(f32::from_bits).collect();
    values.extend((-20_000..20_000).map(|i| i as f32 / 4001.0));
    values.extend(SPECIAL.iter().map(|&x| x as f32));
    Tensor::new(&[values.len()], &values)
}

fn f64_sweep() -> Tensor {
    let count = (1u64 << 32) / STRIDE as u64;
    let mut values: Vec<f64> =
        (0..count).map(|i| f64::from_bits(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    values.extend((-20_000..20_000).map(|i| f64::from(i) / 4001.3));
    values.extend((-20_000..20_000).map(|i| f64::from(i) / 40.013));
    values.extend((-20_000..20_000).map(|i| 1.0 + f64::from(i) / 4_000_013.0));
    values.extend(SPECIAL);
    Tensor::new(&[values.len()], &values)
}

const FUNCTIONS: &[(ScalarFn, f64, f64)] = &[
    (ScalarFn::Exp, 3.0, 2.0),
    (ScalarFn::Expm1, 2.0, 3.0),
    (ScalarFn::Log, 2.0, 2.0),
    (ScalarFn::Log1p, 2.0, 3.0),
    (ScalarFn::Sinh, 1.0, 4.0),
    (ScalarFn::Cosh, 1.0, 4.0),
    (ScalarFn::Tanh, 3.0, 4.0),
    (ScalarFn::Asinh, 1.0, 4.0),
    (ScalarFn::Acosh, 1.0, 4.0),
    (ScalarFn::Atanh, 1.0, 4.0),
    (ScalarFn::Asin, 1.0, 3.0),
    (ScalarFn::Acos, 1.0, 3.0),
    (ScalarFn::Atan, 1.0, 3.0),
    (ScalarFn::Erf, 4.0, 3.0),
    (ScalarFn::Sigmoid, 4.0, 4.0),
];

#[test]
fn f32_functions_stay_within_their_bounds() {
    let x = f32_sweep();
    for &(f, bound, _) in FUNCTIONS {
        let worst = check(f, &[x.clone()], bound);
        println!("{f} f32: {worst:.2} ULP");
    }
    for f in [ScalarFn::Sin, ScalarFn::Cos, ScalarFn::Tan] {
        let worst = check(f, &[x.clone()], 1.0);
        println!("{f} f32: {worst:.2} ULP");
    }
}

#[test]
fn f64_functions_stay_within_their_bounds() {
    let x = f64_sweep();
    for &(f, _, bound) in FUNCTIONS {
        let worst = check(f, &[x.clone()], bound);
        println!("{f} f64: {worst:.2} ULP");
    }
    let moderate: Vec<f64> =
        x.to_f64s().into_iter().filter(|x| !x.is_finite() || x.abs() <= 35_184_372_088_832.0).collect();
    let x = Tensor::new(&[moderate.len()], &moderate);
    for f in [ScalarFn::Sin, ScalarFn::Cos, ScalarFn::Tan] {
        let worst = check(f, &[x.clone()], 4.0);
        println!("{f} f64: {worst:.2} ULP");
    }
}

/// All pairs of specials, and pseudo-random ones of moderate size.
fn pairs(dtype: DType) -> [Tensor; 2] {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for &x in SPECIAL {
        for &y in SPECIAL {
            a.push(x);
            b.push(y);
        }
    }
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    for i in 0..60_000 {
        let scale = if i % 2 == 0 { 3.0 } else { 60.0 };
        a.push((next() * scale).exp2() * if i % 3 == 0 { -1.0 } else { 1.0 });
        let y = (next() - 0.5) * 40.0;
        b.push(if i % 3 == 0 { y.round() } else { y });
    }
    [a, b].map(|v| Tensor::from_f64s(dtype, &[v.len()], &v))
}

#[test]
fn powers_and_remainders() {
    for dtype in [DType::F32, DType::F64] {
        let pair = pairs(dtype);
        println!("pow {dtype}: {:.2} ULP", check(ScalarFn::Pow, &pair, 2.0));
        let [a, b] = &pair;
        // Quotients past 2^200 are only promised for f32.
        let (x, y) = (a.to_f64s(), b.to_f64s());
        let kept: Vec<usize> = (0..x.len())
            .filter(|&i| dtype == DType::F32 || (x[i] / y[i]).is_nan() || (x[i] / y[i]).abs() < 1e60)
            .collect();
        let pick = |v: &[f64]| {
            let v: Vec<f64> = kept.iter().map(|&i| v[i]).collect();
            Tensor::from_f64s(dtype, &[v.len()], &v)
        };
        let pair = [pick(&x), pick(&y)];
        check(ScalarFn::Rem, &pair, 0.0);
        check(ScalarFn::Mod, &pair, 0.5);
    }
}

/// Every value of 8 and 16 bit types, and patterns of the others.
fn every(dtype: DType) -> Tensor {
    let values: Vec<u64> = match dtype.size() {
        1 if dtype == DType::Bool => vec![0, 1],
        1 => (0..256).collect(),
        2 => (0..65536).collect(),
        _ => {
            let mut values: Vec<u64> =
                (0..64).flat_map(|i| [1u64 << i, (1 << i) - 1, !(1u64 << i)]).collect();
            values.extend((0..40_000u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            values.extend((0..40_000u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (i % 64)));
            values.extend((0..2_000u64).map(|i| i.wrapping_sub(1000)));
            let halves = (0..=u16::MAX).map(|b| crate::f16::from_bits(b).to_f64());
            match dtype {
                DType::F32 => {
                    values.extend(SPECIAL.iter().map(|&x| u64::from((x as f32).to_bits())));
                    values.extend((0..65_536u64).map(|i| i << 16 | 0x8000));
                    values.extend((0..65_536u64).map(|i| i << 16 | 0x7fff));
                    let ties = halves.map(|x| (x as f32 * (1.0 + 2f32.powi(-11))).to_bits());
                    values.extend(ties.map(u64::from));
                }
                DType::F64 => {
                    values.extend(SPECIAL.iter().map(|x| x.to_bits()));
                    for x in halves {
                        let tie = x * (1.0 + 2f64.powi(-11));
                        values.extend([tie.to_bits(), tie.to_bits() + 1, tie.to_bits().wrapping_sub(1)]);
                    }
                }
                _ => {}
            }
            values
        }
    };
    let mut tensor = Tensor::zeros(dtype, &[values.len()]);
    let size = dtype.size();
    for (chunk, bits) in tensor.bytes_mut().chunks_mut(size).zip(values) {
        chunk.copy_from_slice(&bits.to_le_bytes()[..size]);
    }
    tensor
}

/// Equal bits, or both NaN.
fn check_exactly(f: ScalarFn, columns: &[Tensor]) {
    let found = run(f, columns);
    let expected = defined(f, columns);
    let types: Vec<DType> = columns.iter().map(Tensor::dtype).collect();
    with_element!(found.dtype(), T => {
        for (i, (&found, expected)) in found.as_slice::<T>().iter().zip(expected).enumerate() {
            let expected = match expected {
                Operand::Float(x) => <T as Element>::from_f64(x),
                Operand::Int(x) => T::from_i128(x),
            };
            let nan = Element::to_f64(found).is_nan() && Element::to_f64(expected).is_nan();
            let at = || columns.iter().map(|c| format!("{:?} ", c.to_f64s()[i])).collect::<String>();
            let same = bytemuck::bytes_of(&found) == bytemuck::bytes_of(&expected);
            assert!(nan || same, "{f} {types:?} at {}: {found:?}, not {expected:?}", at());
        }
    });
}

#[test]
fn casts_are_exact() {
    for from in DType::ALL {
        let x = every(from);
        for to in DType::ALL {
            check_exactly(ScalarFn::Cast(to), &[x.clone()]);
        }
    }
}

#[test]
fn exact_functions_of_every_type() {
    let skipped = |f: ScalarFn, dtype: DType| {
        FUNCTIONS.iter().any(|(g, _, _)| *g == f)
            || matches!(f, ScalarFn::Sin | ScalarFn::Cos | ScalarFn::Tan)
            || (f == ScalarFn::Pow && dtype.is_float())
            // Tested above, within the range promised.
            || (matches!(f, ScalarFn::Rem | ScalarFn::Mod) && dtype == DType::F64)
            // Rounded from f32.
            || (f == ScalarFn::Fma && is_half(dtype))
    };
    for &f in ScalarFn::PLAIN {
        for dtype in DType::ALL {
            let mut types = vec![dtype; f.arity()];
            if f == ScalarFn::Select {
                types[0] = DType::Bool;
            }
            if f.result_type(&types).is_err() || skipped(f, dtype) {
                continue;
            }
            let len = 30_000;
            let columns: Vec<Tensor> = types
                .iter()
                .enumerate()
                .map(|(k, &t)| {
                    // Each column in its own order.
                    let all = every(t);
                    let size = t.size();
                    let mut column = Tensor::zeros(t, &[len]);
                    let step = [1, 7919, 104_729][k];
                    for (i, to) in column.bytes_mut().chunks_mut(size).enumerate() {
                        let at = (i * step + k) % all.len() * size;
                        to.copy_from_slice(&all.bytes()[at..at + size]);
                    }
                    column
                })
                .collect();
            check_exactly(f, &columns);
        }
    }
}

#[test]
fn half_functions_are_within_a_unit_of_f32() {
    for dtype in [DType::F16, DType::BF16] {
        let x = every(dtype);
        for &(f, _, _) in FUNCTIONS {
            check(f, &[x.clone()], 0.51);
        }
    }
}
