//! `rnn`, `gru` and `lstm`: recurrent layers, in one direction or both.

use super::cell::{Cell, CellKind, Weights};
use super::{
    Broadcast, Concat, Lowered, MatMul, OpDef, RecurrentSteps, Reshape, Slice, Transpose, Vjp, VjpCx, Vmap,
    VmapCx, arity,
};
use crate::attrs::{AttrError, Codec, Keyword, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType};

/// In which order steps are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first to the last.
    Forward,
    /// From each sequence's last to its first.
    Reverse,
    /// Both, with weights and states of their own.
    Bidirectional,
}

impl Keyword for Direction {
    const ALL: &'static [(&'static str, Direction)] = &[
        ("forward", Direction::Forward),
        ("reverse", Direction::Reverse),
        ("bidirectional", Direction::Bidirectional),
    ];
}

impl Direction {
    /// Whether each direction of the layer is the reverse one.
    fn reversed(self) -> &'static [bool] {
        match self {
            Direction::Forward => &[false],
            Direction::Reverse => &[true],
            Direction::Bidirectional => &[false, true],
        }
    }
}

/// A recurrent layer of D directions, G gates and H elements of state.
///
/// Operands are `x` `[T, N, I]`, `w` `[D, G*H, I]`, `r` `[D, G*H, H]`; then, if the attributes say so, the
/// biases `[D, 2*G*H]` (of `w`, then of `r`), the sequences' lengths `[N]`, the first states `h` and `c`
/// `[D, N, H]`, and an LSTM's peepholes `[D, 3*H]` (of the gates i, o, f). Results are `h` of every step
/// `[T, D, N, H]`, 0 past a sequence's end, and the last `h` and for an LSTM `c` `[D, N, H]`. With
/// `batch_first` the dimensions are `[N, T, I]`, `[N, D, H]` and `[N, T, D, H]`.
///
/// Gates are in ONNX's order: z, r, h and i, o, f, c. f16 and bf16 are computed in f32.
///
/// - (C1) operands are floats of one type, the lengths i32;
/// - (C2) their shapes fit;
/// - (C3) the activations are known, as many as the cell has in all directions.
///
/// ONNX: `RNN`, `GRU` and `LSTM` (7..), by their importer.
#[derive(Clone, Debug, PartialEq)]
pub struct Recurrent {
    /// The cell.
    pub cell: Cell,
    /// In which order steps are taken.
    pub direction: Direction,
    /// Whether the batch is the first dimension.
    pub batch_first: bool,
    /// Whether biases are an operand.
    pub bias: bool,
    /// Whether lengths are an operand.
    pub sequence_lens: bool,
    /// Whether the first `h` is an operand; else it is 0.
    pub initial_h: bool,
    /// Whether the first `c` is an operand; else it is 0.
    pub initial_c: bool,
    /// Whether peepholes are an operand.
    pub peepholes: bool,
}

/// Which operand is which.
struct Places {
    bias: Option<usize>,
    lens: Option<usize>,
    h: Option<usize>,
    c: Option<usize>,
    peepholes: Option<usize>,
    count: usize,
}

impl Recurrent {
    /// A forward layer without optional operands.
    pub fn plain(kind: CellKind) -> Recurrent {
        Recurrent {
            cell: Cell::plain(kind),
            direction: Direction::Forward,
            batch_first: false,
            bias: false,
            sequence_lens: false,
            initial_h: false,
            initial_c: false,
            peepholes: false,
        }
    }

    fn is_lstm(&self) -> bool {
        self.cell.kind == CellKind::Lstm
    }

    fn places(&self) -> Places {
        let mut count = 3;
        let mut next = |present: bool| {
            count += usize::from(present);
            present.then_some(count - 1)
        };
        let (bias, lens, h) = (next(self.bias), next(self.sequence_lens), next(self.initial_h));
        let (c, peepholes) = (next(self.initial_c && self.is_lstm()), next(self.peepholes && self.is_lstm()));
        Places { bias, lens, h, c, peepholes, count }
    }

    /// `[D, N, H]`, or `[N, D, H]` with the batch first.
    fn state_dims<T: Clone>(&self, directions: T, batch: T, size: T) -> [T; 3] {
        if self.batch_first { [batch, directions, size] } else { [directions, batch, size] }
    }
}

