//! The parts of a Winograd convolution as loops written out: a transform works on one side of a tile, keeps it on the
//! stack, and then on the other, for a few channels at a time.

use super::winograd::{IN, INPUT, OUT, OUTPUT, POSITIONS, WEIGHT};
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

    /// The values of one row or column of the tile kept.
    fn row(&mut self, at: impl Fn(&Index) -> Index) -> Vec<Val> {
        (0..IN as i64).map(|k| self.b.load(self.scratch, at(&Index::constant(k)))).collect()
    }
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
        for (row, coefficients) in (0..).zip(&INPUT) {
            let value = e.combine(coefficients, &values);
            e.b.store(e.scratch, Emit::kept(&Index::constant(row), &column, &lane), value);
        }
        e.b.end();
        e.b.end();
        let row = Index::var(e.b.begin_loop(LoopKind::Serial, IN));
        let lane = Index::var(e.b.begin_loop(LoopKind::Vector, lanes));
        let values = e.row(|k| Emit::kept(&row, k, &lane));
        for (column, coefficients) in (0..).zip(&INPUT) {
            let value = e.combine(coefficients, &values);
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
        for (row, coefficients) in (0..).zip(&OUTPUT) {
            let value = e.combine(coefficients, &values);
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
            let values = e.row(|k| Emit::kept(&row, k, &lane));
            for (j, coefficients) in OUTPUT.iter().enumerate().skip(column).take(at_once) {
                let mut value = e.combine(coefficients, &values);
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
