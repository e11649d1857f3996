//! `dft` as a graph of passes: O(n log n) for every length.
//!
//! A length is factored. Small factors are passes of their own (`dft_pass`); a prime up to
//! [`LARGEST_PRODUCT`] is a product with its matrix of roots, a larger one a convolution of a length with
//! small factors (L. Bluestein, "A linear filtering approach to the computation of discrete Fourier
//! transform", 1970). Real signals of even length are transformed as complex ones of half the length.

use super::dft::Dft;
use super::dft_butterfly::root;
use super::dft_pass::{DftPass, RADICES};
use super::movement::around;
use super::{Concat, Einsum, Pad, PadMode, Reshape, Slice, Transpose};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Builder, Value, Values};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;

/// The largest prime that is transformed by a product with a matrix; a convolution takes about as many
/// operations there.
const LARGEST_PRODUCT: usize = 61;

pub(super) fn lower(
    op: &Dft,
    b: &mut Builder,
    x: Value,
    axis: usize,
    length: usize,
) -> Result<Values, Error> {
    let dtype = b.ty(x).dtype;
    let (terms, count) = op.sizes(length);
    let shape = b.ty(x).shape();
    let last = shape.len() - 1;
    let (outer, size, rest) = around(&shape, axis);
    let (inner, parts) = (rest / shape[last], shape[last]);
    let mut t = Transforms { b, wide: dtype.accumulator() };

    let x = t.b.cast(x, t.wide)?;
    let x = t.reshape(x, &[outer, size, inner, parts])?;
    let mut part = |i: i64| {
        let part = t.b.push1(Slice::along(3, i, i + 1), &[x])?;
        let part = t.reshape(part, &[outer, size, inner])?;
        t.fit(part, terms)
    };
    let (re, im) = (part(0)?, if parts == 2 { Some(part(1)?) } else { None });

    let scale = if op.inverse { 1.0 / length as f64 } else { 1.0 };
    let results = match im {
        _ if op.inverse && op.onesided => {
            let im = match im {
                Some(im) => im,
                None => t.zeros_like(re)?,
            };
            vec![t.real_of(Complex { re, im }, length, scale)?]
        }
        Some(im) => {
            let y = t.transform(Complex { re, im }, op.inverse)?;
            let y = t.scaled(y, scale)?;
            vec![t.slice(y.re, 0, count)?, t.slice(y.im, 0, count)?]
        }
        None => {
            let half = t.of_real(re, op.inverse)?;
            let half = t.scaled(half, scale)?;
            let y = if op.onesided { half } else { t.mirrored(half, length)? };
            vec![y.re, y.im]
        }
    };

    let mut shape = shape;
    (shape[axis], shape[last]) = (count, 1);
    let results = results.into_iter().map(|part| t.reshape(part, &shape)).collect::<Result<Vec<_>, _>>()?;
    let joined = match results.as_slice() {
        [single] => *single,
        parts => t.b.push1(Concat { axis: last as i64 }, parts)?,
    };
    Ok(Values::from_slice(&[t.b.cast(joined, dtype)?]))
}

/// Parts of shape `[outer, n, inner]`.
#[derive(Clone, Copy)]
struct Complex {
    re: Value,
    im: Value,
}

/// Builds transforms along the middle of three dimensions.
struct Transforms<'b> {
    b: &'b mut Builder,
    wide: DType,
}

