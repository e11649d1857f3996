//! The parts of a Winograd convolution as loops written out: a transform works on one side of a tile, keeps it on the
//! stack, and then on the other, for a few channels at a time.

use super::winograd::{A_NINTH, IN, INPUT, OUT, OUTPUT, POSITIONS, SHIFT, WEIGHT, grid};
use super::{MatMul, OpDef, Reshape, Transpose, Winograd};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Builder, Value, Values};
use crate::loops::{Buffer, Guard, Index, Kernel, KernelBuilder, LoopKind, Role, Val};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType};

/// Channels that a transform works on at a time.
const LANES: usize = 32;

/// The transform of weights as a product with a constant matrix.
pub(super) fn weight_as_product(b: &mut Builder, ins: &[Value]) -> Result<Values, Error> {
    let ty = b.ty(ins[0]).clone();
    let (taps, from, to) = weight_sizes(&ty.shape());
    let both: Vec<f64> = (0..POSITIONS)
        .flat_map(|p| (0..9).map(move |tap| WEIGHT[p / IN][tap / 3] * WEIGHT[p % IN][tap % 3]))
        .collect();
    let matrix = b.constant(Tensor::from_f64s(ty.dtype, &[POSITIONS, 9], &both));
    let each = b.push1(Reshape::to(&[taps, 9, from * to]), &[ins[0]])?;
    let together = b.push1(Transpose::by(&[1, 0, 2]), &[each])?;
    let columns = b.push1(Reshape::to(&[9, taps * from * to]), &[together])?;
    let product = b.push1(MatMul { trans_a: false, trans_b: false }, &[matrix, columns])?;
    Ok(Values::from_slice(&[b.push1(Reshape::to(&[POSITIONS, taps * from, to]), &[product])?]))
}

/// The 3x3 kernels, channels of the operand and channels of the result of weights.
fn weight_sizes(shape: &[usize]) -> (usize, usize, usize) {
    let (kernel, &[_, _, from, to]) = shape.split_last_chunk().expect("they have four dimensions or more");
    (kernel.iter().product(), from, to)
}

/// The kernel of a transform under construction.
struct Emit {
    b: KernelBuilder,
    dtype: DType,
    /// A tile's values between its two sides.
    scratch: Buffer,
}

impl Emit {
    fn new(name: &str, dtype: DType, declare: impl FnOnce(&mut KernelBuilder)) -> Emit {
        let mut b = KernelBuilder::new(name);
        declare(&mut b);
        let scratch = b.buffer("tile", dtype, POSITIONS * LANES, Role::Stack);
        Emit { b, dtype, scratch }
    }

    /// Runs `body` for blocks of channels, with the first of each and how many.
    fn over_channels(&mut self, channels: usize, mut body: impl FnMut(&mut Emit, &Index, usize)) {
        let (whole, rest) = (channels / LANES, channels % LANES);
        if whole > 0 {
            let block = self.b.begin_loop(LoopKind::Serial, whole);
            body(self, &Index::var(block).mul(LANES as i64), LANES);
            self.b.end();
        }
        if rest > 0 {
            body(self, &Index::constant((whole * LANES) as i64), rest);
        }
    }

    /// Where a value of the tile is kept.
    fn kept(row: &Index, column: &Index, lane: &Index) -> Index {
        row.mul(IN as i64).add(column).mul(LANES as i64).add(lane)
    }

    /// A row of a transform times values.
    fn combine(&mut self, row: &[f64], values: &[Val]) -> Val {
        let mut terms: Vec<(f64, Val)> =
            row.iter().copied().zip(values.iter().copied()).filter(|(c, _)| *c != 0.0).collect();
        // One that is taken as it is starts the sum.
        if let Some(plain) = terms.iter().position(|(c, _)| *c == 1.0) {
            terms.swap(0, plain);
        }
        let (dtype, b) = (self.dtype, &mut self.b);
        let mut sum: Option<Val> = None;
        for (c, value) in terms {
            sum = Some(match sum {
                None if c == 1.0 => value,
                None => {
                    let c = b.constant(dtype, c);
                    b.apply(ScalarFn::Mul, &[value, c])
                }
                Some(sum) if c == 1.0 => b.apply(ScalarFn::Add, &[sum, value]),
                Some(sum) if c == -1.0 => b.apply(ScalarFn::Sub, &[sum, value]),
                Some(sum) => {
                    let c = b.constant(dtype, c);
                    b.apply(ScalarFn::Fma, &[value, c, sum])
                }
            });
        }
        sum.expect("no row is empty")
    }

