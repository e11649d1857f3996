//! `top_k`: the largest or smallest elements along an axis, and where they are.

use std::cmp::Ordering;

use super::movement::{around, late_count, with_dim};
use super::{Gradients, Lowered, OpDef, ScatterElements, ScatterReduction, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Late, Slot};
use crate::dtype::{DType, Element};
use crate::error::{Error, Violation};
use crate::loops::{Buffer, Index, Kernel, KernelBuilder, LoopKind, Rhs, Role, Val};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis};
use crate::{require, with_element};

/// The `k` largest (or smallest) elements along an axis, best first, and their positions as i64. NaN
/// counts as larger than any number; of equal elements the earlier is better.
///
/// - (C1) the element type is a number;
/// - (C2) the axis lies within the operand's rank;
/// - (C3) `k` is one integer between 0 and the axis' size.
///
/// ONNX: `TopK` (1..), whose `k` is an operand since 10.
#[derive(Clone, Debug, PartialEq)]
pub struct TopK {
    /// How many.
    pub k: Late,
    /// The axis.
    pub axis: i64,
    /// Whether the largest are wanted.
    pub largest: bool,
    /// Whether the order matters to the reader; the result is sorted in any case.
    pub sorted: bool,
}

impl OpDef for TopK {
    const NAMES: &'static [&'static str] = &["top_k"];

    fn with_name(_: &str) -> TopK {
        TopK { k: Late::default(), axis: -1, largest: true, sorted: true }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("k", Slot::Late(&mut self.k))?;
        codec.attr("axis", Slot::Int(&mut self.axis))?;
        codec.attr("largest", Slot::Bool(&mut self.largest))?;
        codec.attr("sorted", Slot::Bool(&mut self.sorted))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=2)?;
        let x = ins[0];
        require!(x.dtype != DType::Bool, "C1", "{x} is not numeric");
        let axis = normalize_axis(self.axis, x.rank());
        require!(axis.is_some(), "C2", "axis {} is outside {x}", self.axis);
        let axis = axis.unwrap_or(0);
        let k = match self.k.as_known() {
            Some(&[k]) => {
                let most = x.dims[axis].as_fixed().unwrap_or(usize::MAX);
                let fits = usize::try_from(k).is_ok_and(|k| k <= most);
                require!(fits, "C3", "{k} of the {} elements along axis {} of {x}", x.dims[axis], self.axis);
                Dim::Fixed(k as usize)
            }
            Some(ks) => return Err(Violation::new("C3", format!("{ks:?} is not one integer"))),
            None => {
                require!(late_count(&self.k, ins).is_none_or(|n| n == 1), "C3", "k is not one integer");
                Dim::Unknown
            }
        };
        let values = with_dim(x, axis, k);
        let positions = values.with_dtype(DType::I64);
        Ok(vec![values, positions])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let axis = normalize_axis(self.axis, x.rank()).ok_or("the axis is outside the rank")?;
        let k = self.k.known()[0] as usize;
        let (outer, n, inner) = around(x.shape(), axis);
        let mut shape = x.shape().to_vec();
        shape[axis] = k;
        let mut positions = Tensor::zeros(DType::I64, &shape);
        let mut values = Tensor::zeros(x.dtype(), &shape);
        with_element!(x.dtype(), T => {
            let elements = x.as_slice::<T>();
            let compare = |a: T, b: T| match T::DTYPE.is_float() {
                false => a.to_i128().cmp(&b.to_i128()),
                true => {
                    let (a, b) = (a.to_f64(), b.to_f64());
                    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
                }
            };
            for lane in 0..outer * inner {
                let (o, lane) = (lane / inner, lane % inner);
                let at = |i: usize| elements[(o * n + i) * inner + lane];
                let mut order: Vec<usize> = (0..n).collect();
                order.sort_by(|&i, &j| {
                    let by_value: Ordering = compare(at(i), at(j));
                    if self.largest { by_value.reverse() } else { by_value }
                });
                for (place, &i) in order.iter().take(k).enumerate() {
                    let to = (o * k + place) * inner + lane;
                    values.as_mut_slice::<T>()[to] = at(i);
                    positions.as_mut_slice::<i64>()[to] = i as i64;
                }
            }
        });
        Ok(vec![values, positions])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let g = cx.dout(0);
        let ty = cx.builder.ty(cx.ins[0]).clone();
        let zeros = cx.builder.constant(Tensor::zeros(ty.dtype, &ty.shape()));
        let back = ScatterElements { axis: self.axis, reduction: ScatterReduction::Add };
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        gradients[0] = Some(cx.push(back, &[zeros, cx.outs[1], g])?);
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axis = cx.axis(self.axis, 0);
        cx.along(TopK { axis, ..self.clone() })
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let k = self.k.known()[0] as usize;
        // Positions are compared as i32.
        let len = ins[0].as_len().unwrap_or(usize::MAX);
        if k > MOST_PASSES || outs[0].as_len() == Some(0) || i32::try_from(len).is_err() {
            return Ok(Lowered::Interpret);
        }
        Ok(Lowered::Kernel(Box::new(self.kernel(&ins[0], k))))
    }
}

