//! `winograd_weight`, `winograd_input` and `winograd_output`: a 3x3 convolution as 36 products of matrices, with a
//! quarter of the multiplications.
//!
//! The convolution is cut into tiles of 4x4 outputs, which depend on 6x6 inputs. With the matrices below, a tile `d` of
//! the input and the weights `g` give `A' ((G g G') * (B' d B)) A`, where `*` multiplies element by element: at each
//! of the 36 positions the sum over channels is a product of matrices, tiles by channels by channels.
//! Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), F(4x4, 3x3).
//!
//! Integers are exact: the fractions of `G` are taken out of its rows and put into the columns of `A'`, times 24, so
//! that all three matrices are of integers and the result is 576 times what it should be, modulo 2^bits. It is divided
//! by 9, an odd number, by multiplying by that number's inverse, and by 64 by a shift, which loses the 6 bits above.
//! So a result is right if 6 bits fewer hold it, whatever overflows on the way.

use super::winograd_lower::{input_kernel, output_kernel, weight_as_product, weight_kernel};
use super::{Lowered, OpDef, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType};

/// Outputs of a tile along a dimension, and inputs that they depend on.
pub(super) const OUT: usize = 4;
pub(super) const IN: usize = 6;

/// Positions of a transformed tile.
pub(super) const POSITIONS: usize = IN * IN;

