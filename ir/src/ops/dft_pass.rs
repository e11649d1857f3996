//! `dft_pass`: one pass of a mixed-radix Fourier transform, the unit that `dft` lowers to.

use super::dft_butterfly::kernel;
use super::{Concat, Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::graph::{Value, Values};
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType};

/// The radices that a pass has: those with butterflies that are worth writing out.
pub(super) const RADICES: [usize; 7] = [2, 3, 4, 5, 7, 8, 11];

/// Transforms along the second of four dimensions, turns the results, and makes them the third dimension.
///
/// Operands are the real and the imaginary parts `[O, R, I, K]`, then, unless nothing is turned, cosines
/// and sines `[R - 1, I]`. Results are the real and imaginary parts `[O, I, R, K]` of
///
/// ```text
/// y[o, i, j, k] = sum(b in 0..R) x[o, b, i, k] * e^(-2 pi i j b / R) * (c + s i)[j - 1, i]
/// ```
///
/// where row `j = 0` is not turned, and `inverse` has the other sign in the exponent. Seen as one
/// dimension of `R * I * K` elements before and after, passes with the radices of N one after another, and
/// with the N-th roots of one between them, are the transform of length N in natural order (Stockham's
/// arrangement, by decimation in frequency).
///
/// - (C1) the operands are all f32 or all f64; there are two or four;
/// - (C2) the parts have one shape of rank 4, and R is a radix that a pass has;
/// - (C3) cosines and sines are `[R - 1, I]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DftPass {
    /// Whether the exponent is positive.
    pub inverse: bool,
}

