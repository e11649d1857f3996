//! `winograd_weight`, `winograd_input` and `winograd_output`: a convolution whose last two dimensions are 3x3 as 36
//! products of matrices, with a quarter of the multiplications.
//!
//! The convolution is cut into tiles of 4x4 outputs, which depend on 6x6 inputs. With the matrices below, a tile `d` of
//! the input and the weights `g` give `A' ((G g G') * (B' d B)) A`, where `*` multiplies element by element: at each
//! of the 36 positions the sum over channels is a product of matrices, tiles by channels by channels.
//! Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), F(4x4, 3x3).
//!
//! Of more spatial dimensions, the last two are cut into tiles. Taps along the others are as further channels: each place of
//! the result has, behind one another, the transformed tiles of all places that it depends on.
//!
//! Integers are exact: the fractions of `G` are taken out of its rows and put into the columns of `A'`, times 24, so
//! that all three matrices are of integers and the result is 576 times what it should be, modulo 2^bits. It is divided
//! by 9, an odd number, by multiplying by that number's inverse, and by 64 by a shift, which loses the 6 bits above.
//! So a result is right if 6 bits fewer hold it, whatever overflows on the way.

use super::points::points;
use super::window::Window;
use super::winograd_lower::{input_kernel, output_kernel, weight_as_product, weight_kernel};
use super::{Conv, Lowered, OpDef, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::ops::movement::position;
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType, strides};

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
    /// Weights `[kernel.., 3, 3, C, M]` to `[36, KC, M]`, K taps of the kernel.
    Weight,
    /// An input `[N, spatial.., H, W, C]` to `[36, T, KC]`, T tiles.
    Input,
    /// Sums `[36, T, M]`, and a bias `[M]` if there is one, to the result `[N, spatial.., H, W, M]`.
    Output,
}

/// A part of a convolution with its channels last, 3x3 of stride 1 along the last two spatial dimensions.
///
/// Tiles are numbered by image, then by place along the other dimensions, then row, then column; the last of a row or column
/// may reach past the result.
///
/// Of integers all arithmetic is modulo 2^bits. The weight and the sums are those of the scaled matrices, and a result
/// is right if an integer of 6 bits fewer holds it: see [`Winograd::holds`].
///
/// - (C1) strides and dilations are empty or have an entry for each dimension of the kernel, pads are empty or have two for
///   each spatial dimension; they are as those of [`Conv`];
/// - (C2) the kernel has taps, and dilated it fits the padded input, which is 3x3 at least;
/// - (C3) operands are all f32, all f64, all i16 or all i32, of the ranks above;
/// - (C4) the shape is three sizes or more, and the sums have its tiles;
/// - (C5) the bias has M elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Winograd {
    /// Which part.
    pub part: WinogradPart,
    /// Of an input: the taps along each spatial dimension but the last two.
    pub kernel: Vec<i64>,
    /// Of an input: the step of the window along those; empty means 1.
    pub strides: Vec<i64>,
    /// Of an input: the distance between neighbouring taps along those; empty means 1.
    pub dilations: Vec<i64>,
    /// Of an input: zeros before each spatial dimension, then after each; empty means none.
    pub pads: Vec<i64>,
    /// Of an output: its N and its spatial sizes.
    pub shape: Vec<i64>,
}

impl Winograd {
    fn new(part: WinogradPart) -> Winograd {
        let [kernel, strides, dilations, pads, shape] = [const { Vec::new() }; 5];
        Winograd { part, kernel, strides, dilations, pads, shape }
    }

    /// Transforms weights.
    pub fn weight() -> Winograd {
        Winograd::new(WinogradPart::Weight)
    }

    /// Transforms an input of two spatial dimensions.
    pub fn input(pads: &[i64]) -> Winograd {
        Winograd { pads: pads.to_vec(), ..Winograd::new(WinogradPart::Input) }
    }

    /// Transforms the input of a convolution with a kernel of these sizes, if that has the form.
    pub fn input_of(conv: &Conv, kernel: &[usize]) -> Option<Winograd> {
        let Some((&[3, 3], others)) = kernel.split_last_chunk().map(|(others, last)| (last, others)) else {
            return None;
        };
        let of_others = |list: &[i64]| -> Option<Vec<i64>> {
            let (others, last) = list.split_at(others.len().min(list.len()));
            last.iter().all(|&n| n == 1).then(|| others.to_vec())
        };
        let has_form = conv.channels_last && conv.group == 1;
        Some(Winograd {
            kernel: others.iter().map(|&taps| taps as i64).collect(),
            strides: of_others(&conv.strides)?,
            dilations: of_others(&conv.dilations)?,
            ..Winograd::input(&conv.pads)
        })
        .filter(|_| has_form)
    }

    /// Transforms sums to a result of these images and spatial sizes.
    pub fn output(shape: &[usize]) -> Winograd {
        let shape = shape.iter().map(|&n| n as i64).collect();
        Winograd { shape, ..Winograd::new(WinogradPart::Output) }
    }

