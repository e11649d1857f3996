//! The loops of `dft_pass`: small transforms written out, over lanes of independent ones.
//!
//! Products and sums are rounded one by one, in the order in which pocketfft (M. Reinecke; numpy's
//! transforms) has them, so that results agree with numpy's to the bit where lengths factor alike.

use crate::dtype::DType;
use crate::loops::{Buffer, Index, Kernel, KernelBuilder, LoopKind, Role, Val};
use crate::scalar::ScalarFn;

/// `e^(2 pi i k / n)` as cosine and sine.
///
/// The angle is brought below an eighth of a turn, so that multiples of a quarter are exact.
pub(super) fn root(k: usize, n: usize) -> (f64, f64) {
    // In units of which a turn has 8 n.
    let (n, mut a) = (n as u128, 8 * (k as u128 % n as u128));
    let below = a > 4 * n;
    if below {
        a = 8 * n - a;
    }
    let left = a > 2 * n;
    if left {
        a = 4 * n - a;
    }
    let steep = a > n;
    if steep {
        a = 2 * n - a;
    }
    let angle = std::f64::consts::FRAC_PI_4 * (a as f64 / n as f64);
    let (mut c, mut s) = (libm::cos(angle), libm::sin(angle));
    if steep {
        (c, s) = (s, c);
    }
    (if left { -c } else { c }, if below { -s } else { s })
}

/// The most lanes of one vector loop; the most of them that divide the dimension are taken.
const LANES: usize = 1024;

/// With fewer lanes than this along the last dimension, the one before it is better.
const FEW: usize = 4;

/// Parallel loops aim for at least this many iterations.
const ITERATIONS: usize = 16;

/// Fewer elements than this are not worth starting other threads for.
const PARALLEL_ELEMENTS: usize = 1 << 14;

/// The largest divisor of `n` that is at most `most`.
fn divisor(n: usize, most: usize) -> usize {
    (1..=most.min(n)).rev().find(|d| n.is_multiple_of(*d)).unwrap_or(1)
}

/// The kernel of a pass over parts of shape `[outer, radix, turns, inner]`.
pub(super) fn kernel(dtype: DType, shape: [usize; 4], turned: bool, inverse: bool) -> Kernel {
    let [outer, radix, turns, inner] = shape;
    let len = shape.iter().product();
    let mut b = KernelBuilder::new("dft_pass");
    let parts = |b: &mut KernelBuilder, names: [&str; 2], len, role| {
        names.map(|name| b.buffer(name, dtype, len, role))
    };
    let from = parts(&mut b, ["re", "im"], len, Role::In);
    let turn = turned.then(|| parts(&mut b, ["cos", "sin"], (radix - 1) * turns, Role::In));
    let to = parts(&mut b, ["out_re", "out_im"], len, Role::Out);

    // Lanes run along one of the last two dimensions; the other and the first are loops around them.
    let along_inner = inner >= FEW || inner >= turns;
    let (along, across) = if along_inner { (inner, turns) } else { (turns, inner) };
    let lanes = divisor(along, LANES);
    let rows = divisor(across, (across / ITERATIONS).clamp(1, 64));
    let outermost = [outer, across / rows, along / lanes];
    let kind = if len >= PARALLEL_ELEMENTS { LoopKind::Parallel } else { LoopKind::Serial };
    b.repeat(kind, outermost.iter().product(), |b, block| {
        let [o, row, lane] = Index::unflatten(&block, &outermost).try_into().expect("three parts");
        b.repeat(LoopKind::Serial, rows, |b, r| {
            let row = row.mul(rows as i64).add(&r);
            b.repeat(LoopKind::Vector, lanes, |b, l| {
                let lane = lane.mul(lanes as i64).add(&l);
                let (i, k) = if along_inner { (row, lane) } else { (lane, row) };
                let terms: Vec<Complex> = (0..radix as i64)
                    .map(|term| {
                        let at = [o.clone(), Index::constant(term), i.clone(), k.clone()];
                        load(b, from, Index::flatten(&at, &shape))
                    })
                    .collect();
                let results = Small { b: &mut *b, inverse }.transform(&terms);
                for (j, mut y) in results.into_iter().enumerate() {
                    if let (Some(turn), 1..) = (turn, j) {
                        let w = load(b, turn, i.add_const(((j - 1) * turns) as i64));
                        y = Small { b: &mut *b, inverse }.times(y, w);
                    }
                    let at = [o.clone(), i.clone(), Index::constant(j as i64), k.clone()];
                    let at = Index::flatten(&at, &[outer, turns, radix, inner]);
                    b.store(to[0], at.clone(), y.re);
                    b.store(to[1], at, y.im);
                }
            });
        });
    });
    b.finish()
}

fn load(b: &mut KernelBuilder, [re, im]: [Buffer; 2], at: Index) -> Complex {
    Complex { re: b.load(re, at.clone()), im: b.load(im, at) }
}

#[derive(Clone, Copy)]
struct Complex {
    re: Val,
    im: Val,
}

/// Writes small transforms.
struct Small<'b> {
    b: &'b mut KernelBuilder,
    inverse: bool,
}