/// Beyond so many elements of each row, sorting in the interpreter is faster than a pass for each.
const MOST_PASSES: usize = 256;

/// Elements of a row that are looked at side by side.
const LANES: usize = 32;

/// Bytes of a row's keys that are kept from one pass to the next.
const KEPT_BYTES: usize = 64 << 10;

impl TopK {
    /// For each of the `k` places, a pass over the row for the best element after the previous one: in lanes along the
    /// axis, which are then compared with each other, or, where the axis is not the last, in lanes of neighbouring rows.
    fn kernel(&self, ty: &TensorType, k: usize) -> Kernel {
        let shape = ty.shape();
        let axis = normalize_axis(self.axis, shape.len()).expect("infer accepted the axis");
        let (outer, n, inner) = around(&shape, axis);
        let mut b = KernelBuilder::new("top_k");
        let x = b.buffer("x", ty.dtype, outer * n * inner, Role::In);
        let values = b.buffer("values", ty.dtype, outer * k * inner, Role::Out);
        let positions = b.buffer("positions", DType::I64, outer * k * inner, Role::Out);
        let kind = if outer > 1 { LoopKind::Parallel } else { LoopKind::Serial };
        let rows = Rows { largest: self.largest, x, values, positions, k, n, inner, dtype: ty.dtype };
        b.repeat(kind, outer, |b, o| match inner {
            1 => rows.along(b, &o),
            _ => {
                let (whole, rest) = (inner / LANES, inner % LANES);
                if whole > 0 {
                    b.repeat(LoopKind::Serial, whole, |b, block| {
                        rows.beside(b, &o, &block.mul(LANES as i64), LANES);
                    });
                }
                if rest > 0 {
                    rows.beside(b, &o, &Index::constant((whole * LANES) as i64), rest);
                }
            }
        });
        b.finish()
    }
}

/// What all passes have in common.
struct Rows {
    largest: bool,
    x: Buffer,
    values: Buffer,
    positions: Buffer,
    k: usize,
    n: usize,
    inner: usize,
    dtype: DType,
}

/// An element that stands for its row so far: its key, and its position, which is -1 before there is one.
#[derive(Clone, Copy)]
struct Place {
    key: Val,
    at: Val,
}

/// Places side by side, one a lane.
#[derive(Clone, Copy)]
struct Places {
    keys: Buffer,
    at: Buffer,
}

impl Places {
    fn new(b: &mut KernelBuilder, name: &str, key: DType, lanes: usize) -> Places {
        let keys = b.buffer(&format!("{name}_key"), key, lanes, Role::Register);
        Places { keys, at: b.buffer(&format!("{name}_at"), DType::I32, lanes, Role::Register) }
    }

    fn load(self, b: &mut KernelBuilder, lane: &Index) -> Place {
        Place { key: b.load(self.keys, lane.clone()), at: b.load(self.at, lane.clone()) }
    }