    /// The number of tiles of a result of these images and spatial sizes.
    pub fn tiles(result: &[usize]) -> usize {
        grid(result).iter().product()
    }

    /// Whether an output of integers of this type is right for results between these.
    pub fn holds(dtype: DType, least: i128, greatest: i128) -> bool {
        let (low, high) = dtype.int_range();
        low >> SHIFT <= least && greatest <= high >> SHIFT
    }

    /// How many times larger than the largest operand a transformed weight and a transformed input may be.
    pub const GROWTH: [i128; 2] = [7 * 7, 10 * 10];

    /// How the window of an input's tiles moves over all spatial dimensions.
    pub(super) fn window(&self) -> Result<Window, Violation> {
        let of_all = |list: &[i64]| match list {
            [] => Vec::new(),
            list => [list, &[1, 1]].concat(),
        };
        let spatial = self.kernel.len() + 2;
        Window::new(spatial, &of_all(&self.strides), &self.pads, &of_all(&self.dilations))
    }

    /// The taps along each dimension but the last two.
    pub(super) fn taps(&self) -> Shape {
        self.kernel.iter().map(|&taps| taps as usize).collect()
    }

    /// Images and spatial sizes of the result for an input.
    pub(super) fn result_of(&self, x: &TensorType) -> Result<Vec<Dim>, Violation> {
        let window = self.window()?;
        let kernel = self.kernel.iter().copied().chain([3, 3]).enumerate();
        let spatial = kernel.map(|(d, taps)| {
            let taps = usize::try_from(taps).unwrap_or(0);
            window.output_dim(d, &x.dims[1 + d], &Dim::Fixed(taps), false)
        });
        std::iter::once(Ok(x.dims[0].clone())).chain(spatial).collect()
    }

    /// Images and spatial sizes of an output.
    pub(super) fn result(&self) -> Shape {
        self.shape.iter().map(|&n| n.max(0) as usize).collect()
    }
}

/// How many tiles a result has along each of its dimensions.
pub(super) fn grid(result: &[usize]) -> Shape {
    let places = result.len() - 2;
    let along = |(d, &n): (usize, &usize)| if d < places { n } else { n.div_ceil(OUT) };
    result.iter().enumerate().map(along).collect()
}