impl Small<'_> {
    fn transform(&mut self, x: &[Complex]) -> Vec<Complex> {
        match *x {
            [x0, x1] => vec![self.add(x0, x1), self.sub(x0, x1)],
            [x0, x1, x2, x3] => self.four([x0, x1, x2, x3]).to_vec(),
            [x0, x1, x2, x3, x4, x5, x6, x7] => {
                let odd = self.four([x1, x3, x5, x7]);
                let odd = [odd[0], self.eighth(odd[1]), self.quarter(odd[2]), self.three_eighths(odd[3])];
                let even = self.four([x0, x2, x4, x6]);
                let mut y = even.to_vec();
                y.extend_from_slice(&even);
                for j in 0..4 {
                    y[j] = self.add(even[j], odd[j]);
                    y[j + 4] = self.sub(even[j], odd[j]);
                }
                y
            }
            _ => self.odd(x),
        }
    }

    fn four(&mut self, x: [Complex; 4]) -> [Complex; 4] {
        let (even, apart) = (self.add(x[0], x[2]), self.sub(x[0], x[2]));
        let (odd, turned) = (self.add(x[1], x[3]), self.sub(x[1], x[3]));
        let turned = self.quarter(turned);
        [self.add(even, odd), self.add(apart, turned), self.sub(even, odd), self.sub(apart, turned)]
    }

    /// Of an odd number of terms: those at equal distance from the first have cosines in common and
    /// opposite sines.
    fn odd(&mut self, x: &[Complex]) -> Vec<Complex> {
        let (count, half) = (x.len(), x.len() / 2);
        let mut y = x.to_vec();
        let sums: Vec<Complex> = (1..=half).map(|m| self.add(x[m], x[count - m])).collect();
        let differences: Vec<Complex> = (1..=half).map(|m| self.sub(x[m], x[count - m])).collect();
        y[0] = sums.iter().fold(x[0], |total, &term| self.add(total, term));
        for j in 1..=half {
            let (mut even, mut odd) = (x[0], None);
            for m in 1..=half {
                let (c, s) = root(j * m, count);
                let term = self.scaled(sums[m - 1], c);
                even = self.add(even, term);
                let term = self.scaled(differences[m - 1], if self.inverse { s } else { -s });
                odd = Some(odd.map_or(term, |total| self.add(total, term)));
            }
            let odd = odd.expect("there are at least three terms");
            y[j].re = self.b.apply(ScalarFn::Sub, &[even.re, odd.im]);
            y[j].im = self.b.apply(ScalarFn::Add, &[even.im, odd.re]);
            y[count - j].re = self.b.apply(ScalarFn::Add, &[even.re, odd.im]);
            y[count - j].im = self.b.apply(ScalarFn::Sub, &[even.im, odd.re]);
        }
        y
    }

    fn parts(&mut self, f: ScalarFn, x: Complex, y: Complex) -> Complex {
        Complex { re: self.b.apply(f, &[x.re, y.re]), im: self.b.apply(f, &[x.im, y.im]) }
    }

    fn add(&mut self, x: Complex, y: Complex) -> Complex {
        self.parts(ScalarFn::Add, x, y)
    }

    fn sub(&mut self, x: Complex, y: Complex) -> Complex {
        self.parts(ScalarFn::Sub, x, y)
    }

    fn scaled(&mut self, x: Complex, factor: f64) -> Complex {
        let factor = self.b.constant(self.b.dtype(x.re), factor);
        self.parts(ScalarFn::Mul, x, Complex { re: factor, im: factor })
    }

    fn times(&mut self, x: Complex, w: Complex) -> Complex {
        let mut product = |a, b| self.b.apply(ScalarFn::Mul, &[a, b]);
        let (straight, crossed) =
            ([product(x.re, w.re), product(x.im, w.im)], [product(x.re, w.im), product(x.im, w.re)]);
        Complex { re: self.b.apply(ScalarFn::Sub, &straight), im: self.b.apply(ScalarFn::Add, &crossed) }
    }

    fn negated(&mut self, x: Val) -> Val {
        self.b.apply(ScalarFn::Neg, &[x])
    }

    /// Turned by a quarter, in the direction of the transform.
    fn quarter(&mut self, x: Complex) -> Complex {
        match self.inverse {
            false => Complex { re: x.im, im: self.negated(x.re) },
            true => Complex { re: self.negated(x.im), im: x.re },
        }
    }

    fn eighth(&mut self, x: Complex) -> Complex {
        let turned = self.quarter(x);
        let sum = self.add(x, turned);
        self.scaled(sum, std::f64::consts::FRAC_1_SQRT_2)
    }

    fn three_eighths(&mut self, x: Complex) -> Complex {
        let turned = self.quarter(x);
        let difference = self.sub(turned, x);
        self.scaled(difference, std::f64::consts::FRAC_1_SQRT_2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_of_one() {
        for n in [1, 2, 4, 8] {
            assert_eq!(root(0, n), (1.0, 0.0));
        }
        assert_eq!([root(1, 4), root(2, 4), root(3, 4)], [(0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)]);
        for n in [3, 7, 8, 100] {
            for k in 0..2 * n {
                let (angle, (c, s)) = (2.0 * std::f64::consts::PI * k as f64 / n as f64, root(k, n));
                assert!((c - angle.cos()).abs() < 1e-14 && (s - angle.sin()).abs() < 1e-14, "{k} of {n}");
            }
        }
    }
}