    fn sum(&mut self, a: Val, b: Val) -> Val {
        self.b.apply(ScalarFn::Add, &[a, b])
    }

    fn difference(&mut self, a: Val, b: Val) -> Val {
        self.b.apply(ScalarFn::Sub, &[a, b])
    }

    /// An integer times a power of 2.
    fn times(&mut self, a: Val, power: u32) -> Val {
        let count = self.b.constant(self.dtype, power.ilog2().into());
        self.b.apply(ScalarFn::Shl, &[a, count])
    }

    /// One side of the transform of an input.
    fn transform_input(&mut self, x: &[Val]) -> Vec<Val> {
        if !self.dtype.is_int() {
            return INPUT.iter().map(|row| self.combine(row, x)).collect();
        }
        let [four_1, four_2] = [x[1], x[2]].map(|v| self.times(v, 4));
        let (a, b) = (self.difference(x[4], four_2), self.difference(x[3], four_1));
        let (even, odd) = (self.difference(x[4], x[2]), self.difference(x[3], x[1]));
        let twice = self.times(odd, 2);
        let (first, last) = (self.difference(x[0], x[2]), self.difference(x[5], x[3]));
        let (first, four_odd) = (self.times(first, 4), self.times(odd, 4));
        vec![
            self.sum(even, first),
            self.sum(a, b),
            self.difference(a, b),
            self.sum(even, twice),
            self.difference(even, twice),
            self.difference(last, four_odd),
        ]
    }

    /// One side of the transform of sums.
    fn transform_sums(&mut self, s: &[Val]) -> Vec<Val> {
        if !self.dtype.is_int() {
            return OUTPUT.iter().map(|row| self.combine(row, s)).collect();
        }
        let (p, q) = (self.sum(s[1], s[2]), self.difference(s[1], s[2]));
        let (r, t) = (self.sum(s[3], s[4]), self.difference(s[3], s[4]));
        let (two_0, with_0) = (self.times(s[0], 2), self.sum(p, s[0]));
        let (four, two_q) = (self.times(with_0, 4), self.times(q, 2));
        let (first, second) = (self.sum(r, four), self.sum(two_q, t));
        let (third, two_t) = (self.sum(p, r), self.times(t, 2));
        let (two_5, four_5) = (self.times(s[5], 2), self.times(s[5], 4));
        let six_5 = self.sum(two_5, four_5);
        let fourth = self.sum(q, two_t);
        let fourth = self.sum(fourth, six_5);
        vec![self.sum(first, two_0), self.times(second, 2), self.times(third, 4), self.times(fourth, 4)]
    }

    /// One side of the transform of integer weights.
    fn transform_weights(&mut self, w: &[Val]) -> Vec<Val> {
        let (outer, four, middle) = (self.sum(w[0], w[2]), self.times(w[2], 4), self.times(w[1], 2));
        let (all, wide) = (self.sum(outer, w[1]), self.sum(w[0], four));
        vec![
            w[0],
            self.b.apply(ScalarFn::Neg, &[all]),
            self.difference(w[1], outer),
            self.sum(wide, middle),
            self.difference(wide, middle),
            w[2],
        ]
    }

    /// The first values of one row or column of the tile kept.
    fn row(&mut self, count: usize, at: impl Fn(&Index) -> Index) -> Vec<Val> {
        (0..count as i64).map(|k| self.b.load(self.scratch, at(&Index::constant(k)))).collect()
    }
}