impl Transforms<'_> {
    fn transform(&mut self, x: Complex, inverse: bool) -> Result<Complex, Error> {
        let [outer, n, inner] = self.sizes(x.re);
        let (mut x, mut done) = (x, 1);
        for radix in factors(n) {
            let turns = n / (done * radix);
            let shape = [outer, radix, turns, done * inner];
            let angle = |at: usize| root((at / turns + 1) * (at % turns) * done, n);
            let roots = (turns > 1).then(|| self.roots(&[radix - 1, turns], inverse, angle));
            x = self.reshaped(x, &shape)?;
            x = match RADICES.contains(&radix) {
                true => {
                    let ins = [Some(x), roots].into_iter().flatten().flat_map(|c| [c.re, c.im]);
                    let ins: Vec<Value> = ins.collect();
                    let out = self.b.push(DftPass { inverse }, &ins, None)?;
                    Complex { re: out[0], im: out[1] }
                }
                false => self.large_pass(x, shape, roots, inverse)?,
            };
            done *= radix;
        }
        self.reshaped(x, &[outer, n, inner])
    }

    /// What `dft_pass` does, for a radix without a butterfly.
    fn large_pass(
        &mut self,
        x: Complex,
        [outer, radix, turns, inner]: [usize; 4],
        roots: Option<Complex>,
        inverse: bool,
    ) -> Result<Complex, Error> {
        let x = self.reshaped(x, &[outer, radix, turns * inner])?;
        let y = match radix <= LARGEST_PRODUCT {
            true => self.product(x, radix, inverse)?,
            false => self.convolution(x, radix, inverse)?,
        };
        let mut y = self.reshaped(y, &[outer, radix, turns, inner])?;
        if let Some(roots) = roots {
            // The first row is not turned.
            let mut with_ones = |part: Value, fill: f64| {
                let fill = self.b.scalar(self.wide, fill);
                let pad = padding(0, 1, 0);
                let part = self.b.push1(pad, &[part, fill])?;
                self.reshape(part, &[radix, turns, 1])
            };
            let roots = Complex { re: with_ones(roots.re, 1.0)?, im: with_ones(roots.im, 0.0)? };
            y = self.times(y, roots)?;
        }
        self.each(y, |t, part| t.b.push1(Transpose { perm: vec![0, 2, 1, 3] }, &[part]))
    }

    /// A transform by the matrix of its roots.
    fn product(&mut self, x: Complex, n: usize, inverse: bool) -> Result<Complex, Error> {
        let matrix = self.roots(&[n, n], inverse, |at| root((at / n) * (at % n), n));
        let mut product = |part: Value, matrix: Value| {
            self.b.push1(Einsum { equation: "jb,obk->ojk".to_string() }, &[matrix, part])
        };
        let (a, b) = (product(x.re, matrix.re)?, product(x.im, matrix.im)?);
        let (c, d) = (product(x.re, matrix.im)?, product(x.im, matrix.re)?);
        Ok(Complex { re: self.b.map(ScalarFn::Sub, &[a, b])?, im: self.b.map(ScalarFn::Add, &[c, d])? })
    }

    /// A transform as a convolution: with `c[n] = e^(i pi n^2 / N)`, conjugated for the inverse,
    /// `X[k] = conj c[k] * sum(n) (x[n] conj c[n]) c[k - n]`.
    fn convolution(&mut self, x: Complex, n: usize, inverse: bool) -> Result<Complex, Error> {
        let size = smooth_from(2 * n - 1);
        let square = |k: usize| (k as u128 * k as u128 % (2 * n as u128)) as usize;
        let mut kernel = vec![(0.0, 0.0); size];
        for k in 0..n {
            let (c, s) = root(square(k), 2 * n);
            let term = (c / size as f64, if inverse { -s } else { s } / size as f64);
            kernel[k] = term;
            kernel[(size - k) % size] = term;
        }
        let spectrum = transformed(&kernel);
        let constant = |t: &mut Self, pick: fn(&(f64, f64)) -> f64| {
            let values: Vec<f64> = spectrum.iter().map(pick).collect();
            t.b.constant(Tensor::from_f64s(t.wide, &[size, 1], &values))
        };
        let spectrum = Complex { re: constant(self, |w| w.0), im: constant(self, |w| w.1) };

        let chirp = self.roots(&[n, 1], inverse, |k| root(square(k), 2 * n));
        let x = self.times(x, chirp)?;
        let x = self.each(x, |t, part| t.fit(part, size))?;
        let y = self.transform(x, false)?;
        let y = self.times(y, spectrum)?;
        let y = self.transform(y, true)?;
        let y = self.each(y, |t, part| t.slice(part, 0, n))?;
        self.times(y, chirp)
    }

    /// The first half, `n / 2 + 1` terms, of the transform of a real signal.
    fn of_real(&mut self, x: Value, inverse: bool) -> Result<Complex, Error> {
        let [outer, n, inner] = self.sizes(x);
        if !n.is_multiple_of(2) {
            let im = self.zeros_like(x)?;
            let y = self.transform(Complex { re: x, im }, inverse)?;
            return self.each(y, |t, part| t.slice(part, 0, n / 2 + 1));
        }
        // z = even + i odd has the transform Z. That of the even terms is Z's symmetric part
        // (Z[k] + conj Z[-k]) / 2, that of the odd ones its antisymmetric part over i.
        let half = n / 2;
        let pairs = self.reshape(x, &[outer, half, 2, inner])?;
        let mut every_other = |i: i64| {
            let part = self.b.push1(Slice::along(2, i, i + 1), &[pairs])?;
            self.reshape(part, &[outer, half, inner])
        };
        let z = Complex { re: every_other(0)?, im: every_other(1)? };
        let z = self.transform(z, inverse)?;
        let z = self.each(z, |t, part| {
            let first = t.slice(part, 0, 1)?;
            t.b.push1(Concat { axis: 1 }, &[part, first])
        })?;
        let back = self.each(z, |t, part| t.reversed(part))?;
        let mut halved = |f: ScalarFn, x: Value, y: Value| {
            let both = self.b.map(f, &[x, y])?;
            let factor = self.b.scalar(self.wide, 0.5);
            self.b.map(ScalarFn::Mul, &[both, factor])
        };
        let even =
            Complex { re: halved(ScalarFn::Add, z.re, back.re)?, im: halved(ScalarFn::Sub, z.im, back.im)? };
        let odd =
            Complex { re: halved(ScalarFn::Add, z.im, back.im)?, im: halved(ScalarFn::Sub, back.re, z.re)? };
        let roots = self.roots(&[half + 1, 1], inverse, |k| root(k, n));
        let odd = self.times(odd, roots)?;
        self.parts(ScalarFn::Add, even, odd)
    }

    /// The real signal of length `n` whose transform begins with these `n / 2 + 1` terms.
    fn real_of(&mut self, x: Complex, n: usize, scale: f64) -> Result<Value, Error> {
        let [outer, _, inner] = self.sizes(x.re);
        if !n.is_multiple_of(2) {
            let x = self.mirrored(x, n)?;
            let y = self.transform(x, true)?;
            return Ok(self.scaled(y, scale)?.re);
        }
        // The reverse of `of_real`. The terms at both ends are real; imaginary parts there do not count.
        let half = n / 2;
        let ends = padding(1, 1, 1);
        let zero = self.b.scalar(self.wide, 0.0);
        let between = self.slice(x.im, 1, half)?;
        let x = Complex { re: x.re, im: self.b.push1(ends, &[between, zero])? };
        let back = self.each(x, |t, part| {
            let back = t.reversed(part)?;
            t.slice(back, 0, half)
        })?;
        let x = self.each(x, |t, part| t.slice(part, 0, half))?;
        let mut both = |f: ScalarFn, x: Value, y: Value| self.b.map(f, &[x, y]);
        let even =
            Complex { re: both(ScalarFn::Add, x.re, back.re)?, im: both(ScalarFn::Sub, x.im, back.im)? };
        let odd =
            Complex { re: both(ScalarFn::Sub, x.re, back.re)?, im: both(ScalarFn::Add, x.im, back.im)? };
        let roots = self.roots(&[half, 1], true, |k| root(k, n));
        let odd = self.times(odd, roots)?;
        let z = Complex {
            re: self.b.map(ScalarFn::Sub, &[even.re, odd.im])?,
            im: self.b.map(ScalarFn::Add, &[even.im, odd.re])?,
        };
        let z = self.transform(z, true)?;
        let z = self.scaled(z, scale)?;
        let z = self.reshaped(z, &[outer, half, 1, inner])?;
        let pairs = self.b.push1(Concat { axis: 2 }, &[z.re, z.im])?;
        self.reshape(pairs, &[outer, n, inner])
    }

    /// All `n` terms of a transform whose other half mirrors this one.
    fn mirrored(&mut self, half: Complex, n: usize) -> Result<Complex, Error> {
        let mirror = self.each(half, |t, part| {
            let between = t.slice(part, 1, n - n / 2)?;
            t.reversed(between)
        })?;
        let mirror = Complex { re: mirror.re, im: self.b.map(ScalarFn::Neg, &[mirror.im])? };
        let mut joined = |a, b| self.b.push1(Concat { axis: 1 }, &[a, b]);
        Ok(Complex { re: joined(half.re, mirror.re)?, im: joined(half.im, mirror.im)? })
    }

    /// Constants of roots of one in the direction of a transform.
    fn roots(&mut self, shape: &[usize], inverse: bool, root: impl Fn(usize) -> (f64, f64)) -> Complex {
        let roots: Vec<(f64, f64)> = (0..shape.iter().product()).map(root).collect();
        let cos: Vec<f64> = roots.iter().map(|(c, _)| *c).collect();
        let sin: Vec<f64> = roots.iter().map(|(_, s)| if inverse { *s } else { -s }).collect();
        let mut constant = |values: &[f64]| self.b.constant(Tensor::from_f64s(self.wide, shape, values));
        Complex { re: constant(&cos), im: constant(&sin) }
    }

    fn sizes(&self, part: Value) -> [usize; 3] {
        self.b.ty(part).shape().as_slice().try_into().expect("parts have three dimensions")
    }

    fn each(
        &mut self,
        x: Complex,
        mut f: impl FnMut(&mut Self, Value) -> Result<Value, Error>,
    ) -> Result<Complex, Error> {
        Ok(Complex { re: f(self, x.re)?, im: f(self, x.im)? })
    }

    fn parts(&mut self, f: ScalarFn, x: Complex, y: Complex) -> Result<Complex, Error> {
        Ok(Complex { re: self.b.map(f, &[x.re, y.re])?, im: self.b.map(f, &[x.im, y.im])? })
    }

    fn times(&mut self, x: Complex, w: Complex) -> Result<Complex, Error> {
        let mut product = |a, b| self.b.map(ScalarFn::Mul, &[a, b]);
        let straight = [product(x.re, w.re)?, product(x.im, w.im)?];
        let crossed = [product(x.re, w.im)?, product(x.im, w.re)?];
        Ok(Complex { re: self.b.map(ScalarFn::Sub, &straight)?, im: self.b.map(ScalarFn::Add, &crossed)? })
    }

    fn scaled(&mut self, x: Complex, factor: f64) -> Result<Complex, Error> {
        if factor == 1.0 {
            return Ok(x);
        }
        let factor = self.b.scalar(self.wide, factor);
        self.each(x, |t, part| t.b.map(ScalarFn::Mul, &[part, factor]))
    }

    fn reshape(&mut self, part: Value, shape: &[usize]) -> Result<Value, Error> {
        match self.b.ty(part).shape().as_slice() == shape {
            true => Ok(part),
            false => self.b.push1(Reshape::to(shape), &[part]),
        }
    }

    fn reshaped(&mut self, x: Complex, shape: &[usize]) -> Result<Complex, Error> {
        self.each(x, |t, part| t.reshape(part, shape))
    }

    fn slice(&mut self, part: Value, start: usize, end: usize) -> Result<Value, Error> {
        match (start, end) == (0, self.sizes(part)[1]) {
            true => Ok(part),
            false => self.b.push1(Slice::along(1, start as i64, end as i64), &[part]),
        }
    }

    fn reversed(&mut self, part: Value) -> Result<Value, Error> {
        let backwards = Slice {
            starts: vec![-1].into(),
            ends: vec![i64::MIN].into(),
            axes: vec![1].into(),
            steps: vec![-1].into(),
        };
        self.b.push1(backwards, &[part])
    }

    /// Cut or filled with zeros to `size` terms.
    fn fit(&mut self, part: Value, size: usize) -> Result<Value, Error> {
        let found = self.sizes(part)[1];
        let part = self.slice(part, 0, found.min(size))?;
        match size.saturating_sub(found) {
            0 => Ok(part),
            missing => {
                let zero = self.b.scalar(self.wide, 0.0);
                self.b.push1(padding(1, 0, missing as i64), &[part, zero])
            }
        }
    }

    fn zeros_like(&mut self, part: Value) -> Result<Value, Error> {
        let shape = self.sizes(part);
        Ok(self.b.constant(Tensor::zeros(self.wide, &shape)))
    }
}

