//! `top_k` as loops.
//!
//! The key of an element is an integer of 64 bits: above one that orders as the element does, below its position, counted
//! from the end. So no two keys of a row are equal, the greatest is that of the best element, and where it stands is known
//! from the key alone.

use super::TopK;
use super::movement::around;
use crate::dtype::DType;
use crate::loops::{Buffer, Guard, Index, Kernel, KernelBuilder, LoopKind, Rhs, Role, Val};
use crate::scalar::ScalarFn;
use crate::types::{TensorType, normalize_axis};

/// Beyond so many elements of a row, sorting in the interpreter is faster than looking for each among the best of groups.
const MOST_TAKEN: usize = 1 << 16;

/// Beyond so many, it is faster than a pass over the row for each.
const MOST_PASSES: usize = 256;

/// Elements of a row, or rows, that are looked at side by side.
const LANES: usize = 16;

/// Bytes of a row's keys that are kept from one place to the next.
const KEPT_BYTES: usize = 128 << 10;

/// The most groups that a row is cut into, whose best are on the stack.
const MOST_GROUPS: usize = 4096;

/// The key of no element: no key is less.
const NONE: u64 = i64::MIN as u64;

/// The loops, if there are any that are worth it.
pub(super) fn kernel(op: &TopK, ty: &TensorType, k: usize) -> Option<Kernel> {
    let shape = ty.shape();
    let axis = normalize_axis(op.axis, shape.len()).expect("infer accepted the axis");
    let (outer, n, inner) = around(&shape, axis);
    let most = if inner == 1 { MOST_TAKEN } else { MOST_PASSES };
    // A key has 32 bits for each of its parts.
    if k > most || ty.dtype.size() > 4 || i32::try_from(n).is_err() {
        return None;
    }
    let mut b = KernelBuilder::new("top_k");
    let x = b.buffer("x", ty.dtype, outer * n * inner, Role::In);
    let values = b.buffer("values", ty.dtype, outer * k * inner, Role::Out);
    let positions = b.buffer("positions", DType::I64, outer * k * inner, Role::Out);
    let kind = if outer > 1 { LoopKind::Parallel } else { LoopKind::Serial };
    let rows = Rows { largest: op.largest, x, values, positions, k, n, inner };
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
    Some(b.finish())
}

struct Rows {
    largest: bool,
    x: Buffer,
    values: Buffer,
    positions: Buffer,
    k: usize,
    n: usize,
    inner: usize,
}

/// Where the keys of a row are: kept, those beyond its end none, or computed from its elements each time.
struct Keys<'r> {
    rows: &'r Rows,
    row: &'r Index,
    kept: Option<Buffer>,
}

impl Rows {
    /// A row whose elements are neighbours: the best of each of several groups is known, and when the best of those is taken,
    /// its group is gone through for the next.
    fn along(&self, b: &mut KernelBuilder, row: &Index) {
        let size = self.group();
        let groups = self.n.div_ceil(size);
        let keys = self.keys(b, row, groups * size);
        let heads = b.buffer("heads", DType::I64, groups, Role::Stack);
        let all = b.define(DType::I64, Rhs::Const(i64::MAX as u64));
        b.repeat(LoopKind::Serial, groups, |b, group| {
            let best = keys.best_before(b, all, &group.mul(size as i64), size);
            b.store(heads, group, best);
        });
        b.repeat(LoopKind::Serial, self.k, |b, place| {
            let best = greatest(b, groups, &|b, group| b.load(heads, group.clone()));
            let position = self.position(b, best);
            self.put(b, position, &|at| row.mul(self.n as i64).add(at), row.mul(self.k as i64).add(&place));
            if self.k > 1 {
                let group = Index::value(position, self.n).div(size as i64);
                let next = keys.best_before(b, best, &group.mul(size as i64), size);
                b.store(heads, group, next);
            }
        });
    }

    /// The elements of a group: about as many as there are groups.
    fn group(&self) -> usize {
        match self.k {
            1 => self.n,
            _ => self.n.isqrt().max(self.n.div_ceil(MOST_GROUPS)).next_multiple_of(LANES).min(self.n),
        }
    }

