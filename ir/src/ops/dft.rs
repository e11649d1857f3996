//! `dft`: the discrete Fourier transform along an axis.

use super::{Gradients, Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity, dft_lower};
use crate::attrs::{AttrError, Codec, Late, Slot};
use crate::error::{Error, Violation};
use crate::ops::movement::around;
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis};

/// `X[k] = sum(x[n] * e^(-2 pi i k n / N))` along an axis; `inverse` has the other sign and divides by N.
///
/// The last dimension of the operand holds real numbers (size 1) or real and imaginary parts (size 2); that
/// of the result holds both. The operand is cut or filled with zeros to N along the axis; N is `length`, or
/// if that is empty the operand's size. `onesided` keeps the first N/2 + 1 of the result, which determine
/// it if the operand is real; with `inverse` it is the operand that is given so, `length` is by default
/// twice its size less 2, and the result is real.
///
/// - (C1) the operand is a float of rank 2 or more, whose last dimension is 1 or 2;
/// - (C2) the axis lies within the rank and is not the last;
/// - (C3) the length is one positive integer, if given, and the axis is not empty.
///
/// ONNX: `DFT` (17..), by its importer.
#[derive(Clone, Debug, PartialEq)]
pub struct Dft {
    /// Along which axis: one integer.
    pub axis: Late,
    /// Whether frequencies become a signal.
    pub inverse: bool,
    /// Whether the symmetric half of the frequencies is left out.
    pub onesided: bool,
    /// N, or empty for the operand's size.
    pub length: Late,
}

impl Dft {
    /// The axis, if it is known.
    fn axis(&self, rank: usize) -> Result<Option<usize>, Violation> {
        let Some(axis) = self.axis.as_known() else { return Ok(None) };
        let found = match axis {
            [axis] => normalize_axis(*axis, rank).filter(|&a| a + 1 < rank),
            _ => None,
        };
        require!(found.is_some(), "C2", "axis {axis:?} of rank {rank} is not transformed");
        Ok(found)
    }

    /// N for an operand of this size along the axis.
    fn length(&self, size: usize) -> Option<usize> {
        match self.length.as_known()? {
            [] if self.inverse && self.onesided => Some(2 * size.checked_sub(1)?),
            [] => Some(size),
            [length, ..] => usize::try_from(*length).ok(),
        }
    }

    /// The real and imaginary part of each term's factor: (frequency or time out, term in).
    fn factor(&self, length: usize, out: usize, term: usize) -> (f64, f64) {
        let (cos, sin) = of_turn(out as u128 * term as u128 % length as u128, length as u128);
        match self.inverse {
            false => (cos, -sin),
            true => (cos / length as f64, sin / length as f64),
        }
    }

    /// How often a term counts: those between the ends of half a spectrum stand for two.
    fn weight(&self, length: usize, term: usize) -> f64 {
        let paired = self.inverse && self.onesided && term != 0 && 2 * term != length;
        if paired { 2.0 } else { 1.0 }
    }

    /// The number of terms that are read, and the size of the result.
    pub(super) fn sizes(&self, length: usize) -> (usize, usize) {
        let half = length / 2 + 1;
        match (self.onesided, self.inverse) {
            (false, _) => (length, length),
            (true, false) => (length, half),
            (true, true) => (half, length),
        }
    }
}

/// The cosine and sine of a part of a turn, each rounded about once.
fn of_turn(part: u128, whole: u128) -> (f64, f64) {
    // From the nearer end of the eighth that it is in, where an angle is small and so is the error of rounding it.
    let (eighth, behind) = (8 * part / whole, 8 * part % whole);
    let near = if eighth.is_multiple_of(2) { behind } else { whole - behind };
    let angle = std::f64::consts::FRAC_PI_4 * (near as f64 / whole as f64);
    let (c, s) = (libm::cos(angle), libm::sin(angle));
    match eighth {
        0 => (c, s),
        1 => (s, c),
        2 => (-s, c),
        3 => (-c, s),
        4 => (-c, -s),
        5 => (-s, -c),
        6 => (s, -c),
        _ => (c, -s),
    }
}