    fn store(self, b: &mut KernelBuilder, lane: &Index, place: Place) {
        b.store(self.keys, lane.clone(), place.key);
        b.store(self.at, lane.clone(), place.at);
    }
}

impl Rows {
    /// Before the first pass, and before there is a best element: every element comes after one, and is better than the
    /// other.
    fn bounds(&self, b: &mut KernelBuilder) -> [Place; 2] {
        let key = key_type(self.dtype);
        let at = b.define(DType::I32, Rhs::Const(u64::from(u32::MAX)));
        let (least, most) = key.int_range();
        let [before, beyond] = if self.largest { [most, least] } else { [least, most] };
        let bits = |value: i128| value as u64 & (u64::MAX >> (64 - 8 * key.size()));
        [before, beyond].map(|value| Place { key: b.define(key, Rhs::Const(bits(value))), at })
    }

    /// The better of the best so far and an element, if that one comes after the last that was taken. Elements are offered
    /// in the order of their positions.
    fn better(&self, b: &mut KernelBuilder, last: Place, best: Place, this: Place) -> Place {
        let (better, worse) = self.orders();
        let is_worse = b.apply(worse, &[this.key, last.key]);
        let ties = b.apply(ScalarFn::Eq, &[this.key, last.key]);
        let later = b.apply(ScalarFn::Gt, &[this.at, last.at]);
        let follows = b.apply(ScalarFn::And, &[ties, later]);
        let allowed = b.apply(ScalarFn::Or, &[is_worse, follows]);
        let none = b.constant(DType::I32, 0.0);
        let unset = b.apply(ScalarFn::Lt, &[best.at, none]);
        let beats = b.apply(better, &[this.key, best.key]);
        let improves = b.apply(ScalarFn::Or, &[unset, beats]);
        let take = b.apply(ScalarFn::And, &[allowed, improves]);
        choose(b, take, this, best)
    }

    /// The better of two lanes, of which the first, the second or both may have found nothing.
    fn best(&self, b: &mut KernelBuilder, one: Place, other: Place) -> Place {
        let (better, _) = self.orders();
        let none = b.constant(DType::I32, 0.0);
        let beats = b.apply(better, &[other.key, one.key]);
        let ties = b.apply(ScalarFn::Eq, &[other.key, one.key]);
        let earlier = b.apply(ScalarFn::Lt, &[other.at, one.at]);
        let first = b.apply(ScalarFn::And, &[ties, earlier]);
        let better = b.apply(ScalarFn::Or, &[beats, first]);
        let unset = b.apply(ScalarFn::Lt, &[one.at, none]);
        let improves = b.apply(ScalarFn::Or, &[unset, better]);
        let found = b.apply(ScalarFn::Ge, &[other.at, none]);
        let take = b.apply(ScalarFn::And, &[found, improves]);
        choose(b, take, other, one)
    }

    fn orders(&self) -> (ScalarFn, ScalarFn) {
        if self.largest { (ScalarFn::Gt, ScalarFn::Lt) } else { (ScalarFn::Lt, ScalarFn::Gt) }
    }

