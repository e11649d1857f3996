//! Parameters kept in fewer bits than they are computed with.
//!
//! A step changes a parameter by less than its last bit, most of the time: rounded to the nearest number it would never
//! move. So it is rounded up or down at random, in proportion to how near either is, and moves as far as it should on
//! average (Gupta et al., "Deep Learning with Limited Numerical Precision", 2015). Gradients and what the optimizer keeps
//! have all their bits; those of a network that computes in f16 itself want a
//! [loss scale](super::LossScale).

use windlass_ir::ops::{Iota, Reshape};
use windlass_ir::{Builder, DType, Error, ScalarFn, Tensor, Value};

use super::initializers::Random;
use super::layers::scrambled;
use ScalarFn::{Add, And, Bitcast, Xor};

/// A value in a narrower type, rounded at random: by the parameter's name, the number of the step, and each element's
/// position. Numbers of f16 next to 0 are rounded to the nearest.
pub(super) fn narrowed(
    b: &mut Builder,
    x: Value,
    to: DType,
    step: Value,
    name: &str,
) -> Result<Value, Error> {
    let dropped: u32 = match (b.ty(x).dtype, to) {
        (DType::F32, DType::BF16) => 0xffff,
        (DType::F32, DType::F16) => 0x1fff,
        _ => return b.cast(x, to),
    };
    let word = |b: &mut Builder, value: u32| b.constant(Tensor::scalar(value));
    let own = word(b, Random::new(name, 0).bits() as u32);
    let step = b.cast(step, DType::U32)?;
    let key = b.map(Xor, &[step, own])?;
    let key = scrambled(b, key)?;
    let shape = b.ty(x).shape();
    let elements: usize = shape.iter().product();
    let position = Iota { shape: vec![elements as i64].into(), axis: 0, dtype: DType::U32 };
    let position = b.push1(position, &[])?;
    let position = b.push1(Reshape::to(&shape), &[position])?;
    let mixed = b.map(Xor, &[position, key])?;
    let mixed = scrambled(b, mixed)?;
    let (low, high) = (word(b, dropped), word(b, !dropped));
    let random = b.map(And, &[mixed, low])?;
    // What is added carries into the bits that stay as often as it should.
    let bits = b.map(Bitcast(DType::U32), &[x])?;
    let bits = b.map(Add, &[bits, random])?;
    let bits = b.map(And, &[bits, high])?;
    let x = b.map(Bitcast(DType::F32), &[bits])?;
    b.cast(x, to)
}

#[cfg(test)]
mod tests {
    use windlass_ir::{TensorType, interpret};

    use super::*;

    #[test]
    fn numbers_are_rounded_without_bias() {
        for (to, bits) in [(DType::BF16, 7), (DType::F16, 10)] {
            let mut b = Builder::new("rounded");
            let x = b.input("x", TensorType::fixed(DType::F32, &[20_000]));
            let step = b.input("step", TensorType::fixed(DType::F64, &[]));
            let y = narrowed(&mut b, x, to, step, "w").unwrap();
            b.output("y", y);
            let graph = b.finish().unwrap();
            // A fifth of the way from one number to the next.
            let ulp = 0.5f64.powi(bits);
            let value = (1.0 + 0.2 * ulp) as f32;
            let x = Tensor::from_fn::<f32>(&[20_000], |_| value);
            let at = |step: f64| interpret(&graph, &[x.clone(), Tensor::scalar(step)]).unwrap()[0].to_f64s();
            let found = at(3.0);
            assert!(found.iter().all(|&y| y == 1.0 || y == 1.0 + ulp));
            let up = found.iter().filter(|&&y| y > 1.0).count();
            assert!((3800..4200).contains(&up), "{up}");
            assert_ne!(found, at(4.0));
            let ends = [f32::INFINITY, -f32::INFINITY, 0.0, -1.0, f32::NAN];
            let x = Tensor::from_fn::<f32>(&[20_000], |i| ends[i % 5]);
            let found = interpret(&graph, &[x, Tensor::scalar(0f64)]).unwrap()[0].to_f64s();
            for (found, end) in found.iter().zip(ends.iter().cycle()) {
                assert!(*found == f64::from(*end) || found.is_nan() && end.is_nan(), "{found}, {end}");
            }
        }
    }
}