impl OpDef for Dft {
    const NAMES: &'static [&'static str] = &["dft"];

    fn with_name(_: &str) -> Dft {
        Dft { axis: vec![-2].into(), inverse: false, onesided: false, length: Late::default() }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Late(&mut self.axis))?;
        codec.attr("inverse", Slot::Bool(&mut self.inverse))?;
        codec.attr("onesided", Slot::Bool(&mut self.onesided))?;
        codec.attr("length", Slot::Late(&mut self.length))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=3)?;
        let x = ins[0];
        let parts = x.dims.last().cloned().unwrap_or(Dim::Fixed(0));
        let fits = parts.may_equal(&Dim::Fixed(1)) || parts.may_equal(&Dim::Fixed(2));
        require!(x.dtype.is_float() && x.rank() >= 2 && fits, "C1", "{x} does not hold complex numbers");
        let mut dims = x.dims.clone();
        dims[x.rank() - 1] = Dim::Fixed(if self.inverse && self.onesided { 1 } else { 2 });
        let Some(axis) = self.axis(x.rank())? else {
            dims[..x.rank() - 1].fill(Dim::Unknown);
            return Ok(vec![TensorType { dtype: x.dtype, dims }]);
        };
        dims[axis] = match x.dims[axis].as_fixed() {
            _ if self.length.as_known().is_none() => Dim::Unknown,
            None if self.length.known().is_empty() && !self.onesided => x.dims[axis].clone(),
            None if self.length.known().is_empty() => Dim::Unknown,
            size => {
                let length = self.length(size.unwrap_or(1)).filter(|n| (1..1 << 31).contains(n));
                let single = self.length.known().len() <= 1;
                require!(
                    single && length.is_some() && size != Some(0),
                    "C3",
                    "{x} has no transform of length {:?}",
                    self.length
                );
                Dim::Fixed(self.sizes(length.unwrap_or(1)).1)
            }
        };
        Ok(vec![TensorType { dtype: x.dtype, dims }])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let out = self.infer(&[&x.ty()]).map_err(|v| v.to_string())?.remove(0).shape();
        let axis = self.axis(x.rank()).map_err(|v| v.to_string())?.ok_or("the axis is not known")?;
        let parts = x.shape()[x.rank() - 1];
        let length = self.length(x.shape()[axis]).ok_or("the transform has no length")?;
        let (terms, count) = self.sizes(length);
        let kept = terms.min(x.shape()[axis]);
        // Dimensions after the axis, without the one that holds real and imaginary parts.
        let (before, size, inner) = around(x.shape(), axis);
        let (after, out_parts) = (inner / parts.max(1), out[x.rank() - 1]);
        let values = x.to_f64s();
        let mut result = vec![0.0; out.iter().product()];
        for line in 0..before * after {
            let (outer, inner) = (line / after, line % after);
            for k in 0..count {
                let (mut real, mut imaginary) = (0.0, 0.0);
                for n in 0..kept {
                    let at = ((outer * size + n) * after + inner) * parts;
                    let (a, b) = (values[at], if parts == 2 { values[at + 1] } else { 0.0 });
                    let ((c, s), weight) = (self.factor(length, k, n), self.weight(length, n));
                    real += weight * (a * c - b * s);
                    imaginary += weight * (a * s + b * c);
                }
                let to = ((outer * count + k) * after + inner) * out_parts;
                result[to] = real;
                if out_parts == 2 {
                    result[to + 1] = imaginary;
                }
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), &out, &result)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let types: Vec<TensorType> =
            cx.ins.iter().chain(cx.outs).map(|&v| cx.builder.ty(v).clone()).collect();
        let (ins, outs) = types.split_at(cx.ins.len());
        Ok(match self.lower(ins, outs)? {
            Lowered::Graph(body) => Vjp::Through(cx.builder.inline(&body, cx.ins)?),
            // There is nothing to flow back.
            _ if outs[0].as_len() == Some(0) => Vjp::Gradients(Gradients::from_elem(None, cx.ins.len())),
            _ => Vjp::Undefined,
        })
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axis = cx.axis(self.axis.known()[0], 0);
        cx.along(Dft { axis: vec![axis].into(), ..self.clone() })
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let axis = self.axis(ins[0].rank()).ok().flatten().expect("infer accepted the axis");
        let Some(length) = self.length(ins[0].shape()[axis]) else { return Ok(Lowered::Interpret) };
        match outs[0].as_len() {
            Some(0) => Ok(Lowered::Interpret),
            _ => Lowered::graph(ins, |b, ins| dft_lower::lower(self, b, ins[0], axis, length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::Op;
    use crate::ops::testing::{assert_close, check, lowered, sample};

    fn plain() -> Dft {
        Dft::with_name("dft")
    }

    #[test]
    fn parts_of_a_turn_are_rounded_once() {
        assert_eq!([0, 1, 2, 3].map(|k| of_turn(k, 4)), [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)]);
        for k in [1, 2] {
            let (cos, sin) = of_turn(k, 3);
            let side = if k == 1 { 1.0 } else { -1.0 };
            assert!((cos + 0.5).abs() <= f64::EPSILON / 4.0, "{cos}");
            assert!((sin - side * 0.75f64.sqrt()).abs() <= f64::EPSILON / 2.0, "{sin}");
        }
        for (k, n) in (1..100u128).flat_map(|n| (0..n).map(move |k| (k, n))) {
            let angle = std::f64::consts::TAU * (k as f64 / n as f64);
            let (cos, sin) = of_turn(k, n);
            assert!((cos - angle.cos()).abs() < 2e-15 && (sin - angle.sin()).abs() < 2e-15, "{k} of {n}");
        }
    }

    #[test]
    fn an_impulse_has_every_frequency() {
        let x = Tensor::new(&[1, 4, 1], &[0f64, 1., 0., 0.]);
        let y = check(plain(), &[x]);
        assert_close(&y, &[Tensor::new(&[1, 4, 2], &[1., 0., 0., -1., -1., 0., 0., 1f64])], "dft");
    }

    #[test]
    fn the_inverse_gives_the_signal_back() {
        for n in [1, 4, 5] {
            let x = sample(DType::F64, &[2, n, 3, 2], 1);
            let y = check(Dft { axis: vec![1].into(), ..plain() }, std::slice::from_ref(&x));
            assert_close(&check(Dft { axis: vec![1].into(), inverse: true, ..plain() }, &y), &[x], "dft");
            let x = sample(DType::F64, &[2, n, 1], 2);
            let half = check(Dft { onesided: true, ..plain() }, std::slice::from_ref(&x));
            let back = Dft { onesided: true, inverse: true, length: vec![n as i64].into(), ..plain() };
            assert_close(&check(back, &half), &[x], "dft");
        }
    }

    #[test]
    fn every_kind_of_length_agrees_with_the_definition() {
        // With factors that have butterflies, those that are products, and those that are convolutions.
        for n in (1..=35).chain([48, 64, 61, 67, 74, 134, 201, 256]) {
            for (inverse, onesided) in [(false, false), (true, false), (false, true), (true, true)] {
                for (parts, dtype) in [(1, DType::F64), (2, DType::F32)] {
                    let size = if inverse && onesided { n / 2 + 1 } else { n };
                    let x = sample(dtype, &[2, size, 2, parts], n as u64);
                    check(
                        Dft { axis: vec![1].into(), inverse, onesided, length: vec![n as i64].into() },
                        &[x],
                    );
                }
            }
        }
    }

    #[test]
    fn rounding_is_that_of_numpy() {
        let signal: Vec<f32> = (0..10).flat_map(|i| [(10 * i + 3) as f32, 0.0]).collect();
        let op: Op = Dft { axis: vec![0].into(), inverse: true, ..plain() }.into();
        let found = lowered(&op, &[Tensor::new(&[10, 2], &signal)]);
        // numpy.fft.ifft(numpy.arange(3, 103, 10, dtype="complex64")), version 2.4.
        let expected: [[f32; 2]; 10] = [
            [48.0, 0.0],
            [-5.0, -15.388419],
            [-5.000001, -6.88191],
            [-5.0, -3.6327133],
            [-5.000001, -1.6245981],
            [-5.0, 1.9073487e-07],
            [-5.000001, 1.6245981],
            [-5.0, 3.6327126],
            [-5.000001, 6.88191],
            [-5.0, 15.388419],
        ];
        assert_eq!(found[0].as_slice::<f32>(), expected.concat());
    }

    #[test]
    fn lengths_cut_and_fill() {
        for length in [2, 7] {
            for dtype in [DType::F32, DType::F16] {
                for onesided in [false, true] {
                    let op = Dft { onesided, length: vec![length].into(), ..plain() };
                    check(op, &[sample(dtype, &[2, 5, 1], 3)]);
                }
            }
        }
    }

    #[test]
    fn constraints_are_named() {
        let f32 = |shape: &[usize]| TensorType::fixed(DType::F32, shape);
        let violated = |op: Dft, x: &TensorType| op.infer(&[x]).unwrap_err().constraint;
        assert_eq!(violated(plain(), &f32(&[4, 3])), "C1");
        assert_eq!(violated(Dft { axis: vec![-1].into(), ..plain() }, &f32(&[4, 2])), "C2");
        assert_eq!(violated(Dft { length: vec![0].into(), ..plain() }, &f32(&[4, 2])), "C3");
    }
}
