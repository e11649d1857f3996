//! Attributes, operands, shapes and axes chosen at random.

use windlass_ir::attrs::{AttrError, Slot};
use windlass_ir::{DType, Late, Op, Tensor};

use self::Set::{Bool, Float, Floats, Int, Ints, Text};
use super::any;
use crate::generate::Wanted::New;
use crate::generate::values::{Values, is_dyadic};
use crate::generate::{Entry, Growing, Precision, Proposal, Wanted};

/// An attribute's value.
pub(in crate::generate) enum Set {
    Int(i64),
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Float(f64),
    Bool(bool),
    Text(String),
    Word(&'static str),
    DType(DType),
    Tensor(Tensor),
}

/// A value with its element type and shape.
pub(in crate::generate) type Main = (Wanted, DType, Vec<usize>);

const FLOATS: [DType; 4] = [DType::F16, DType::BF16, DType::F32, DType::F64];

impl Growing<'_> {
    /// Random operands and attributes, for an op that has no row.
    pub(super) fn anything(&mut self, name: &str) -> Option<Proposal> {
        let (main, dtype, shape) = self.main(any, 0, 4, true);
        let mut wanted = vec![main];
        for _ in 0..self.rng.below(4) {
            let other = match self.rng.below(4) {
                0 => shape.clone(),
                1 => self.broadcasting(&shape),
                2 => vec![shape.last().copied().unwrap_or(1)],
                _ => self.shape(0, 3),
            };
            let dtype = if self.rng.one_in(3) { self.dtype(any) } else { dtype };
            wanted.push(New(dtype, other, Values::Any));
        }
        if self.rng.one_in(8) {
            wanted.clear();
        }
        let mut op = Op::from_name(name)?;
        let rng = &mut self.rng;
        let mut visit = |_: &'static str, slot: Slot<'_>| {
            if rng.flag() {
                return Ok(());
            }
            let count = rng.below(shape.len() + 2);
            match slot {
                Slot::Int(i) => *i = rng.between(-2, 3),
                Slot::Ints(ints) => *ints = (0..count).map(|_| rng.between(0, 3)).collect(),
                Slot::Float(x) => *x = rng.between(1, 8) as f64 / 4.0,
                Slot::Floats(xs) => *xs = (0..count).map(|_| rng.between(1, 8) as f64 / 4.0).collect(),
                Slot::Bool(flag) => *flag = rng.flag(),
                Slot::Keyword(keyword) => {
                    let words = keyword.words();
                    keyword.set_word(words[rng.below(words.len())]);
                }
                Slot::DType(dtype) => *dtype = *rng.choose(&DType::ALL),
                Slot::Late(late) => *late = Late::Known((0..count).map(|_| rng.between(0, 3)).collect()),
                Slot::Text(_) | Slot::Tensor(_) | Slot::Graph(_) => {}
            }
            Ok(())
        };
        op.attrs(&mut visit).ok()?;
        Some(Proposal { op, wanted, precision: Precision::Approximate, jumps: true })
    }