impl OpDef for Recurrent {
    const NAMES: &'static [&'static str] = &["rnn", "gru", "lstm"];

    fn with_name(name: &str) -> Recurrent {
        let kind = CellKind::ALL.iter().find(|(word, _)| *word == name);
        Recurrent::plain(kind.map_or(CellKind::Rnn, |(_, kind)| *kind))
    }

    fn name(&self) -> &'static str {
        self.cell.kind.word()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        self.cell.attrs(codec)?;
        codec.attr("direction", Slot::Keyword(&mut self.direction))?;
        codec.attr("batch_first", Slot::Bool(&mut self.batch_first))?;
        codec.attr("bias", Slot::Bool(&mut self.bias))?;
        codec.attr("sequence_lens", Slot::Bool(&mut self.sequence_lens))?;
        codec.attr("initial_h", Slot::Bool(&mut self.initial_h))?;
        if self.is_lstm() {
            codec.attr("initial_c", Slot::Bool(&mut self.initial_c))?;
            codec.attr("peepholes", Slot::Bool(&mut self.peepholes))?;
        }
        Ok(())
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        let places = self.places();
        arity(ins, places.count..=places.count)?;
        let (x, w, r) = (ins[0], ins[1], ins[2]);
        for (i, ty) in ins.iter().enumerate() {
            let fits = match Some(i) == places.lens {
                true => ty.dtype == DType::I32,
                false => ty.dtype.is_float() && ty.dtype == x.dtype,
            };
            require!(fits, "C1", "operand {i} of {} is {ty}", self.name());
        }
        require!(x.rank() == 3 && w.rank() == 3 && r.rank() == 3, "C2", "{x}, {w} and {r} are not of rank 3");
        let (steps, batch) = match self.batch_first {
            false => (&x.dims[0], &x.dims[1]),
            true => (&x.dims[1], &x.dims[0]),
        };
        let directions = Dim::Fixed(self.direction.reversed().len());
        let size = r.dims[2].clone();
        let times = |k: usize| size.as_fixed().map_or(Dim::Unknown, |n| Dim::Fixed(n.saturating_mul(k)));
        let gates = self.cell.kind.gates();
        let state = self.state_dims(directions.clone(), batch.clone(), size.clone());
        let wanted = [
            (Some(1), vec![directions.clone(), times(gates), x.dims[2].clone()]),
            (Some(2), vec![directions.clone(), times(gates), size.clone()]),
            (places.bias, vec![directions.clone(), times(2 * gates)]),
            (places.lens, vec![batch.clone()]),
            (places.h, state.to_vec()),
            (places.c, state.to_vec()),
            (places.peepholes, vec![directions.clone(), times(3)]),
        ];
        for (place, dims) in &wanted {
            let Some(ty) = place.map(|i| ins[i]) else { continue };
            let fits = ty.rank() == dims.len() && ty.dims.iter().zip(dims).all(|(a, b)| a.may_equal(b));
            let wanted = TensorType::new(ty.dtype, dims.iter().cloned());
            require!(fits, "C2", "an operand of {} is {ty}, not {wanted}", self.name());
        }
        self.cell.parsed(self.direction.reversed().len(), "C3")?;
        let every = match self.batch_first {
            false => [steps, &directions, batch, &size],
            true => [batch, steps, &directions, &size],
        };
        let state = TensorType::new(x.dtype, state);
        let mut outs = vec![TensorType::new(x.dtype, every.map(Dim::clone)), state.clone()];
        if self.is_lstm() {
            outs.push(state);
        }
        Ok(outs)
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let places = self.places();
        let reversed = self.direction.reversed();
        let directions = reversed.len();
        let parsed = self.cell.parsed(directions, "C3").map_err(|v| v.to_string())?;
        let x_shape = ins[0].shape();
        let (steps, batch) =
            if self.batch_first { (x_shape[1], x_shape[0]) } else { (x_shape[0], x_shape[1]) };
        let (features, size) = (x_shape[2], ins[2].shape()[2]);
        let gates = self.cell.kind.gates() * size;
        let (x, w, r) = (ins[0].to_f64s(), ins[1].to_f64s(), ins[2].to_f64s());
        let optional = |place: Option<usize>| place.map(|i| ins[i].to_f64s());
        let (biases, peepholes) = (optional(places.bias), optional(places.peepholes));
        let lens = places.lens.map(|i| ins[i].to_ints());
        let states = |place| optional(place).unwrap_or_else(|| vec![0.0; directions * batch * size]);
        let (mut h, mut c) = (states(places.h), states(places.c));
        let mut y = vec![0.0; steps * directions * batch * size];
        for (d, &reverse) in reversed.iter().enumerate() {
            let w = &w[d * gates * features..][..gates * features];
            let r = &r[d * gates * size..][..gates * size];
            let r: Vec<f64> = (0..size * gates).map(|i| r[i % gates * size + i / gates]).collect();
            let of_w = |j: usize| biases.as_ref().map_or(0.0, |b| b[d * 2 * gates + j]);
            let of_r = |j: usize| biases.as_ref().map_or(0.0, |b| b[d * 2 * gates + gates + j]);
            // The bias that a GRU resets stays apart.
            let reset = self.cell.kind == CellKind::Gru && self.cell.linear_before_reset;
            let hidden = |j: usize| reset && j >= 2 * size;
            let bias: Vec<f64> =
                (0..gates).map(|j| of_w(j) + if hidden(j) { 0.0 } else { of_r(j) }).collect();
            let hidden_bias: Vec<f64> = (gates - size..gates).map(of_r).collect();
            let p = peepholes.as_ref().map(|p| &p[d * 3 * size..][..3 * size]);
            let weights = Weights { r: &r, rb: Some(&hidden_bias), p };
            for n in 0..batch {
                let row = if self.batch_first { n * directions + d } else { d * batch + n } * size;
                let len = lens.as_ref().map_or(steps, |lens| (lens[n].max(0) as usize).min(steps));
                for step in 0..len {
                    let t = if reverse { len - 1 - step } else { step };
                    let from = if self.batch_first { n * steps + t } else { t * batch + n } * features;
                    let input: Vec<f64> = (0..gates)
                        .map(|j| {
                            let products = (0..features).map(|i| x[from + i] * w[j * features + i]);
                            bias[j] + products.sum::<f64>()
                        })
                        .collect();
                    let (h, c) = (&mut h[row..][..size], &mut c[row..][..size]);
                    self.cell.step(&parsed[d], &weights, &input, h, c);
                    let to = match self.batch_first {
                        false => (t * directions + d) * batch + n,
                        true => (n * steps + t) * directions + d,
                    };
                    y[to * size..][..size].copy_from_slice(h);
                }
            }
        }
        let dtype = ins[0].dtype();
        let every = match self.batch_first {
            false => [steps, directions, batch, size],
            true => [batch, steps, directions, size],
        };
        let state = self.state_dims(directions, batch, size);
        let mut outs = vec![Tensor::from_f64s(dtype, &every, &y), Tensor::from_f64s(dtype, &state, &h)];
        if self.is_lstm() {
            outs.push(Tensor::from_f64s(dtype, &state, &c));
        }
        Ok(outs)
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        if cx.ins.iter().chain(cx.outs).any(|&v| cx.shape(v).contains(&0)) {
            return Ok(Vjp::Undefined);
        }
        let values = self.decomposed(cx.builder, cx.ins)?;
        // The steps of a gradient are of a scan that gives the results too.
        cx.stand_in(&values);
        Ok(Vjp::Through(values))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let places = self.places();
        if cx.batched[1]
            || cx.batched[2]
            || [places.bias, places.peepholes].into_iter().flatten().any(|i| cx.batched[i])
        {
            let lowered = self.lower(&cx.types(), cx.outs)?;
            return Ok(match lowered {
                Lowered::Graph(body) => Vmap::Through(body),
                _ => Vmap::OneByOne,
            });
        }
        let (step, state, all) = if self.batch_first { (0, 0, 0) } else { (1, 1, 2) };
        let place = |i: usize| match Some(i) {
            Some(0) => Some(step),
            i if i == places.lens => Some(0),
            i if i == places.h || i == places.c => Some(state),
            _ => None,
        };
        let at: Vec<Option<usize>> = (0..places.count).map(place).collect();
        cx.merged(self.clone(), &at, &[all, state, state][..cx.outs.len()])
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        match ins.iter().chain(outs).any(|ty| ty.as_len() == Some(0)) {
            true => Ok(Lowered::Interpret),
            false => Lowered::graph(ins, |b, ins| self.decomposed(b, ins)),
        }
    }
}