    fn keys<'r>(&'r self, b: &mut KernelBuilder, row: &'r Index, count: usize) -> Keys<'r> {
        let is_kept = self.k > 1 && count * DType::I64.size() <= KEPT_BYTES;
        let kept = is_kept.then(|| b.buffer("keys", DType::I64, count, Role::Stack));
        if let Some(kept) = kept {
            let computed = Keys { rows: self, row, kept: None };
            b.repeat(LoopKind::Vector, self.n, |b, at| {
                let key = computed.key(b, &at, Vec::new());
                b.store(kept, at, key);
            });
            if count > self.n {
                b.repeat(LoopKind::Vector, count - self.n, |b, at| {
                    let none = b.define(DType::I64, Rhs::Const(NONE));
                    b.store(kept, at.add_const(self.n as i64), none);
                });
            }
        }
        Keys { rows: self, row, kept }
    }

    /// Rows that are neighbours, one a lane: for each place a pass over them.
    fn beside(&self, b: &mut KernelBuilder, o: &Index, first: &Index, lanes: usize) {
        let (n, inner) = (self.n as i64, self.inner as i64);
        let [last, best] = ["last", "best"].map(|name| b.buffer(name, DType::I64, lanes, Role::Register));
        let row = |at: &Index, lane: &Index| o.mul(n).add(at).mul(inner).add(first).add(lane);
        b.repeat(LoopKind::Vector, lanes, |b, lane| {
            let all = b.define(DType::I64, Rhs::Const(i64::MAX as u64));
            b.store(last, lane, all);
        });
        b.repeat(LoopKind::Serial, self.k, |b, place| {
            let none = b.define(DType::I64, Rhs::Const(NONE));
            b.repeat(LoopKind::Vector, lanes, |b, lane| b.store(best, lane, none));
            b.repeat(LoopKind::Serial, self.n, |b, at| {
                b.repeat(LoopKind::Vector, lanes, |b, lane| {
                    let element = b.load(self.x, row(&at, &lane));
                    let key = self.key_of(b, element, &at);
                    let taken = b.load(last, lane.clone());
                    let key = below(b, key, taken);
                    let so_far = b.load(best, lane.clone());
                    let better = b.apply(ScalarFn::Max, &[so_far, key]);
                    b.store(best, lane, better);
                });
            });
            b.repeat(LoopKind::Vector, lanes, |b, lane| {
                let found = b.load(best, lane.clone());
                b.store(last, lane.clone(), found);
                let to = o.mul(self.k as i64).add(&place).mul(inner).add(first).add(&lane);
                let position = self.position(b, found);
                self.put(b, position, &|at| row(at, &lane), to);
            });
        });
    }

    /// The key of an element at a position of its row.
    fn key_of(&self, b: &mut KernelBuilder, element: Val, at: &Index) -> Val {
        let order = order_of(b, element);
        let order = match self.largest {
            true => order,
            false => b.apply(ScalarFn::Not, &[order]),
        };
        let half = b.constant(DType::I64, 32.0);
        let upper = b.apply(ScalarFn::Shl, &[order, half]);
        let from_end = Index::constant(self.n as i64 - 1).sub(at);
        let lower = b.define(DType::I64, Rhs::Index(from_end));
        b.apply(ScalarFn::Add, &[upper, lower])
    }

    /// The position that a key tells.
    fn position(&self, b: &mut KernelBuilder, key: Val) -> Val {
        let mask = b.define(DType::I64, Rhs::Const(u32::MAX.into()));
        let (zero, last) = (b.constant(DType::I64, 0.0), b.constant(DType::I64, self.n as f64 - 1.0));
        let from_end = b.apply(ScalarFn::And, &[key, mask]);
        let at = b.apply(ScalarFn::Sub, &[last, from_end]);
        // It is between these, which the emitters cannot know.
        let at = b.apply(ScalarFn::Max, &[at, zero]);
        b.apply(ScalarFn::Min, &[at, last])
    }

    /// Writes an element of a row, whose positions `row` places, and its position.
    fn put(&self, b: &mut KernelBuilder, at: Val, row: &dyn Fn(&Index) -> Index, to: Index) {
        let element = b.load(self.x, row(&Index::value(at, self.n)));
        b.store(self.values, to.clone(), element);
        b.store(self.positions, to, at);
    }
}