/// Zeros (the second operand) before and after along an axis.
fn padding(axis: i64, before: i64, after: i64) -> Pad {
    Pad { pads: vec![before, after].into(), axes: vec![axis].into(), mode: PadMode::Constant }
}

/// The radices of a transform's passes: 8, 4 and 2 for a power of two, the 2 first of all, then odd primes
/// in ascending order.
fn factors(n: usize) -> Vec<usize> {
    let (mut factors, mut rest) = (Vec::new(), n);
    for radix in [8, 4] {
        while rest.is_multiple_of(radix) {
            factors.push(radix);
            rest /= radix;
        }
    }
    if rest.is_multiple_of(2) {
        rest /= 2;
        factors.push(2);
        let last = factors.len() - 1;
        factors.swap(0, last);
    }
    let mut prime = 3;
    while prime * prime <= rest {
        while rest.is_multiple_of(prime) {
            factors.push(prime);
            rest /= prime;
        }
        prime += 2;
    }
    if rest > 1 {
        factors.push(rest);
    }
    factors
}

/// The smallest number from `n` on with no prime factor above 5.
fn smooth_from(n: usize) -> usize {
    let mut best = n.next_power_of_two();
    let mut fives = 1;
    while fives < best {
        let mut odd = fives;
        while odd < best {
            best = best.min(odd * n.div_ceil(odd).next_power_of_two());
            odd *= 3;
        }
        fives *= 5;
    }
    best
}

