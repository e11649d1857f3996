//! Dropout: elements left out at random in training.

use windlass_ir::ops::{Iota, Reshape};
use windlass_ir::{Builder, DType, Error, ScalarFn, Tensor, Value};

use super::{Layer, name, setters};
use crate::nn::initializers::{Initializer, Random};
use crate::nn::net::Net;
use ScalarFn::{Add, Ge, Mul, Select, Shr, Xor};

/// In training each element becomes 0 with the probability `rate`, and the others are scaled to make up for them.
///
/// Whether an element stays follows from the layer's name, the seed, the number of the step and the element's position
/// alone, so one seed gives the same bits with any number of threads. The number is a variable, `count`.
#[derive(Clone, Debug)]
pub struct Dropout {
    name: Option<String>,
    rate: f64,
    seed: u64,
}

setters!(Dropout {
    /// What the choice depends on beside the layer's name.
    seed: u64,
});

impl Dropout {
    /// With this probability, at least 0 and below 1.
    pub fn new(rate: f64) -> Dropout {
        Dropout { name: None, rate: rate.clamp(0.0, 1.0), seed: 0 }
    }
}

fn word(b: &mut Builder, value: u32) -> Value {
    b.constant(Tensor::scalar(value))
}

/// A permutation of 32-bit numbers whose results look random: two multiplications between shifts (Wellons,
/// "lowbias32", 2018).
pub(in crate::nn) fn scrambled(b: &mut Builder, mut x: Value) -> Result<Value, Error> {
    for (shift, factor) in [(16, Some(0x7feb_352d)), (15, Some(0x846c_a68b)), (16, None)] {
        let by = word(b, shift);
        let high = b.map(Shr, &[x, by])?;
        x = b.map(Xor, &[x, high])?;
        if let Some(factor) = factor {
            let factor = word(b, factor);
            x = b.map(Mul, &[x, factor])?;
        }
    }
    Ok(x)
}

impl Layer for Dropout {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        let name = name(&self.name, net, "dropout");
        let count = net.variable(&name, "count", &[], &Initializer::Constant(0.0), false)?;
        if !net.is_training() || self.rate == 0.0 {
            return Ok(x);
        }
        let one = net.builder().scalar_like(count, 1.0);
        let next = net.map(Add, &[count, one])?;
        net.update(count, next);
        // A key for this layer and this step.
        let step = net.builder().cast(count, DType::U32)?;
        let own = word(net.builder(), Random::new(&name, self.seed).bits() as u32);
        let key = net.map(Xor, &[step, own])?;
        let key = scrambled(net.builder(), key)?;
        let shape = net.ty(x).shape();
        let elements: usize = shape.iter().product();
        let position = Iota { shape: vec![elements as i64].into(), axis: 0, dtype: DType::U32 };
        let position = net.push(position, &[])?;
        let position = net.push(Reshape::to(&shape), &[position])?;
        let mixed = net.map(Xor, &[position, key])?;
        let mixed = scrambled(net.builder(), mixed)?;
        let mixed = net.map(Add, &[mixed, key])?;
        let bits = scrambled(net.builder(), mixed)?;
        let bound = word(net.builder(), (self.rate * 4_294_967_296.0).min(4_294_967_295.0) as u32);
        let stays = net.map(Ge, &[bits, bound])?;
        let scale = net.builder().scalar_like(x, if self.rate < 1.0 { 1.0 / (1.0 - self.rate) } else { 0.0 });
        let scaled = net.map(Mul, &[x, scale])?;
        let zero = net.builder().scalar_like(x, 0.0);
        net.map(Select, &[stays, scaled, zero])
    }
}