impl OpDef for DftPass {
    const NAMES: &'static [&'static str] = &["dft_pass"];

    fn with_name(_: &str) -> DftPass {
        DftPass::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("inverse", Slot::Bool(&mut self.inverse))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=4)?;
        let (re, im) = (ins[0], ins[1]);
        let one_type = ins.iter().all(|ty| ty.dtype == re.dtype);
        let real = matches!(re.dtype, DType::F32 | DType::F64);
        require!(one_type && real && ins.len() != 3, "C1", "{re} and {im} are not parts of complex numbers");
        let radix = re.dims.get(1).and_then(Dim::as_fixed);
        let fits =
            re.rank() == 4 && im.rank() == 4 && re.dims.iter().zip(&im.dims).all(|(a, b)| a.may_equal(b));
        let Some(radix) = radix.filter(|r| fits && RADICES.contains(r)) else {
            return Err(Violation::new("C2", format!("{re} and {im} have no pass")));
        };
        for ty in &ins[2..] {
            let fits = ty.rank() == 2 && ty.dims[0].may_equal(&Dim::Fixed(radix - 1));
            require!(fits && ty.dims[1].may_equal(&re.dims[2]), "C3", "{ty} does not turn {re}");
        }
        let dims = [0, 2, 1, 3].map(|d| re.dims[d].clone());
        Ok(vec![TensorType::new(re.dtype, dims); 2])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let &[outer, radix, turns, inner] = ins[0].shape() else {
            return Err("the rank is not 4".to_string());
        };
        let parts: Vec<Vec<f64>> = ins.iter().map(Tensor::to_f64s).collect();
        let count = ins[0].len();
        let (mut re, mut im) = (vec![0.0; count], vec![0.0; count]);
        for to in 0..count {
            let (k, j) = (to % inner, to / inner % radix);
            let (i, o) = (to / inner / radix % turns, to / inner / radix / turns);
            debug_assert!(o < outer);
            let (mut a, mut b) = (0.0, 0.0);
            for term in 0..radix {
                let from = ((o * radix + term) * turns + i) * inner + k;
                // Whole quarters of a turn are exact.
                let quarters = 4 * (j * term % radix);
                let angle = std::f64::consts::FRAC_PI_2 * (quarters % radix) as f64 / radix as f64;
                let (c, s) = (libm::cos(angle), libm::sin(angle));
                let (c, s) = [(c, s), (-s, c), (-c, -s), (s, -c)][quarters / radix];
                let s = if self.inverse { s } else { -s };
                a += parts[0][from] * c - parts[1][from] * s;
                b += parts[0][from] * s + parts[1][from] * c;
            }
            (re[to], im[to]) = match parts.get(2..4) {
                Some([cos, sin]) if j > 0 => {
                    let (c, s) = (cos[(j - 1) * turns + i], sin[(j - 1) * turns + i]);
                    (a * c - b * s, a * s + b * c)
                }
                _ => (a, b),
            };
        }
        let shape = [outer, turns, radix, inner];
        Ok([re, im].map(|part| Tensor::from_f64s(ins[0].dtype(), &shape, &part)).to_vec())
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let swapped = |cx: &mut VjpCx<'_>, part: Value| cx.transpose(part, &[0, 2, 1, 3]);
        if let &[re, im, cos, sin] = cx.ins {
            // A pass that does not turn, and then the turn; row 0 stays.
            let pass = cx.builder.push(self.clone(), &[re, im], None)?;
            let (re, im, mut turn) = (pass[0], pass[1], [cos, sin]);
            for (part, first) in turn.iter_mut().zip([1.0, 0.0]) {
                let turns = cx.shape(*part)[1];
                let row = cx.builder.scalar_like(*part, first);
                let row = cx.broadcast(row, &[1, turns])?;
                let all = cx.push(Concat { axis: 0 }, &[row, *part])?;
                let all = cx.transpose(all, &[1, 0])?;
                let shape = cx.shape(all);
                *part = cx.reshape(all, &[shape[0], shape[1], 1])?;
            }
            let [c, s] = turn;
            let mut products = Vec::new();
            for (part, by) in [(re, c), (im, s), (re, s), (im, c)] {
                products.push(cx.map(ScalarFn::Mul, &[part, by])?);
            }
            let re = cx.map(ScalarFn::Sub, &[products[0], products[1]])?;
            let im = cx.map(ScalarFn::Add, &[products[2], products[3]])?;
            return Ok(Vjp::Through(Values::from_slice(&[re, im])));
        }
        // The matrix of a transform is symmetric, and its conjugate is that of the inverse one.
        let (re, im) = (cx.dout(0), cx.dout(1));
        let (re, im) = (swapped(cx, re)?, swapped(cx, im)?);
        let flows = cx.builder.push(DftPass { inverse: !self.inverse }, &[re, im], None)?;
        let flows = [swapped(cx, flows[0])?, swapped(cx, flows[1])?];
        Ok(Vjp::Gradients(flows.into_iter().map(Some).collect()))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let at = [Some(0), Some(0), None, None];
        cx.merged(self.clone(), &at[..cx.ins.len()], &[0, 0])
    }

    fn lower(&self, ins: &[TensorType], _: &[TensorType]) -> Result<Lowered, Error> {
        let shape: [usize; 4] = ins[0].shape().as_slice().try_into().expect("infer accepted the rank");
        match shape.contains(&0) {
            true => Ok(Lowered::Interpret),
            false => Ok(Lowered::Kernel(Box::new(kernel(ins[0].dtype, shape, ins.len() == 4, self.inverse)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, sample};

    #[test]
    fn every_radix_agrees_with_its_definition() {
        for radix in RADICES {
            for [outer, turns, inner] in [[1, 1, 1], [2, 3, 1], [1, 2, 5], [2, 1, 3], [1, 40, 2]] {
                for dtype in [DType::F32, DType::F64] {
                    let part = |seed| sample(dtype, &[outer, radix, turns, inner], seed);
                    let turn = |seed| sample(dtype, &[radix - 1, turns], seed);
                    check(DftPass { inverse: turns == 2 }, &[part(1), part(2)]);
                    check(DftPass { inverse: inner == 3 }, &[part(1), part(2), turn(3), turn(4)]);
                }
            }
        }
    }

    #[test]
    fn constraints_are_named() {
        let violated = |dtype: DType, shape: &[usize], turns: &[usize]| {
            let (part, turn) = (TensorType::fixed(dtype, shape), TensorType::fixed(dtype, turns));
            DftPass::default().infer(&[&part, &part, &turn, &turn]).unwrap_err().constraint
        };
        assert_eq!(violated(DType::F16, &[1, 2, 3, 4], &[1, 3]), "C1");
        assert_eq!(violated(DType::F32, &[1, 6, 3, 4], &[5, 3]), "C2");
        assert_eq!(violated(DType::F32, &[2, 3, 4], &[1, 3]), "C2");
        assert_eq!(violated(DType::F32, &[1, 2, 3, 4], &[2, 3]), "C3");
    }
}