/// The transform of a constant, in f64.
fn transformed(x: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let n = x.len();
    let Some(&radix) = factors(n).last() else { return x.to_vec() };
    let parts: Vec<Vec<(f64, f64)>> = (0..radix)
        .map(|first| transformed(&x.iter().copied().skip(first).step_by(radix).collect::<Vec<_>>()))
        .collect();
    let roots: Vec<(f64, f64)> = (0..n).map(|k| root(k, n)).collect();
    let term = |k: usize| {
        parts.iter().enumerate().fold((0.0, 0.0), |(re, im), (first, part)| {
            let ((a, b), (c, s)) = (part[k % part.len()], roots[k * first % n]);
            (re + a * c + b * s, im + b * c - a * s)
        })
    };
    (0..n).map(term).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_multiply_to_the_length() {
        for n in 1..500 {
            assert_eq!(factors(n).iter().product::<usize>(), n);
        }
        assert_eq!(factors(10), [2, 5]);
        assert_eq!(factors(16 * 49 * 3), [2, 8, 3, 7, 7]);
    }

    #[test]
    fn smooth_sizes() {
        for n in 1..2000 {
            let smooth = |n: &usize| factors(*n).iter().all(|f| [2, 3, 4, 5, 8].contains(f));
            assert_eq!(smooth_from(n), (n..).find(smooth).unwrap(), "{n}");
        }
    }
}