impl OpDef for Winograd {
    const NAMES: &'static [&'static str] = &["winograd_weight", "winograd_input", "winograd_output"];

    fn with_name(name: &str) -> Winograd {
        match name {
            "winograd_weight" => Winograd::weight(),
            "winograd_input" => Winograd::input(&[]),
            _ => Winograd::output(&[]),
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
            WinogradPart::Input => {
                codec.attr("kernel", Slot::Ints(&mut self.kernel))?;
                codec.attr("strides", Slot::Ints(&mut self.strides))?;
                codec.attr("dilations", Slot::Ints(&mut self.dilations))?;
                codec.attr("pads", Slot::Ints(&mut self.pads))
            }
            WinogradPart::Output => codec.attr("shape", Slot::Ints(&mut self.shape)),
        }
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, if self.part == WinogradPart::Output { 1..=2 } else { 1..=1 })?;
        let x = ins[0];
        let rank = match self.part {
            WinogradPart::Weight => x.rank().max(4),
            WinogradPart::Input => self.kernel.len() + 4,
            WinogradPart::Output => 3,
        };
        let fits = matches!(x.dtype, DType::F32 | DType::F64 | DType::I16 | DType::I32) && x.rank() == rank;
        require!(fits, "C3", "{} of {x}", self.name());
        let dims = match self.part {
            WinogradPart::Weight => {
                let (kernel, [h, w, from, to]) = x.dims.split_last_chunk().expect("it has four or more");
                let three = |dim: &Dim| dim.may_equal(&Dim::Fixed(3));
                require!(three(h) && three(w), "C3", "the kernel of {x} does not end in 3x3");
                let taps = kernel.iter().map(Dim::as_fixed).product::<Option<usize>>();
                let terms = match (taps, from.as_fixed()) {
                    (Some(1), _) => from.clone(),
                    (Some(taps), Some(from)) => Dim::Fixed(taps.saturating_mul(from)),
                    _ => Dim::Unknown,
                };
                vec![Dim::Fixed(POSITIONS), terms, to.clone()]
            }
            WinogradPart::Input => {
                let result = self.result_of(x)?;
                let result = result.iter().map(Dim::as_fixed).collect::<Option<Shape>>();
                let tiles = result.map_or(Dim::Unknown, |result| Dim::Fixed(Winograd::tiles(&result)));
                let terms = match (&*self.kernel, x.dims[rank - 1].as_fixed()) {
                    ([], _) => x.dims[rank - 1].clone(),
                    (_, Some(from)) => Dim::Fixed(self.taps().iter().fold(from, |n, &k| n.saturating_mul(k))),
                    (_, None) => Dim::Unknown,
                };
                vec![Dim::Fixed(POSITIONS), tiles, terms]
            }
            WinogradPart::Output => {
                let sizes = self.shape.len() >= 3 && self.shape.iter().all(|&n| n >= 0);
                require!(sizes, "C4", "the shape is {:?}", self.shape);
                let result = self.result();
                let tiles = x.dims[0].may_equal(&Dim::Fixed(POSITIONS))
                    && x.dims[1].may_equal(&Dim::Fixed(Winograd::tiles(&result)));
                require!(tiles, "C4", "{x} is not the sums of {result:?}");
                if let Some(bias) = ins.get(1) {
                    let fits =
                        bias.dtype == x.dtype && bias.rank() == 1 && bias.dims[0].may_equal(&x.dims[2]);
                    require!(fits, "C5", "the bias {bias} does not have {} elements", x.dims[2]);
                }
                result.into_iter().map(Dim::Fixed).chain([x.dims[2].clone()]).collect()
            }
        };
        Ok(vec![TensorType::new(x.dtype, dims)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let out = self.infer(&[&ins[0].ty()]).map_err(|v| v.to_string())?.remove(0).shape();
        let (x, shape) = (ins[0].to_f64s(), ins[0].shape());
        // Integers are exact in f64.
        let (dtype, mut y) = (ins[0].dtype(), vec![0.0; out.iter().product()]);
        let last = shape[shape.len() - 1];
        match self.part {
            WinogradPart::Weight => {
                let (taps, each) = (out[1] / shape[shape.len() - 2].max(1), shape[shape.len() - 2] * last);
                let matrix = if dtype.is_int() { &INTEGER_WEIGHT } else { &WEIGHT };
                for (tap, at) in points(&[taps, each]).map(|point| (point[0], point[1])) {
                    let tile: Vec<f64> = (0..9).map(|inner| x[(tap * 9 + inner) * each + at]).collect();
                    for (p, value) in both_sides(matrix, &tile).into_iter().enumerate() {
                        y[(p * taps + tap) * each + at] = value;
                    }
                }
            }
            WinogradPart::Input => {
                let (window, spatial) =
                    (self.window().map_err(|v| v.to_string())?, &shape[1..shape.len() - 1]);
                let steps = strides(&shape[..shape.len() - 1]);
                let result = self.result_of(&ins[0].ty()).map_err(|v| v.to_string())?;
                let result: Shape = result.iter().filter_map(Dim::as_fixed).collect();
                for (t, place) in places(&result).enumerate() {
                    for (k, tap) in points(&self.taps()).enumerate() {
                        let tap: Shape = tap.into_iter().chain([0, 0]).collect();
                        let sources: Vec<Option<usize>> = (0..POSITIONS)
                            .map(|p| {
                                let mut out: Shape = place[1..].into();
                                out[tap.len() - 2] += p / IN;
                                out[tap.len() - 1] += p % IN;
                                let source = window.source(&out, &tap, spatial)?;
                                Some(place[0] * steps[0] + position(&source, &steps[1..]))
                            })
                            .collect();
                        for c in 0..last {
                            let pixel = |source: &Option<usize>| source.map_or(0.0, |at| x[at * last + c]);
                            let tile: Vec<f64> = sources.iter().map(pixel).collect();
                            for (p, value) in both_sides(&INPUT, &tile).into_iter().enumerate() {
                                y[(p * out[1] + t) * out[2] + k * last + c] = value;
                            }
                        }
                    }
                }
            }
            WinogradPart::Output => {
                let (tiles, result) = (shape[1], self.result());
                let bias = ins.get(1).map(Tensor::to_f64s);
                let matrix = if dtype.is_int() { &INTEGER_OUTPUT } else { &OUTPUT };
                let steps = strides(&result);
                for (t, place) in places(&result).enumerate() {
                    for c in 0..last {
                        let tile: Vec<f64> = (0..POSITIONS).map(|p| x[(p * tiles + t) * last + c]).collect();
                        for (p, value) in both_sides(matrix, &tile).into_iter().enumerate() {
                            let value = if dtype.is_int() { divided(dtype, value) } else { value };
                            let mut at = place.clone();
                            at[place.len() - 2] += p / OUT;
                            at[place.len() - 1] += p % OUT;
                            if at.iter().zip(&result).all(|(at, n)| at < n) {
                                let bias = bias.as_ref().map_or(0.0, |b| b[c]);
                                y[position(&at, &steps) * last + c] = value + bias;
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

/// Where each tile starts.
fn places(result: &[usize]) -> impl Iterator<Item = Shape> + use<> {
    points(&grid(result)).map(|mut place| {
        place.iter_mut().rev().take(2).for_each(|at| *at *= OUT);
        place
    })
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
mod tests;