impl Keys<'_> {
    fn key(&self, b: &mut KernelBuilder, at: &Index, guards: Vec<Guard>) -> Val {
        let element = b.load_guarded(self.rows.x, self.row.mul(self.rows.n as i64).add(at), guards);
        self.rows.key_of(b, element, at)
    }

    /// The greatest key below one, of so many elements from one on.
    fn best_before(&self, b: &mut KernelBuilder, taken: Val, first: &Index, count: usize) -> Val {
        let n = self.rows.n;
        greatest(b, count, &|b, i| {
            let at = first.add(i);
            let key = match self.kept {
                Some(kept) => b.load(kept, at),
                None if n.is_multiple_of(count) => self.key(b, &at, Vec::new()),
                None => {
                    let inside = Guard::new(at.clone(), n);
                    let key = self.key(b, &at, vec![inside.clone()]);
                    let is_inside = b.define(DType::Bool, Rhs::Inside(vec![inside]));
                    let none = b.define(DType::I64, Rhs::Const(NONE));
                    b.apply(ScalarFn::Select, &[is_inside, key, none])
                }
            };
            below(b, key, taken)
        })
    }
}

/// The greatest of so many keys.
fn greatest(b: &mut KernelBuilder, count: usize, key: &dyn Fn(&mut KernelBuilder, &Index) -> Val) -> Val {
    let lanes = LANES.min(1 << count.ilog2());
    let best = b.buffer("best", DType::I64, lanes, Role::Register);
    b.repeat(LoopKind::Vector, lanes, |b, lane| {
        let none = b.define(DType::I64, Rhs::Const(NONE));
        b.store(best, lane, none);
    });
    let step = |b: &mut KernelBuilder, first: &Index, count: usize| {
        b.repeat(LoopKind::Vector, count, |b, lane| {
            let key = key(b, &first.add(&lane));
            let so_far = b.load(best, lane.clone());
            let better = b.apply(ScalarFn::Max, &[so_far, key]);
            b.store(best, lane, better);
        });
    };
    b.repeat(LoopKind::Serial, count / lanes, |b, block| step(b, &block.mul(lanes as i64), lanes));
    if !count.is_multiple_of(lanes) {
        step(b, &Index::constant((count - count % lanes) as i64), count % lanes);
    }
    greatest_lane(b, best, lanes)
}

/// The greatest of all lanes, half of them with the other half at a time.
fn greatest_lane(b: &mut KernelBuilder, from: Buffer, lanes: usize) -> Val {
    if lanes == 1 {
        return b.load(from, Index::constant(0));
    }
    let half = lanes / 2;
    let to = b.buffer(&format!("best{half}"), DType::I64, half, Role::Register);
    b.repeat(LoopKind::Vector, half, |b, lane| {
        let (one, other) = (b.load(from, lane.clone()), b.load(from, lane.add_const(half as i64)));
        let better = b.apply(ScalarFn::Max, &[one, other]);
        b.store(to, lane, better);
    });
    greatest_lane(b, to, half)
}

/// A key, or none if it is not below the one that was taken last.
fn below(b: &mut KernelBuilder, key: Val, taken: Val) -> Val {
    let none = b.define(DType::I64, Rhs::Const(NONE));
    let is_left = b.apply(ScalarFn::Lt, &[key, taken]);
    b.apply(ScalarFn::Select, &[is_left, key, none])
}

/// An integer of 32 bits, as i64, that orders as the element does: for a float its bits, those below the sign flipped if it
/// is negative, both zeros alike and NaN above all.
fn order_of(b: &mut KernelBuilder, element: Val) -> Val {
    let dtype = b.dtype(element);
    let to_i64 = ScalarFn::Cast(DType::I64);
    if !dtype.is_float() {
        let wide = b.apply(to_i64, &[element]);
        if dtype != DType::U32 {
            return wide;
        }
        let middle = b.constant(DType::I64, f64::from(1u32 << 31));
        return b.apply(ScalarFn::Sub, &[wide, middle]);
    }
    let element = match dtype {
        DType::F32 => element,
        _ => b.apply(ScalarFn::Cast(DType::F32), &[element]),
    };
    let zero = b.constant(DType::F32, 0.0);
    let positive = b.apply(ScalarFn::Add, &[element, zero]);
    let bits = b.apply(ScalarFn::Bitcast(DType::I32), &[positive]);
    let [most, none] = [i32::MAX, 0].map(|bits| b.constant(DType::I32, bits.into()));
    let flipped = b.apply(ScalarFn::Xor, &[bits, most]);
    let is_negative = b.apply(ScalarFn::Lt, &[bits, none]);
    let ordered = b.apply(ScalarFn::Select, &[is_negative, flipped, bits]);
    let is_nan = b.apply(ScalarFn::Ne, &[element, element]);
    let ordered = b.apply(ScalarFn::Select, &[is_nan, most, ordered]);
    b.apply(to_i64, &[ordered])
}