    /// A row whose elements are neighbours, in lanes.
    fn along(&self, b: &mut KernelBuilder, o: &Index) {
        let (n, key) = (self.n, key_type(self.dtype));
        let lanes = LANES.min(1 << n.ilog2());
        let only = Index::constant(0);
        let row = |i: &Index| o.mul(n as i64).add(i);
        let keys = (n * key.size() <= KEPT_BYTES && key != self.dtype)
            .then(|| b.buffer("keys", key, n, Role::Stack));
        if let Some(keys) = keys {
            b.repeat(LoopKind::Vector, n, |b, i| {
                let element = b.load(self.x, row(&i));
                let this = order_key(b, element);
                b.store(keys, i, this);
            });
        }
        let last = Places::new(b, "last", key, 1);
        let best = Places::new(b, "best", key, lanes);
        // The positions of the elements in the lanes.
        let here = b.buffer("here", DType::I32, lanes, Role::Register);
        let [before, beyond] = self.bounds(b);
        last.store(b, &only, before);
        b.repeat(LoopKind::Serial, self.k, |b, place| {
            b.repeat(LoopKind::Vector, lanes, |b, lane| {
                best.store(b, &lane, beyond);
                let number = b.define(DType::I64, Rhs::Index(lane.clone()));
                let number = b.apply(ScalarFn::Cast(DType::I32), &[number]);
                b.store(here, lane, number);
            });
            let taken = last.load(b, &only);
            let step = |b: &mut KernelBuilder, first: &Index, count: usize| {
                b.repeat(LoopKind::Vector, count, |b, lane| {
                    let i = first.add(&lane);
                    let this = match keys {
                        Some(keys) => b.load(keys, i),
                        None => {
                            let element = b.load(self.x, row(&i));
                            order_key(b, element)
                        }
                    };
                    let this = Place { key: this, at: b.load(here, lane.clone()) };
                    let so_far = best.load(b, &lane);
                    let better = self.better(b, taken, so_far, this);
                    best.store(b, &lane, better);
                    let lanes = b.constant(DType::I32, lanes as f64);
                    let next = b.apply(ScalarFn::Add, &[this.at, lanes]);
                    b.store(here, lane, next);
                });
            };
            b.repeat(LoopKind::Serial, n / lanes, |b, block| step(b, &block.mul(lanes as i64), lanes));
            if !n.is_multiple_of(lanes) {
                step(b, &Index::constant((n - n % lanes) as i64), n % lanes);
            }
            let found = self.fold(b, best, lanes);
            last.store(b, &only, found);
            let at = b.apply(ScalarFn::Cast(DType::I64), &[found.at]);
            self.put(b, at, &|i| row(i), o.mul(self.k as i64).add(&place));
        });
    }

    /// The best of all lanes, half of them with the other half at a time.
    fn fold(&self, b: &mut KernelBuilder, from: Places, lanes: usize) -> Place {
        if lanes == 1 {
            return from.load(b, &Index::constant(0));
        }
        let half = lanes / 2;
        let to = Places::new(b, &format!("best{half}"), key_type(self.dtype), half);
        b.repeat(LoopKind::Vector, half, |b, lane| {
            let (one, other) = (from.load(b, &lane), from.load(b, &lane.add_const(half as i64)));
            let best = self.best(b, one, other);
            to.store(b, &lane, best);
        });
        self.fold(b, to, half)
    }

    /// Rows that are neighbours, one a lane.
    fn beside(&self, b: &mut KernelBuilder, o: &Index, first: &Index, lanes: usize) {
        let (n, inner, key) = (self.n, self.inner, key_type(self.dtype));
        let last = Places::new(b, "last", key, lanes);
        let best = Places::new(b, "best", key, lanes);
        let row = |i: &Index, lane: &Index| o.mul(n as i64).add(i).mul(inner as i64).add(first).add(lane);
        let [before, beyond] = self.bounds(b);
        b.repeat(LoopKind::Vector, lanes, |b, lane| last.store(b, &lane, before));
        b.repeat(LoopKind::Serial, self.k, |b, place| {
            b.repeat(LoopKind::Vector, lanes, |b, lane| best.store(b, &lane, beyond));
            b.repeat(LoopKind::Serial, n, |b, i| {
                let at = b.define(DType::I64, Rhs::Index(i.clone()));
                let at = b.apply(ScalarFn::Cast(DType::I32), &[at]);
                b.repeat(LoopKind::Vector, lanes, |b, lane| {
                    let element = b.load(self.x, row(&i, &lane));
                    let this = Place { key: order_key(b, element), at };
                    let (taken, so_far) = (last.load(b, &lane), best.load(b, &lane));
                    let better = self.better(b, taken, so_far, this);
                    best.store(b, &lane, better);
                });
            });
            b.repeat(LoopKind::Vector, lanes, |b, lane| {
                let found = best.load(b, &lane);
                last.store(b, &lane, found);
                let at = b.apply(ScalarFn::Cast(DType::I64), &[found.at]);
                let to = o.mul(self.k as i64).add(&place).mul(inner as i64).add(first).add(&lane);
                self.put(b, at, &|i| row(i, &lane), to);
            });
        });
    }

