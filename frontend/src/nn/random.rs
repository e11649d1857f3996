//! Random numbers as nodes of a graph: from a key and counters, so one seed gives the same bits with any number of
//! threads.

use windlass_ir::ops::{Concat, Iota, Slice, Threefry};
use windlass_ir::{Builder, DType, Error, ScalarFn, Value};

use ScalarFn::{Add, Cos, Log, Mul, Sin, Sqrt};

/// So many numbers of the standard normal distribution, for a key and a number that an integer gives (Box and Muller,
/// 1958). They lie within 6.8.
pub(super) fn normals(
    b: &mut Builder,
    count: usize,
    key: u64,
    number: Value,
    dtype: DType,
) -> Result<Value, Error> {
    let pairs = count.div_ceil(2);
    let wide = dtype.accumulator();
    let position = b.push1(Iota { shape: vec![pairs as i64].into(), axis: 0, dtype: DType::U32 }, &[])?;
    let number = b.cast(number, DType::U32)?;
    let words = b.push(Threefry { key: key as i64 }, &[position, number], None)?;
    let (first, second) = (b.cast(words[0], wide)?, b.cast(words[1], wide)?);
    let (unit, half) = (b.scalar(wide, 2f64.powi(-32)), b.scalar(wide, 2f64.powi(-33)));
    // Never 0, whose logarithm is none.
    let uniform = b.map(Mul, &[first, unit])?;
    let uniform = b.map(Add, &[uniform, half])?;
    let log = b.map(Log, &[uniform])?;
    let twice = b.scalar(wide, -2.0);
    let square = b.map(Mul, &[log, twice])?;
    // Rounding may take the largest uniform number to 1 or a little more.
    let zero = b.scalar(wide, 0.0);
    let square = b.map(ScalarFn::Max, &[square, zero])?;
    let radius = b.map(Sqrt, &[square])?;
    let turn = b.scalar(wide, std::f64::consts::TAU * 2f64.powi(-32));
    let angle = b.map(Mul, &[second, turn])?;
    let mut parts = Vec::new();
    for f in [Cos, Sin] {
        let side = b.map(f, &[angle])?;
        parts.push(b.map(Mul, &[radius, side])?);
    }
    let all = b.push1(Concat { axis: 0 }, &parts)?;
    let all = b.push1(Slice::along(0, 0, count as i64), &[all])?;
    b.cast(all, dtype)
}

#[cfg(test)]
mod tests {
    use windlass_ir::{Tensor, TensorType, interpret};

    use super::*;

    #[test]
    fn normals_have_the_moments_of_their_distribution() {
        let mut b = Builder::new("noise");
        let step = b.input("step", TensorType::fixed(DType::F64, &[]));
        let noise = normals(&mut b, 40_001, 7, step, DType::F32).unwrap();
        b.output("noise", noise);
        let graph = b.finish().unwrap();
        let at = |step: f64| interpret(&graph, &[Tensor::scalar(step)]).unwrap()[0].to_f64s();
        let values = at(3.0);
        let moment = |n: i32| values.iter().map(|x| x.powi(n)).sum::<f64>() / values.len() as f64;
        for (n, expected, within) in [(1, 0.0, 0.02), (2, 1.0, 0.03), (3, 0.0, 0.08), (4, 3.0, 0.2)] {
            assert!((moment(n) - expected).abs() < within, "moment {n} is {}", moment(n));
        }
        assert_eq!(values, at(3.0));
        assert_ne!(values, at(4.0));
    }
}