    /// The op of this name with these attributes; other flags and keywords are chosen at random.
    pub(in crate::generate) fn op(&mut self, name: &str, sets: Vec<(&'static str, Set)>) -> Op {
        let mut op = Op::from_name(name).unwrap_or_else(|| panic!("there is no op {name}"));
        let mut left: Vec<&str> = sets.iter().map(|(name, _)| *name).collect();
        let rng = &mut self.rng;
        let mut visit = |attr: &'static str, slot: Slot<'_>| {
            left.retain(|name| *name != attr);
            let set = sets.iter().find(|(name, _)| *name == attr).map(|(_, set)| set);
            match (slot, set) {
                (Slot::Int(i), Some(Int(value))) => *i = *value,
                (Slot::Ints(ints), Some(Ints(value))) => *ints = value.clone(),
                (Slot::Late(late), Some(Ints(value))) => *late = Late::Known(value.clone()),
                (Slot::Float(x), Some(Float(value))) => *x = *value,
                (Slot::Floats(xs), Some(Floats(value))) => *xs = value.clone(),
                (Slot::Bool(flag), Some(Bool(value))) => *flag = *value,
                (Slot::Text(text), Some(Text(value))) => *text = value.clone(),
                (Slot::DType(dtype), Some(Set::DType(value))) => *dtype = *value,
                (Slot::Tensor(tensor), Some(Set::Tensor(value))) => *tensor = value.clone(),
                (Slot::Keyword(keyword), Some(Set::Word(word))) => {
                    assert!(keyword.set_word(word), "{name} has no {attr} {word}");
                }
                (Slot::Bool(flag), None) => *flag = rng.flag(),
                (Slot::Keyword(keyword), None) => {
                    let words = keyword.words();
                    keyword.set_word(words[rng.below(words.len())]);
                }
                (_, None) => {}
                (_, Some(_)) => {
                    let message = "is of another kind than the generator's table says".to_string();
                    return Err(AttrError { name: attr.to_string(), message });
                }
            }
            Ok(())
        };
        op.attrs(&mut visit).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(left.is_empty(), "{name} has no attributes {left:?}");
        op
    }

    /// A value of the graph of a suitable type and rank, or the wish for a new one.
    pub(in crate::generate) fn main(
        &mut self,
        dtype: impl Fn(DType) -> bool,
        least: usize,
        most: usize,
        exactly: bool,
    ) -> Main {
        let fits = |e: &Entry| {
            let ranks = (least..=most).contains(&e.tensor.rank());
            dtype(e.tensor.dtype()) && ranks && (!exactly || (e.exact && is_dyadic(&e.tensor)))
        };
        let found: Vec<usize> = (0..self.entries.len()).filter(|&i| fits(&self.entries[i])).collect();
        if !found.is_empty() && !self.rng.one_in(3) {
            // Later values are more likely, so that graphs grow deep.
            let pick = self.rng.below(found.len()).max(self.rng.below(found.len()));
            let tensor = &self.entries[found[pick]].tensor;
            return (Wanted::Entry(found[pick]), tensor.dtype(), tensor.shape().to_vec());
        }
        let (dtype, shape) = (self.dtype(dtype), self.shape(least, most));
        (New(dtype, shape.clone(), Values::Any), dtype, shape)
    }

    /// An element type; floats are as likely as all others together.
    pub(in crate::generate) fn dtype(&mut self, accept: impl Fn(DType) -> bool) -> DType {
        let all: Vec<DType> = DType::ALL.into_iter().filter(|&d| accept(d)).collect();
        let floats: Vec<DType> = FLOATS.into_iter().filter(|&d| accept(d)).collect();
        match !floats.is_empty() && self.rng.flag() {
            true => *self.rng.choose(&floats),
            false => *self.rng.choose(&all),
        }
    }

    pub(super) fn index_type(&mut self) -> DType {
        *self.rng.choose(&[DType::I32, DType::I64])
    }

    /// A size, seldom 0.
    pub(super) fn size(&mut self) -> usize {
        *self.rng.choose(&[1, 2, 3, 4, 5, 7, 2, 3, 1, 4, 9, 3, 2, 5, 3, 4, 2, 1, 6, 0])
    }

    pub(super) fn shape(&mut self, least: usize, most: usize) -> Vec<usize> {
        let rank = self.rng.between(least as i64, most as i64);
        (0..rank).map(|_| self.size()).collect()
    }

    /// A shape that broadcasts to this one.
    pub(super) fn broadcasting(&mut self, shape: &[usize]) -> Vec<usize> {
        if self.rng.flag() {
            return shape.to_vec();
        }
        let skipped = self.rng.below(shape.len() + 1);
        shape[skipped..].iter().map(|&n| if self.rng.one_in(3) { 1 } else { n }).collect()
    }

    /// Another shape of as many elements, -1 now and then.
    pub(super) fn other_shape(&mut self, shape: &[usize]) -> Vec<i64> {
        let mut sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        for _ in 0..3 {
            let at = self.rng.below(sizes.len() + 1);
            match self.rng.below(3) {
                0 => sizes.insert(at, 1),
                1 if at + 1 < sizes.len() => {
                    let merged = sizes.remove(at);
                    sizes[at] *= merged;
                }
                2 if at < sizes.len() && sizes[at] % 2 == 0 && sizes[at] > 0 => {
                    sizes[at] /= 2;
                    sizes.insert(at, 2);
                }
                _ => {}
            }
        }
        if !sizes.is_empty() && !sizes.contains(&0) && self.rng.one_in(3) {
            let at = self.rng.below(sizes.len());
            sizes[at] = -1;
        }
        sizes
    }

    /// The axis, counted from the end now and then.
    pub(super) fn axis_from_end(&mut self, axis: usize, rank: usize) -> i64 {
        if self.rng.flag() { axis as i64 } else { axis as i64 - rank as i64 }
    }

    pub(super) fn axis(&mut self, rank: usize) -> i64 {
        let axis = self.rng.below(rank);
        self.axis_from_end(axis, rank)
    }

    pub(super) fn distinct_axes(&mut self, rank: usize, count: usize) -> Vec<i64> {
        let order = self.rng.shuffled(rank);
        order.into_iter().take(count).map(|axis| self.axis_from_end(axis, rank)).collect()
    }

    /// Any number of distinct axes.
    pub(super) fn axes(&mut self, rank: usize) -> Vec<i64> {
        let count = self.rng.below(rank + 1);
        self.distinct_axes(rank, count)
    }
}