    /// Writes an element of a row, whose positions `row` places, and its position.
    fn put(&self, b: &mut KernelBuilder, at: Val, row: &dyn Fn(&Index) -> Index, to: Index) {
        let (low, high) = (b.constant(DType::I64, 0.0), b.constant(DType::I64, self.n as f64 - 1.0));
        let at = b.apply(ScalarFn::Max, &[at, low]);
        let at = b.apply(ScalarFn::Min, &[at, high]);
        let element = b.load(self.x, row(&Index::value(at, self.n)));
        b.store(self.values, to.clone(), element);
        b.store(self.positions, to, at);
    }
}

/// One of two places.
fn choose(b: &mut KernelBuilder, first: Val, one: Place, other: Place) -> Place {
    Place {
        key: b.apply(ScalarFn::Select, &[first, one.key, other.key]),
        at: b.apply(ScalarFn::Select, &[first, one.at, other.at]),
    }
}

/// The type of [`order_key`].
fn key_type(dtype: DType) -> DType {
    match dtype.accumulator() {
        DType::F32 => DType::I32,
        DType::F64 => DType::I64,
        other => other,
    }
}

/// An integer that orders as the element does: for a float its bits, those below the sign flipped if it
/// is negative, both zeros alike and NaN above all.
fn order_key(b: &mut KernelBuilder, element: Val) -> Val {
    let dtype = b.dtype(element);
    if !dtype.is_float() {
        return element;
    }
    let wide = dtype.accumulator();
    let key = key_type(dtype);
    let element = match dtype == wide {
        true => element,
        false => b.apply(ScalarFn::Cast(wide), &[element]),
    };
    let zero = b.constant(wide, 0.0);
    let positive = b.apply(ScalarFn::Add, &[element, zero]);
    let bits = b.apply(ScalarFn::Bitcast(key), &[positive]);
    let (most, none) = (b.define(key, Rhs::Const(key.int_range().1 as u64)), b.define(key, Rhs::Const(0)));
    let flipped = b.apply(ScalarFn::Xor, &[bits, most]);
    let is_negative = b.apply(ScalarFn::Lt, &[bits, none]);
    let ordered = b.apply(ScalarFn::Select, &[is_negative, flipped, bits]);
    let is_nan = b.apply(ScalarFn::Ne, &[element, element]);
    b.apply(ScalarFn::Select, &[is_nan, most, ordered])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_of_equal_elements_wins() {
        let x = Tensor::new(&[2, 3], &[1i32, 7, 7, 3, 2, 1]);
        let op = TopK { k: vec![2].into(), ..TopK::with_name("top_k") };
        let outs = op.eval(&[x.clone()]).unwrap();
        assert_eq!(outs, [Tensor::new(&[2, 2], &[7i32, 7, 3, 2]), Tensor::new(&[2, 2], &[1i64, 2, 0, 1])]);
        let op = TopK { k: vec![1].into(), axis: 0, largest: false, sorted: true };
        let outs = op.eval(&[x]).unwrap();
        assert_eq!(outs[1], Tensor::new(&[1, 3], &[0i64, 1, 1]));
    }

    #[test]
    fn edges() {
        let op = TopK { k: vec![0].into(), ..TopK::with_name("top_k") };
        assert_eq!(op.eval(&[Tensor::zeros(DType::F32, &[2, 0])]).unwrap()[0].shape(), [2, 0]);
        let op = TopK { k: vec![2].into(), ..TopK::with_name("top_k") };
        let nan = Tensor::new(&[3], &[1.0f32, f32::NAN, f32::INFINITY]);
        assert_eq!(op.eval(&[nan]).unwrap()[1].to_ints(), [1, 2]);
        assert_eq!(op.infer(&[&TensorType::fixed(DType::F32, &[1])]).unwrap_err().constraint, "C3");
    }
}