impl Recurrent {
    /// All inputs times their weights at once, then the steps, for each direction.
    fn decomposed(&self, b: &mut Builder, ins: &[Value]) -> Result<Values, Error> {
        let places = self.places();
        let dtype = b.ty(ins[0]).dtype;
        let wide = dtype.accumulator();
        let mut x = b.cast(ins[0], wide)?;
        if self.batch_first {
            x = b.push1(Transpose::by(&[1, 0, 2]), &[x])?;
        }
        let x_shape = b.ty(x).shape();
        let (steps, batch, features) = (x_shape[0], x_shape[1], x_shape[2]);
        let size = b.ty(ins[2]).shape()[2];
        let gates = self.cell.kind.gates() * size;
        let x = b.push1(Reshape::to(&[steps * batch, features]), &[x])?;
        let reversed = self.direction.reversed();
        let parsed = self.cell.parsed(reversed.len(), "C3").expect("infer accepted the activations");
        let reset = self.cell.kind == CellKind::Gru && self.cell.linear_before_reset;
        let mut results: [Vec<Value>; 3] = Default::default();
        for (d, &reverse) in reversed.iter().enumerate() {
            let part =
                |b: &mut Builder, place: usize, axis: usize, shape: &[usize]| -> Result<Value, Error> {
                    let slice = b.push1(Slice::along(axis, d as i64, d as i64 + 1), &[ins[place]])?;
                    let slice = b.push1(Reshape::to(shape), &[slice])?;
                    b.cast(slice, wide)
                };
            let w = part(b, 1, 0, &[gates, features])?;
            let mut input = b.push1(MatMul { trans_a: false, trans_b: true }, &[x, w])?;
            let mut hidden_bias = None;
            if let Some(place) = places.bias {
                let cut = |b: &mut Builder, bias, start: usize, len: usize| {
                    b.push1(Slice::along(0, start as i64, (start + len) as i64), &[bias])
                };
                let both = part(b, place, 0, &[2 * gates])?;
                let of_w = cut(b, both, 0, gates)?;
                let mut of_r = cut(b, both, gates, gates)?;
                if reset {
                    hidden_bias = Some(cut(b, of_r, 2 * size, size)?);
                    let kept = cut(b, of_r, 0, 2 * size)?;
                    let zero = b.constant(Tensor::zeros(wide, &[size]));
                    of_r = b.push1(Concat { axis: 0 }, &[kept, zero])?;
                }
                let bias = b.map(ScalarFn::Add, &[of_w, of_r])?;
                input = b.map(ScalarFn::Add, &[input, bias])?;
            }
            let input = b.push1(Reshape::to(&[steps, batch, gates]), &[input])?;
            let r = part(b, 2, 0, &[gates, size])?;
            let mut operands = vec![input, r];
            let state = |b: &mut Builder, place: Option<usize>| match place {
                Some(place) => part(b, place, usize::from(self.batch_first), &[batch, size]),
                None => {
                    let zero = b.scalar(wide, 0.0);
                    b.push1(Broadcast::to(&[batch, size]), &[zero])
                }
            };
            operands.push(state(b, places.h)?);
            if self.is_lstm() {
                operands.push(state(b, places.c)?);
            }
            operands.extend(hidden_bias);
            if let Some(place) = places.peepholes {
                operands.push(part(b, place, 0, &[3 * size])?);
            }
            operands.extend(places.lens.map(|place| ins[place]));
            let op = RecurrentSteps {
                cell: self.cell.with_activations(&parsed[d]),
                reverse,
                hidden_bias: hidden_bias.is_some(),
                peepholes: places.peepholes.is_some(),
                sequence_lens: self.sequence_lens,
            };
            let outs = b.push(op, &operands, None)?;
            let state_shape = self.state_dims(1, batch, size);
            for (result, (&out, shape)) in results.iter_mut().zip(outs.iter().zip([
                &[steps, 1, batch, size][..],
                &state_shape,
                &state_shape,
            ])) {
                result.push(b.push1(Reshape::to(shape), &[out])?);
            }
        }
        let mut outs = Values::new();
        for (i, parts) in results.iter().filter(|parts| !parts.is_empty()).enumerate() {
            let axis = if i == 0 || self.batch_first { 1 } else { 0 };
            let mut joined = match parts.as_slice() {
                [single] => *single,
                parts => b.push1(Concat { axis }, parts)?,
            };
            if i == 0 && self.batch_first {
                joined = b.push1(Transpose::by(&[2, 0, 1, 3]), &[joined])?;
            }
            outs.push(b.cast(joined, dtype)?);
        }
        Ok(outs)
    }
}

#[cfg(test)]
mod tests;
