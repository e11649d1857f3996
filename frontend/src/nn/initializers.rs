//! What variables hold before training.

use windlass_ir::{DType, Tensor};

/// How a variable is filled. Random ones depend on the seed and the variable's name alone, so that adding a layer
/// changes no other.
#[derive(Clone, Debug, PartialEq)]
pub enum Initializer {
    /// One number everywhere.
    Constant(f64),
    /// Given elements, in row-major order.
    Given(Vec<f64>),
    /// A given tensor, of the variable's type.
    Tensor(Tensor),
    /// Evenly between -limit and limit.
    Uniform(f64),
    /// Normally distributed about 0.
    Normal(f64),
    /// Evenly within `sqrt(6 / (fan_in + fan_out))` (Glorot and Bengio, 2010).
    GlorotUniform,
    /// Evenly within `sqrt(6 / fan_in)` (He et al., 2015).
    HeUniform,
    /// Normally with the deviation `sqrt(2 / fan_in)`.
    HeNormal,
    /// Columns (or rows) that are orthogonal to each other and of length 1.
    Orthogonal,
    /// 0, but 1 in the second of four equal parts: the forget gates of an LSTM.
    UnitForget,
}

/// The numbers of inputs and outputs that meet in a weight whose last dimensions are inputs and outputs.
fn fans(shape: &[usize]) -> (f64, f64) {
    match shape {
        [] => (1.0, 1.0),
        [n] => (*n as f64, *n as f64),
        [taps @ .., ins, outs] => {
            let taps: usize = taps.iter().product();
            ((taps * ins) as f64, (taps * outs) as f64)
        }
    }
}

/// Random numbers that follow from a name and a seed, the same in every version: SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a name and a seed.
    pub fn new(name: &str, seed: u64) -> Random {
        // FNV-1a over the name.
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Random(hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between 0 and 1, never 0.
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Of the standard normal distribution (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let (radius, angle) = ((-2.0 * self.unit().ln()).sqrt(), std::f64::consts::TAU * self.unit());
        radius * angle.cos()
    }
}

impl Initializer {
    /// A tensor so filled.
    pub fn sample(&self, dtype: DType, shape: &[usize], name: &str, seed: u64) -> Tensor {
        let len: usize = shape.iter().product();
        if let Initializer::Tensor(tensor) = self
            && tensor.dtype() == dtype
            && *tensor.shape() == *shape
        {
            return tensor.clone();
        }
        let mut random = Random::new(name, seed);
        let (fan_in, fan_out) = fans(shape);
        let mut uniform = |limit: f64| (0..len).map(|_| (2.0 * random.unit() - 1.0) * limit).collect();
        let values: Vec<f64> = match self {
            Initializer::Constant(value) => vec![*value; len],
            Initializer::Given(values) => filled(values, len),
            Initializer::Tensor(tensor) => filled(&tensor.to_f64s(), len),
            Initializer::Uniform(limit) => uniform(*limit),
            Initializer::GlorotUniform => uniform((6.0 / (fan_in + fan_out)).sqrt()),
            Initializer::HeUniform => uniform((6.0 / fan_in).sqrt()),
            Initializer::Normal(deviation) => (0..len).map(|_| random.normal() * deviation).collect(),
            Initializer::HeNormal => (0..len).map(|_| random.normal() * (2.0 / fan_in).sqrt()).collect(),
            Initializer::Orthogonal => {
                let columns = shape.last().copied().unwrap_or(1);
                orthogonal(len / columns.max(1), columns, &mut random)
            }
            Initializer::UnitForget => {
                (0..len).map(|i| f64::from(u8::from((len / 4..len / 2).contains(&i)))).collect()
            }
        };
        Tensor::from_f64s(dtype, shape, &values)
    }
}

/// So many elements: those given, then zeros.
fn filled(values: &[f64], len: usize) -> Vec<f64> {
    values.iter().copied().chain(std::iter::repeat(0.0)).take(len).collect()
}

/// Random vectors made orthogonal one after another: columns if there are fewer of them, else rows.
fn orthogonal(rows: usize, columns: usize, random: &mut Random) -> Vec<f64> {
    let (count, length) = (rows.min(columns), rows.max(columns));
    let mut vectors: Vec<Vec<f64>> = Vec::new();
    while vectors.len() < count {
        let mut vector: Vec<f64> = (0..length).map(|_| random.normal()).collect();
        // Twice, for what rounding left of the others.
        for _ in 0..2 {
            for other in &vectors {
                let along: f64 = vector.iter().zip(other).map(|(a, b)| a * b).sum();
                vector.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
        }
        let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        vector.iter_mut().for_each(|x| *x /= norm);
        vectors.push(vector);
    }
    let at =
        |row: usize, column: usize| if columns <= rows { vectors[column][row] } else { vectors[row][column] };
    (0..rows * columns).map(|i| at(i / columns, i % columns)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_vectors_are_orthogonal() {
        for (rows, columns) in [(3, 5), (5, 3), (4, 4)] {
            let tensor = Initializer::Orthogonal.sample(DType::F64, &[rows, columns], "w", 7);
            let x = tensor.to_f64s();
            let at =
                |i: usize, k: usize| if columns <= rows { x[k * columns + i] } else { x[i * columns + k] };
            for i in 0..rows.min(columns) {
                for j in 0..rows.min(columns) {
                    let dot: f64 = (0..rows.max(columns)).map(|k| at(i, k) * at(j, k)).sum();
                    assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12, "{i} {j}: {dot}");
                }
            }
        }
    }

    #[test]
    fn a_seed_and_a_name_give_the_same_numbers() {
        let sample = |name, seed| Initializer::GlorotUniform.sample(DType::F32, &[3, 4], name, seed);
        assert_eq!(sample("a", 1), sample("a", 1));
        assert_ne!(sample("a", 1), sample("b", 1));
        assert_ne!(sample("a", 1), sample("a", 2));
        let limit = (6.0f64 / 7.0).sqrt();
        assert!(sample("a", 1).to_f64s().iter().all(|x| x.abs() <= limit));
    }
}
