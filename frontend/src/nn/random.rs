//! Random numbers as nodes of a graph: from a key and counters, so one seed gives the same bits with any number of
//! threads.
//!
//! Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).

use windlass_ir::ops::{Concat, Iota, Slice};
use windlass_ir::{Builder, DType, Error, ScalarFn, Tensor, Value};

use ScalarFn::{Add, Cos, Log, Mul, Or, Shl, Shr, Sin, Sqrt, Xor};

/// By how many bits each of eight rounds rotates.
const ROTATIONS: [u32; 8] = [13, 15, 26, 6, 17, 29, 16, 24];

/// What makes a third word of a key of two.
const PARITY: u32 = 0x1bd1_1bda;

fn word(b: &mut Builder, value: u32) -> Value {
    b.constant(Tensor::scalar(value))
}

fn plus(b: &mut Builder, x: Value, value: u32) -> Result<Value, Error> {
    let value = word(b, value);
    b.map(Add, &[x, value])
}

/// Two words for each pair of counters.
fn threefry(b: &mut Builder, key: u64, counters: [Value; 2]) -> Result<[Value; 2], Error> {
    let (low, high) = (key as u32, (key >> 32) as u32);
    let keys = [low, high, low ^ high ^ PARITY];
    let mut x = [plus(b, counters[0], keys[0])?, plus(b, counters[1], keys[1])?];
    for round in 0..20 {
        x[0] = b.map(Add, &[x[0], x[1]])?;
        let by = ROTATIONS[round % 8];
        let (left, right) = (word(b, by), word(b, 32 - by));
        let (left, right) = (b.map(Shl, &[x[1], left])?, b.map(Shr, &[x[1], right])?);
        let turned = b.map(Or, &[left, right])?;
        x[1] = b.map(Xor, &[turned, x[0]])?;
        if round % 4 == 3 {
            let group = round / 4 + 1;
            x[0] = plus(b, x[0], keys[group % 3])?;
            x[1] = plus(b, x[1], keys[(group + 1) % 3].wrapping_add(group as u32))?;
        }
    }
    Ok(x)
}

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
    let words = threefry(b, key, [position, number])?;
    let [first, second] = words.map(|word| b.cast(word, wide));
    let (unit, half) = (b.scalar(wide, 2f64.powi(-32)), b.scalar(wide, 2f64.powi(-33)));
    // Never 0, whose logarithm is none.
    let uniform = b.map(Mul, &[first?, unit])?;
    let uniform = b.map(Add, &[uniform, half])?;
    let log = b.map(Log, &[uniform])?;
    let twice = b.scalar(wide, -2.0);
    let square = b.map(Mul, &[log, twice])?;
    // Rounding may take the largest uniform number to 1 or a little more.
    let zero = b.scalar(wide, 0.0);
    let square = b.map(ScalarFn::Max, &[square, zero])?;
    let radius = b.map(Sqrt, &[square])?;
    let turn = b.scalar(wide, std::f64::consts::TAU * 2f64.powi(-32));
    let angle = b.map(Mul, &[second?, turn])?;
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
    use windlass_ir::{TensorType, interpret};

    use super::*;

    /// The known answers of Random123.
    #[test]
    fn words_are_those_of_threefry() {
        let cases: [(u64, [u32; 2], [u32; 2]); 3] = [
            (0, [0, 0], [0x6b20_0159, 0x99ba_4efe]),
            (u64::MAX, [u32::MAX; 2], [0x1cb9_96fc, 0xbb00_2be7]),
            (0x0370_7344_1319_8a2e, [0x243f_6a88, 0x85a3_08d3], [0xc492_3a9c, 0x483d_f7a0]),
        ];
        for (key, counters, expected) in cases {
            let mut b = Builder::new("words");
            let counters = counters.map(|value| word(&mut b, value));
            let found = threefry(&mut b, key, counters).unwrap();
            b.output("first", found[0]);
            b.output("second", found[1]);
            let found = interpret(&b.finish().unwrap(), &[]).unwrap();
            assert_eq!([found[0].to_ints()[0], found[1].to_ints()[0]], expected.map(i64::from));
        }
    }

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