/// The loops that transform integer weights.
pub(super) fn weight_kernel(w: &TensorType) -> Kernel {
    let shape = w.shape();
    let (taps, from, to) = weight_sizes(&shape);
    let mut buffers = None;
    let mut e = Emit::new("winograd_weight", w.dtype, |b| {
        let weights = b.buffer("w", w.dtype, shape.iter().product(), Role::In);
        buffers = Some((weights, b.buffer("u", w.dtype, POSITIONS * taps * from * to, Role::Out)));
    });
    let (weights, transformed) = buffers.expect("they are declared");
    let term = Index::var(e.b.begin_loop(LoopKind::Parallel, taps * from));
    let [tap, channel] = [0, 1].map(|at| Index::unflatten(&term, &[taps, from])[at].clone());
    e.over_channels(to, |e, first, lanes| {
        let column = Index::var(e.b.begin_loop(LoopKind::Serial, 3));
        let lane = Index::var(e.b.begin_loop(LoopKind::Vector, lanes));
        let values: Vec<Val> = (0..3)
            .map(|i| {
                let inner = tap.mul(9).add(&column).add_const(3 * i);
                let at = inner.mul(from as i64).add(&channel);
                e.b.load(weights, at.mul(to as i64).add(first).add(&lane))
            })
            .collect();
        for (row, value) in (0..).zip(e.transform_weights(&values)) {
            e.b.store(e.scratch, Emit::kept(&Index::constant(row), &column, &lane), value);
        }
        e.b.end();
        e.b.end();
        let row = Index::var(e.b.begin_loop(LoopKind::Serial, IN));
        let lane = Index::var(e.b.begin_loop(LoopKind::Vector, lanes));
        let values = e.row(3, |k| Emit::kept(&row, k, &lane));
        for (column, value) in (0..).zip(e.transform_weights(&values)) {
            let at = row.mul(IN as i64).add_const(column).mul((taps * from) as i64).add(&term);
            e.b.store(transformed, at.mul(to as i64).add(first).add(&lane), value);
        }
        e.b.end();
        e.b.end();
    });
    e.b.end();
    e.b.finish()
}

/// The loops that transform an input.
pub(super) fn input_kernel(op: &Winograd, x: &TensorType) -> Kernel {
    let window = op.window().expect("infer accepted the window");
    let result = op.result_of(x).expect("infer accepted the window");
    let grid = grid(&result.iter().filter_map(Dim::as_fixed).collect::<Shape>());
    let shape = x.shape();
    let (&channels, places) = shape.split_last().expect("they have four dimensions or more");
    let (tiles, kernel) = (grid.iter().product::<usize>(), op.taps());
    let taps: usize = kernel.iter().product();
    let mut buffers = None;
    let mut e = Emit::new(op.name(), x.dtype, |b| {
        let from = b.buffer("x", x.dtype, shape.iter().product(), Role::In);
        buffers = Some((from, b.buffer("v", x.dtype, POSITIONS * tiles * taps * channels, Role::Out)));
    });
    let (from, to) = buffers.expect("they are declared");
    let tile = Index::var(e.b.begin_loop(LoopKind::Parallel, tiles));
    let place = Index::unflatten(&tile, &grid);
    let tap = match taps {
        1 => Index::constant(0),
        taps => Index::var(e.b.begin_loop(LoopKind::Serial, taps)),
    };
    let mut tap_at = Index::unflatten(&tap, &kernel);
    tap_at.resize(places.len() - 1, Index::constant(0));
    e.over_channels(channels, |e, first, lanes| {
        let column = Index::var(e.b.begin_loop(LoopKind::Serial, IN));
        let lane = Index::var(e.b.begin_loop(LoopKind::Vector, lanes));
        let values: Vec<Val> = (0..IN as i64)
            .map(|i| {
                let mut out = place[1..].to_vec();
                let within = [Index::constant(i), column.clone()];
                for (at, within) in out[kernel.len()..].iter_mut().zip(within) {
                    *at = at.mul(OUT as i64).add(&within);
                }
                let (source, guards) = window.index(&out, &tap_at, &places[1..]);
                let open = guards.into_iter().filter(|g| g.as_known() != Some(true)).collect();
                let at: Vec<Index> = place[..1].iter().cloned().chain(source).collect();
                let pixel = Index::flatten(&at, places);
                e.b.load_guarded(from, pixel.mul(channels as i64).add(first).add(&lane), open)
            })
            .collect();
        for (row, value) in (0..).zip(e.transform_input(&values)) {
            e.b.store(e.scratch, Emit::kept(&Index::constant(row), &column, &lane), value);
        }
        e.b.end();
        e.b.end();
        let row = Index::var(e.b.begin_loop(LoopKind::Serial, IN));
        let lane = Index::var(e.b.begin_loop(LoopKind::Vector, lanes));
        let values = e.row(IN, |k| Emit::kept(&row, k, &lane));
        for (column, value) in (0..).zip(e.transform_input(&values)) {
            let at = row.mul(IN as i64).add_const(column).mul(tiles as i64).add(&tile);
            let at = at.mul(taps as i64).add(&tap);
            e.b.store(to, at.mul(channels as i64).add(first).add(&lane), value);
        }
        e.b.end();
        e.b.end();
    });
    if taps > 1 {
        e.b.end();
    }
    e.b.end();
    e.b.finish()
}