/// `B'`, which transforms inputs.
pub(super) const INPUT: [[f64; IN]; IN] = [
    [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
    [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
    [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
    [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
    [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
    [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
];

/// `G`, which transforms weights.
pub(super) const WEIGHT: [[f64; 3]; IN] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

/// `A'`, which transforms sums to outputs.
pub(super) const OUTPUT: [[f64; IN]; OUT] = [
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
    [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
    [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
    [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
];

/// `G` without the fractions of its rows, which transforms integer weights.
pub(super) const INTEGER_WEIGHT: [[f64; 3]; IN] = [
    [1.0, 0.0, 0.0],
    [-1.0, -1.0, -1.0],
    [-1.0, 1.0, -1.0],
    [1.0, 2.0, 4.0],
    [1.0, -2.0, 4.0],
    [0.0, 0.0, 1.0],
];

/// 24 times `A'` with those fractions, which transforms sums of integers.
pub(super) const INTEGER_OUTPUT: [[f64; IN]; OUT] = [
    [6.0, 4.0, 4.0, 1.0, 1.0, 0.0],
    [0.0, 4.0, -4.0, 2.0, -2.0, 0.0],
    [0.0, 4.0, 4.0, 4.0, 4.0, 0.0],
    [0.0, 4.0, -4.0, 8.0, -8.0, 24.0],
];

/// What undoes a multiplication by 9 modulo 2^32, and modulo every smaller power of 2.
pub(super) const A_NINTH: i32 = 954_437_177;

/// How many bits of a transformed integer are shifted out: 576 is 9 times 2 to this power.
pub(super) const SHIFT: u32 = 6;

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WinogradPart {
    /// Weights `[3, 3, C, M]` to `[36, C, M]`.
    Weight,
    /// An input `[N, H, W, C]` to `[36, T, C]`, T tiles.
    Input,
    /// Sums `[36, T, M]`, and a bias `[M]` if there is one, to the result `[N, H, W, M]`.
    Output,
}

/// A part of a 3x3 convolution of stride 1 with its channels last.
///
/// Tiles are numbered by image, then row, then column; the last of a row or column may reach past the result.
///
/// Of integers all arithmetic is modulo 2^bits. The weight and the sums are those of the scaled matrices, and a result
/// is right if an integer of 6 bits fewer holds it: see [`Winograd::holds`].
///
/// - (C1) operands are all f32, all f64, all i16 or all i32, of the ranks above;
/// - (C2) pads are empty or four numbers of 0 or more, and the padded input is 3x3 at least;
/// - (C3) the shape is three sizes, and the sums have its tiles;
/// - (C4) the bias has M elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Winograd {
    /// Which part.
    pub part: WinogradPart,
    /// Of an input: zeros above, left, below and right of it; empty means none.
    pub pads: Vec<i64>,
    /// Of an output: its N, H and W.
    pub shape: Vec<i64>,
}

impl Winograd {
    /// Transforms weights.
    pub fn weight() -> Winograd {
        Winograd { part: WinogradPart::Weight, pads: Vec::new(), shape: Vec::new() }
    }

    /// Transforms an input.
    pub fn input(pads: &[i64]) -> Winograd {
        Winograd { part: WinogradPart::Input, pads: pads.to_vec(), shape: Vec::new() }
    }

    /// Transforms sums to a result of this many images, rows and columns.
    pub fn output(shape: [usize; 3]) -> Winograd {
        let shape = shape.iter().map(|&n| n as i64).collect();
        Winograd { part: WinogradPart::Output, pads: Vec::new(), shape }
    }

    /// The number of tiles of a result.
    pub fn tiles([images, height, width]: [usize; 3]) -> usize {
        images * height.div_ceil(OUT) * width.div_ceil(OUT)
    }

    /// Whether an output of integers of this type is right for results between these.
    pub fn holds(dtype: DType, least: i128, greatest: i128) -> bool {
        let (low, high) = dtype.int_range();
        low >> SHIFT <= least && greatest <= high >> SHIFT
    }

    /// How many times larger than the largest operand a transformed weight and a transformed input may be.
    pub const GROWTH: [i128; 2] = [7 * 7, 10 * 10];

    pub(super) fn pad(&self, at: usize) -> i64 {
        self.pads.get(at).copied().unwrap_or(0)
    }

    /// Images, rows and columns of the result for an input.
    pub(super) fn result_of(&self, x: &[usize]) -> [usize; 3] {
        let size = |input: usize, before: usize| {
            (input as i64 + self.pad(before) + self.pad(before + 2) - 2).max(0) as usize
        };
        [x[0], size(x[1], 0), size(x[2], 1)]
    }

    /// Images, rows and columns of an output.
    pub(super) fn result(&self) -> [usize; 3] {
        [0, 1, 2].map(|at| self.shape.get(at).map_or(0, |&n| n.max(0) as usize))
    }
}

impl OpDef for Winograd {
    const NAMES: &'static [&'static str] = &["winograd_weight", "winograd_input", "winograd_output"];

    fn with_name(name: &str) -> Winograd {
        match name {
            "winograd_weight" => Winograd::weight(),
            "winograd_input" => Winograd::input(&[]),
            _ => Winograd::output([0; 3]),
        }
    }

    fn name(&self) -> &'static str {
        match self.part {
            WinogradPart::Weight => "winograd_weight",
            WinogradPart::Input => "winograd_input",
            WinogradPart::Output => "winograd_output",
        }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        match self.part {
            WinogradPart::Weight => Ok(()),
            WinogradPart::Input => codec.attr("pads", Slot::Ints(&mut self.pads)),
            WinogradPart::Output => codec.attr("shape", Slot::Ints(&mut self.shape)),
        }
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, if self.part == WinogradPart::Output { 1..=2 } else { 1..=1 })?;
        let x = ins[0];
        let rank = if self.part == WinogradPart::Output { 3 } else { 4 };
        let fits = matches!(x.dtype, DType::F32 | DType::F64 | DType::I16 | DType::I32) && x.rank() == rank;
        require!(fits, "C1", "{} of {x}", self.name());
        let fixed = |d: usize| x.dims[d].as_fixed();
        let dims = match self.part {
            WinogradPart::Weight => {
                let three = |d: usize| x.dims[d].may_equal(&Dim::Fixed(3));
                require!(three(0) && three(1), "C1", "the kernel of {x} is not 3x3");
                vec![Dim::Fixed(POSITIONS), x.dims[2].clone(), x.dims[3].clone()]
            }
            WinogradPart::Input => {
                let pads = self.pads.is_empty() || self.pads.len() == 4;
                require!(pads && self.pads.iter().all(|&p| p >= 0), "C2", "pads are {:?}", self.pads);
                let tiles = match (fixed(0), fixed(1), fixed(2)) {
                    (Some(n), Some(h), Some(w)) => {
                        let result = self.result_of(&[n, h, w]);
                        require!(result[1] > 0 && result[2] > 0, "C2", "{x} padded is less than 3x3");
                        Dim::Fixed(Winograd::tiles(result))
                    }
                    _ => Dim::Unknown,
                };
                vec![Dim::Fixed(POSITIONS), tiles, x.dims[3].clone()]
            }
            WinogradPart::Output => {
                let sizes = self.shape.len() == 3 && self.shape.iter().all(|&n| n >= 0);
                require!(sizes, "C3", "the shape is {:?}", self.shape);
                let result = self.result();
                let tiles = x.dims[0].may_equal(&Dim::Fixed(POSITIONS))
                    && x.dims[1].may_equal(&Dim::Fixed(Winograd::tiles(result)));
                require!(tiles, "C3", "{x} is not the sums of {result:?}");
                if let Some(bias) = ins.get(1) {
                    let fits =
                        bias.dtype == x.dtype && bias.rank() == 1 && bias.dims[0].may_equal(&x.dims[2]);
                    require!(fits, "C4", "the bias {bias} does not have {} elements", x.dims[2]);
                }
                result.map(Dim::Fixed).into_iter().chain([x.dims[2].clone()]).collect()
            }
        };
        Ok(vec![TensorType::new(x.dtype, dims)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let out = self.infer(&[&ins[0].ty()]).map_err(|v| v.to_string())?.remove(0).shape();
        let (x, shape) = (ins[0].to_f64s(), ins[0].shape());
        // Integers are exact in f64.
        let (dtype, mut y) = (ins[0].dtype(), vec![0.0; out.iter().product()]);
        match self.part {
            WinogradPart::Weight => {
                let each = shape[2] * shape[3];
                for at in 0..each {
                    let tile: Vec<f64> = (0..9).map(|tap| x[tap * each + at]).collect();
                    let matrix = if dtype.is_int() { &INTEGER_WEIGHT } else { &WEIGHT };
                    for (p, value) in both_sides(matrix, &tile).into_iter().enumerate() {
                        y[p * each + at] = value;
                    }
                }
            }
            WinogradPart::Input => {
                let channels = shape[3];
                let result = self.result_of(shape);
                for (t, [n, row, column]) in places(result).enumerate() {
                    for c in 0..channels {
                        let tile: Vec<f64> = (0..POSITIONS)
                            .map(|p| {
                                let h = (row + p / IN) as i64 - self.pad(0);
                                let w = (column + p % IN) as i64 - self.pad(1);
                                let inside =
                                    (0..shape[1] as i64).contains(&h) && (0..shape[2] as i64).contains(&w);
                                let at =
                                    || ((n * shape[1] + h as usize) * shape[2] + w as usize) * channels + c;
                                if inside { x[at()] } else { 0.0 }
                            })
                            .collect();
                        for (p, value) in both_sides(&INPUT, &tile).into_iter().enumerate() {
                            y[(p * out[1] + t) * channels + c] = value;
                        }
                    }
                }
            }
            WinogradPart::Output => {
                let (tiles, channels) = (shape[1], shape[2]);
                let bias = ins.get(1).map(Tensor::to_f64s);
                for (t, [n, row, column]) in places(self.result()).enumerate() {
                    for c in 0..channels {
                        let tile: Vec<f64> =
                            (0..POSITIONS).map(|p| x[(p * tiles + t) * channels + c]).collect();
                        let matrix = if dtype.is_int() { &INTEGER_OUTPUT } else { &OUTPUT };
                        for (p, value) in both_sides(matrix, &tile).into_iter().enumerate() {
                            let value = if dtype.is_int() { divided(dtype, value) } else { value };
                            let (h, w) = (row + p / OUT, column + p % OUT);
                            if h < out[1] && w < out[2] {
                                let at = ((n * out[1] + h) * out[2] + w) * channels + c;
                                y[at] = value + bias.as_ref().map_or(0.0, |b| b[c]);
                            }
                        }
                    }
                }
            }
        }
        if dtype.is_int() {
            let y: Vec<i128> = y.into_iter().map(|value| value as i128).collect();
            return Ok(vec![Tensor::from_i128s(dtype, &out, &y)]);
        }
        Ok(vec![Tensor::from_f64s(dtype, &out, &y)])
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        if ins.iter().chain(outs).any(|ty| ty.as_len() == Some(0)) {
            return Ok(Lowered::Interpret);
        }
        match self.part {
            WinogradPart::Weight if ins[0].dtype.is_int() => {
                Ok(Lowered::Kernel(Box::new(weight_kernel(&ins[0]))))
            }
            WinogradPart::Weight => Lowered::graph(ins, weight_as_product),
            WinogradPart::Input => Ok(Lowered::Kernel(Box::new(input_kernel(self, &ins[0])))),
            WinogradPart::Output => Ok(Lowered::Kernel(Box::new(output_kernel(self, ins)))),
        }
    }
}

/// Where each tile starts: image, row, column.
fn places([images, height, width]: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    let (rows, columns) = (height.div_ceil(OUT), width.div_ceil(OUT));
    (0..images * rows * columns)
        .map(move |t| [t / columns / rows, t / columns % rows * OUT, t % columns * OUT])
}

/// An integer times the inverse of 9, and its lower bits shifted out, modulo 2^bits.
fn divided(dtype: DType, value: f64) -> f64 {
    let bits = 8 * dtype.size() as u32;
    let product = (value as i128 * i128::from(A_NINTH)).rem_euclid(1 << bits);
    let signed = if product >> (bits - 1) == 1 { product - (1 << bits) } else { product };
    (signed >> SHIFT) as f64
}

/// `m x m'`
fn both_sides<const R: usize, const S: usize>(m: &[[f64; S]; R], x: &[f64]) -> Vec<f64> {
    let element = |a: usize, b: usize| -> f64 {
        (0..S).flat_map(|i| (0..S).map(move |j| (i, j))).map(|(i, j)| m[a][i] * m[b][j] * x[i * S + j]).sum()
    };
    (0..R * R).map(|p| element(p / R, p % R)).collect()
}

#[cfg(test)]
mod tests {
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
            let x = sample(DType::F64, &x, 1);
            let w = sample(DType::F64, &[3, 3, x.shape()[3], to], 2);
            let bias = sample(DType::F64, &[to], 3);
            let conv = Conv { pads: pads.to_vec(), channels_last: true, ..Conv::plain() };
            let expected = conv.eval(&[x.clone(), w.clone(), bias.clone()]).unwrap().remove(0);
            let u = check(Winograd::weight(), &[w]).remove(0);
            let v = check(Winograd::input(&pads), &[x]).remove(0);
            let product = MatMul { trans_a: false, trans_b: false };
            let sums = product.eval(&[v, u]).unwrap().remove(0);
            let out = expected.shape();
            let y = check(Winograd::output([out[0], out[1], out[2]]), &[sums, bias]).remove(0);
            for (found, expected) in y.to_f64s().iter().zip(expected.to_f64s()) {
                assert!((found - expected).abs() < 1e-11 * (1.0 + expected.abs()), "{found}, {expected}");
            }
        }
    }

    #[test]
    fn integers_are_exact_although_sums_overflow() {
        for (x, to, pads) in [
            ([1, 8, 8, 4], 3, [1, 1, 1, 1]),
            ([2, 7, 9, 40], 5, [1, 0, 2, 1]),
            ([1, 3, 3, 1], 33, [0, 0, 0, 0]),
        ] {
            let channels = x[3];
            let byte = |i: usize, seed: usize| (i * 7919 + seed).pow(2) / 31 % 256;
            let x = Tensor::from_fn::<i16>(&x, |i| if i % 3 == 0 { 255 } else { byte(i, 5) as i16 });
            let w = Tensor::from_fn::<i16>(&[3, 3, channels, to], |i| byte(i, 8) as i16 - 128);
            let u = check(Winograd::weight(), std::slice::from_ref(&w)).remove(0);
            let v = check(Winograd::input(&pads), std::slice::from_ref(&x)).remove(0);
            let [x, w, u, v] = [x, w, u, v].map(|t| Tensor::from_i128s(DType::I32, t.shape(), &t.to_i128s()));
            let conv = Conv { pads: pads.to_vec(), channels_last: true, ..Conv::plain() };
            let expected = conv.eval(&[x, w]).unwrap().remove(0);
            let product = MatMul { trans_a: false, trans_b: false };
            let sums = product.eval(&[v, u]).unwrap().remove(0);
            let out = expected.shape();
            let y = check(Winograd::output([out[0], out[1], out[2]]), &[sums]).remove(0);
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
        let violated = |op: Winograd, ins: &[TensorType]| {
            op.infer(&ins.iter().collect::<Vec<_>>()).unwrap_err().constraint
        };
        assert_eq!(violated(Winograd::weight(), &[f32(&[3, 2, 4, 4])]), "C1");
        assert_eq!(violated(Winograd::input(&[1, 1]), &[f32(&[1, 4, 4, 4])]), "C2");
        assert_eq!(violated(Winograd::input(&[]), &[f32(&[1, 2, 4, 4])]), "C2");
        assert_eq!(violated(Winograd::output([1, 4, 5]), &[f32(&[36, 1, 4])]), "C3");
        assert_eq!(violated(Winograd::output([1, 4, 5]), &[f32(&[36, 2, 4]), f32(&[5])]), "C4");
        let empty = Winograd::input(&[]).infer(&[&f32(&[0, 4, 4, 4])]).unwrap();
        assert_eq!(empty[0].to_string(), "f32[36, 0, 4]");
    }
}
