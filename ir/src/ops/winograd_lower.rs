//! The parts of a Winograd convolution as loops written out: a transform works on one side of a tile, keeps it on the
//! stack, and then on the other, for a few channels at a time.

use super::winograd::{A_NINTH, IN, INPUT, OUT, OUTPUT, POSITIONS, SHIFT, WEIGHT};
use super::{MatMul, OpDef, Reshape, Winograd};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Builder, Value, Values};
use crate::loops::{Buffer, Guard, Index, Kernel, KernelBuilder, LoopKind, Role, Val};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// Channels that a transform works on at a time.
const LANES: usize = 32;

/// The transform of weights as a product with a constant matrix.
pub(super) fn weight_as_product(b: &mut Builder, ins: &[Value]) -> Result<Values, Error> {
    let ty = b.ty(ins[0]).clone();
    let shape = ty.shape();
    let (from, to) = (shape[2], shape[3]);
    let both: Vec<f64> = (0..POSITIONS)
        .flat_map(|p| (0..9).map(move |tap| WEIGHT[p / IN][tap / 3] * WEIGHT[p % IN][tap % 3]))
        .collect();
    let matrix = b.constant(Tensor::from_f64s(ty.dtype, &[POSITIONS, 9], &both));
    let taps = b.push1(Reshape::to(&[9, from * to]), &[ins[0]])?;
    let product = b.push1(MatMul { trans_a: false, trans_b: false }, &[matrix, taps])?;
    Ok(Values::from_slice(&[b.push1(Reshape::to(&[POSITIONS, from, to]), &[product])?]))
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
    let (from, to) = (shape[2], shape[3]);
    let mut buffers = None;
    let mut e = Emit::new("winograd_weight", w.dtype, |b| {
        let weights = b.buffer("w", w.dtype, shape.iter().product(), Role::In);
        buffers = Some((weights, b.buffer("u", w.dtype, POSITIONS * from * to, Role::Out)));
    });
    let (weights, transformed) = buffers.expect("they are declared");
    let channel = Index::var(e.b.begin_loop(LoopKind::Parallel, from));
    let place = |tap: &Index, first: &Index, lane: &Index| {
        tap.mul(from as i64).add(&channel).mul(to as i64).add(first).add(lane)
    };
    e.over_channels(to, |e, first, lanes| {
        let column = Index::var(e.b.begin_loop(LoopKind::Serial, 3));
        let lane = Index::var(e.b.begin_loop(LoopKind::Vector, lanes));
        let values: Vec<Val> =
            (0..3).map(|i| e.b.load(weights, place(&column.add_const(3 * i), first, &lane))).collect();
        for (row, value) in (0..).zip(e.transform_weights(&values)) {
            e.b.store(e.scratch, Emit::kept(&Index::constant(row), &column, &lane), value);
        }
        e.b.end();
        e.b.end();
        let row = Index::var(e.b.begin_loop(LoopKind::Serial, IN));
        let lane = Index::var(e.b.begin_loop(LoopKind::Vector, lanes));
        let values = e.row(3, |k| Emit::kept(&row, k, &lane));
        for (column, value) in (0..).zip(e.transform_weights(&values)) {
            e.b.store(transformed, place(&row.mul(IN as i64).add_const(column), first, &lane), value);
        }
        e.b.end();
        e.b.end();
    });
    e.b.end();
    e.b.finish()
}

/// The loops that transform an input.
pub(super) fn input_kernel(op: &Winograd, x: &TensorType) -> Kernel {
    let shape = x.shape();
    let (height, width, channels) = (shape[1], shape[2], shape[3]);
    let result = op.result_of(&shape);
    let tiles = Winograd::tiles(result);
    let mut buffers = None;
    let mut e = Emit::new(op.name(), x.dtype, |b| {
        let from = b.buffer("x", x.dtype, shape.iter().product(), Role::In);
        buffers = Some((from, b.buffer("v", x.dtype, POSITIONS * tiles * channels, Role::Out)));
    });
    let (from, to) = buffers.expect("they are declared");
    let tile = Index::var(e.b.begin_loop(LoopKind::Parallel, tiles));
    let grid = [result[0], result[1].div_ceil(OUT), result[2].div_ceil(OUT)];
    let place = Index::unflatten(&tile, &grid);
    e.over_channels(channels, |e, first, lanes| {
        let column = Index::var(e.b.begin_loop(LoopKind::Serial, IN));
        let lane = Index::var(e.b.begin_loop(LoopKind::Vector, lanes));
        let w = place[2].mul(OUT as i64).add(&column).add_const(-op.pad(1));
        let values: Vec<Val> = (0..IN as i64)
            .map(|i| {
                let h = place[1].mul(OUT as i64).add_const(i - op.pad(0));
                let guards = [Guard::new(h.clone(), height), Guard::new(w.clone(), width)];
                let open = guards.into_iter().filter(|g| g.as_known() != Some(true)).collect();
                let pixel = place[0].mul(height as i64).add(&h).mul(width as i64).add(&w);
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
            e.b.store(to, at.mul(channels as i64).add(first).add(&lane), value);
        }
        e.b.end();
        e.b.end();
    });
    e.b.end();
    e.b.finish()
}

/// The loops that transform sums.
pub(super) fn output_kernel(op: &Winograd, ins: &[TensorType]) -> Kernel {
    let (dtype, shape) = (ins[0].dtype, ins[0].shape());
    let (tiles, channels) = (shape[1], shape[2]);
    let result @ [images, height, width] = op.result();
    let mut buffers = None;
    let mut e = Emit::new(op.name(), dtype, |b| {
        let from = b.buffer("sums", dtype, shape.iter().product(), Role::In);
        let bias = (ins.len() > 1).then(|| b.buffer("bias", dtype, channels, Role::In));
        buffers = Some((from, bias, b.buffer("y", dtype, images * height * width * channels, Role::Out)));
    });
    let (from, bias, to) = buffers.expect("they are declared");
    let tile = Index::var(e.b.begin_loop(LoopKind::Parallel, tiles));
    let grid = [result[0], height.div_ceil(OUT), width.div_ceil(OUT)];
    let place = Index::unflatten(&tile, &grid);
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
        let h = place[1].mul(OUT as i64).add(&row);
        e.b.begin_if(&[Guard::new(h.clone(), height)]);
        // Columns that the result may not have are written one by one.
        let together = width.is_multiple_of(OUT);
        let at_once = if together { OUT } else { 1 };
        for column in (0..OUT).step_by(at_once) {
            let w = |j: usize| place[2].mul(OUT as i64).add_const(j as i64);
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
                let pixel = place[0].mul(height as i64).add(&h).mul(width as i64).add(&w(j));
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