/// The loops that transform sums.
pub(super) fn output_kernel(op: &Winograd, ins: &[TensorType]) -> Kernel {
    let (dtype, shape) = (ins[0].dtype, ins[0].shape());
    let (tiles, channels) = (shape[1], shape[2]);
    let result = op.result();
    let [height, width] = [2, 1].map(|from_end| result[result.len() - from_end]);
    let mut buffers = None;
    let mut e = Emit::new(op.name(), dtype, |b| {
        let from = b.buffer("sums", dtype, shape.iter().product(), Role::In);
        let bias = (ins.len() > 1).then(|| b.buffer("bias", dtype, channels, Role::In));
        buffers =
            Some((from, bias, b.buffer("y", dtype, result.iter().product::<usize>() * channels, Role::Out)));
    });
    let (from, bias, to) = buffers.expect("they are declared");
    let tile = Index::var(e.b.begin_loop(LoopKind::Parallel, tiles));
    let mut place = Index::unflatten(&tile, &grid(&result));
    let [right, down] = [(); 2].map(|()| place.pop().expect("there are two or more").mul(OUT as i64));
    e.over_channels(channels, |e, first, lanes| {
        let column = Index::var(e.b.begin_loop(LoopKind::Serial, IN));
        let lane = Index::var(e.b.begin_loop(LoopKind::Vector, lanes));
        let values: Vec<Val> = (0..IN as i64)
            .map(|i| {
                let at = column.add_const(i * IN as i64).mul(tiles as i64).add(&tile);
                e.b.load(from, at.mul(channels as i64).add(first).add(&lane))
            })
            .collect();
        for (row, value) in (0..).zip(e.transform_sums(&values)) {
            e.b.store(e.scratch, Emit::kept(&Index::constant(row), &column, &lane), value);
        }
        e.b.end();
        e.b.end();
        let row = Index::var(e.b.begin_loop(LoopKind::Serial, OUT));
        let h = down.add(&row);
        e.b.begin_if(&[Guard::new(h.clone(), height)]);
        // Columns that the result may not have are written one by one.
        let together = width.is_multiple_of(OUT);
        let at_once = if together { OUT } else { 1 };
        for column in (0..OUT).step_by(at_once) {
            let w = |j: usize| right.add_const(j as i64);
            if !together {
                e.b.begin_if(&[Guard::new(w(column), width)]);
            }
            let lane = Index::var(e.b.begin_loop(LoopKind::Vector, lanes));
            let values = e.row(IN, |k| Emit::kept(&row, k, &lane));
            let sums = e.transform_sums(&values);
            for (j, mut value) in sums.into_iter().enumerate().skip(column).take(at_once) {
                if dtype.is_int() {
                    let ninth = if dtype == DType::I16 { f64::from(A_NINTH as i16) } else { A_NINTH.into() };
                    let ninth = e.b.constant(dtype, ninth);
                    let count = e.b.constant(dtype, SHIFT.into());
                    value = e.b.apply(ScalarFn::Mul, &[value, ninth]);
                    value = e.b.apply(ScalarFn::Shr, &[value, count]);
                }
                if let Some(bias) = bias {
                    let bias = e.b.load(bias, first.add(&lane));
                    value = e.b.apply(ScalarFn::Add, &[value, bias]);
                }
                let at: Vec<Index> = place.iter().cloned().chain([h.clone(), w(j)]).collect();
                let pixel = Index::flatten(&at, &result);
                e.b.store(to, pixel.mul(channels as i64).add(first).add(&lane), value);
            }
            e.b.end();
            if !together {
                e.b.end();
            }
        }
        e.b.end();
        e.b.end();
    });
    e.b.end();
    e.b.finish()
}
