//! Fusion: merging a formula into the formulas that read it.
//!
//! One rule: a producer's formula may stand in place of a consumer's loads of it, at the loads' index
//! maps. Whether it should is a matter of cost, and every reason not to is a [`Refusal`]. Where others read the producer
//! too, the consumer may yield its result beside its own, if both are elementwise over one domain.

mod worth;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use cranelift_entity::SecondaryMap;
use windlass_ir::loops::{Expr, Guard, Index, Nest, NestBuilder, Val};
use windlass_ir::{DType, ScalarFn};

use self::worth::{is_view, worth_merging};
use super::prepare::known_bufs;
use super::schedule::contraction::{Contraction, as_contraction};
use super::schedule::normalize;
use super::units::{Buf, Unit, UnitWork, Units};

/// Why a producer was not merged into a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// One of them is not a formula of one result.
    #[error("one of the two is not a formula of one result")]
    NotFormulas,
    /// Something else reads the producer, and it is more than an index map.
    #[error("the producer has other readers and is more than an index map")]
    OtherReaders,
    /// The consumer would evaluate the producer's elements too often.
    #[error("the consumer would compute each element more than once, at more cost than storing it")]
    Recompute,
    /// A product's operand must stay a plain load.
    #[error("an operand of a contraction can only be an affine view")]
    ContractionOperand,
    /// The producer reduces, and the consumer does not read it once per element in its own order.
    #[error("the producer reduces and is not read element by element in order")]
    ReductionOrder,
    /// Neighbouring results of the consumer read elements that are apart, of one or another of several pieces.
    #[error("the producer is of several pieces, and the consumer's lanes are apart in them")]
    Apart,
    /// The producer depends on constants alone, so it is computed once and not at each run.
    #[error("the producer depends on constants alone and is computed once")]
    Prepared,
    /// The merged kernel would be too large.
    #[error("the merged kernel would be too large")]
    TooLarge,
}

/// The most operands of a merged formula.
const MOST_OPERANDS: usize = 12;

/// The most expressions of a merged formula.
const MOST_EXPRESSIONS: usize = 300;

/// What became of merging one unit into another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'u> {
    /// The graph nodes of the producer.
    pub producer: &'u [Arc<str>],
    /// The graph nodes of the consumer.
    pub consumer: &'u [Arc<str>],
    /// Why they were not merged, if they were not.
    pub refusal: Option<Refusal>,
}

/// Merges units until no rule fires, then drops those that nothing reads. Tells `observe` of each decision.
pub fn fuse(units: &mut Units, observe: &mut dyn FnMut(Decision<'_>)) {
    let mut fusion = Fusion::new(units);
    for at in 0..units.units.len() {
        fusion.merge_producers(units, at, observe);
    }
    // Only what nothing took in yields more than its own result.
    for at in 0..units.units.len() {
        if fusion.join_producers(units, at, observe) {
            fusion.merge_producers(units, at, observe);
        }
    }
    drop_dead(units);
}

/// What is known of the units while they are merged.
struct Fusion {
    producer: SecondaryMap<Buf, Option<usize>>,
    known: SecondaryMap<Buf, bool>,
    uses: SecondaryMap<Buf, u32>,
}

impl Fusion {
    fn new(units: &Units) -> Fusion {
        Fusion { producer: units.makers(), known: known_bufs(units), uses: units.use_counts() }
    }

    /// Merges what a unit reads into it.
    fn merge_producers(&mut self, units: &mut Units, at: usize, observe: &mut dyn FnMut(Decision<'_>)) {
        if !matches!(units.units[at].work, UnitWork::Nest(_)) {
            return;
        }
        if let Some(unit) = join_operands(&units.units[at]) {
            self.replace(units, at, unit);
        }
        let mut refused: BTreeSet<Buf> = BTreeSet::new();
        while let Some((position, from)) = units.units[at]
            .ins
            .iter()
            .enumerate()
            .filter(|(_, b)| !refused.contains(*b))
            .find_map(|(i, &b)| Some((i, self.producer[b]?)))
        {
            let buf = units.units[at].ins[position];
            let shared = self.uses[buf] > 1;
            let merged = match self.known[buf] && !self.known[units.units[at].outs[0]] {
                true if !is_view_unit(&units.units[from]) => Err(Refusal::Prepared),
                _ => merge(&units.units[from], &units.units[at], position, shared),
            };
            observe(Decision {
                producer: &units.units[from].origin,
                consumer: &units.units[at].origin,
                refusal: merged.as_ref().err().copied(),
            });
            match merged {
                Ok(merged) => {
                    self.replace(units, at, merged);
                    if self.uses[buf] == 0 {
                        self.clear(units, from);
                    }
                }
                Err(_) => {
                    refused.insert(buf);
                }
            }
        }
    }

    /// Merges elementwise formulas that a unit reads element by element into it, although others read them too, and lets
    /// the unit yield their results beside its own. Whether there were any.
    fn join_producers(
        &mut self,
        units: &mut Units,
        at: usize,
        observe: &mut dyn FnMut(Decision<'_>),
    ) -> bool {
        let mut joined = false;
        while let Some((from, unit)) = units.units[at].ins.iter().enumerate().find_map(|(position, &buf)| {
            let from = self.producer[buf].filter(|_| !self.known[buf])?;
            Some((from, join(units, from, at, position)?))
        }) {
            observe(Decision {
                producer: &units.units[from].origin,
                consumer: &units.units[at].origin,
                refusal: None,
            });
            unit.outs.iter().for_each(|&b| self.producer[b] = Some(at));
            self.replace(units, at, unit);
            self.clear(units, from);
            joined = true;
        }
        joined
    }

    /// Puts a unit in place of another: that one's reads end, those of the new one begin.
    fn replace(&mut self, units: &mut Units, at: usize, unit: Unit) {
        units.units[at].ins.iter().for_each(|&b| self.uses[b] -= 1);
        units.units[at] = unit;
        units.units[at].ins.iter().for_each(|&b| self.uses[b] += 1);
    }

    /// Ends what a unit reads: others compute what it did.
    fn clear(&mut self, units: &mut Units, at: usize) {
        units.units[at].ins.iter().for_each(|&b| self.uses[b] -= 1);
        units.units[at].ins.clear();
    }
}

/// Drops units whose results nothing reads.
fn drop_dead(units: &mut Units) {
    let mut live: SecondaryMap<Buf, bool> = SecondaryMap::new();
    units.outputs.iter().for_each(|(_, b)| live[*b] = true);
    let mut kept: Vec<Unit> = Vec::new();
    for unit in std::mem::take(&mut units.units).into_iter().rev() {
        // A result is of the last unit that has it: those before are merged into that.
        let is_live = unit.outs.iter().any(|&b| live[b]);
        unit.outs.iter().for_each(|&b| live[b] = false);
        if is_live {
            unit.ins.iter().for_each(|&b| live[b] = true);
            kept.push(unit);
        }
    }
    kept.reverse();
    units.units = kept;
}

/// The unit with operands that are the same buffer as the same operand, if there are any.
fn join_operands(unit: &Unit) -> Option<Unit> {
    let UnitWork::Nest(nest) = &unit.work else { return None };
    if (1..unit.ins.len()).all(|at| !unit.ins[..at].contains(&unit.ins[at])) {
        return None;
    }
    let mut joined = Joined::new(&nest.shape());
    let numbers: Vec<u32> =
        unit.ins.iter().zip(&nest.operands).map(|(&b, o)| joined.operand(b, o.dtype, &o.shape)).collect();
    let domain = joined.builder.domain();
    let roots = joined.builder.inline(nest, &nest.roots, &domain, &mut |b, operand, index, guards| {
        let seen = &nest.operands[operand as usize].shape;
        load_seen(b, numbers[operand as usize], index, seen, guards)
    });
    let work = UnitWork::Nest(Box::new(joined.builder.finish(&roots)));
    Some(Unit {
        work,
        ins: joined.bufs,
        outs: unit.outs.clone(),
        origin: unit.origin.clone(),
        flops: unit.flops,
    })
}

/// A nest under construction whose operands are distinct buffers.
struct Joined {
    builder: NestBuilder,
    bufs: Vec<Buf>,
}

impl Joined {
    fn new(shape: &[usize]) -> Joined {
        Joined { builder: NestBuilder::new(shape), bufs: Vec::new() }
    }

    fn operand(&mut self, buf: Buf, dtype: DType, shape: &[usize]) -> u32 {
        if let Some(at) = self.bufs.iter().position(|&b| b == buf) {
            return at as u32;
        }
        self.bufs.push(buf);
        self.builder.operand(dtype, shape)
    }
}

/// The consumer with the producer's formula in place of its loads of operand `position`.
pub fn merge(producer: &Unit, consumer: &Unit, position: usize, shared: bool) -> Result<Unit, Refusal> {
    let (UnitWork::Nest(source), UnitWork::Nest(target)) = (&producer.work, &consumer.work) else {
        return Err(Refusal::NotFormulas);
    };
    if source.roots.len() != 1 || source.shape().contains(&0) || target.shape().contains(&0) {
        return Err(Refusal::NotFormulas);
    }
    worth_merging(source, target, position, shared)?;
    let unit = substitute((source, producer), (target, consumer), position, false)?;
    if as_contraction(target).is_some() && as_contraction(source).is_none() {
        let still = matches!(&unit.work, UnitWork::Nest(merged) if is_affine(&normalize(merged)));
        if !still {
            return Err(Refusal::ContractionOperand);
        }
    }
    Ok(unit)
}

/// The unit `at` with the formula of the unit `from`, of which it reads each element at its own place as operand
/// `position`, and with that one's result too. Nothing in between reads that.
fn join(units: &Units, from: usize, at: usize, position: usize) -> Option<Unit> {
    let (producer, consumer) = (&units.units[from], &units.units[at]);
    let (UnitWork::Nest(source), UnitWork::Nest(target)) = (&producer.work, &consumer.work) else {
        return None;
    };
    let [out] = producer.outs.as_slice() else { return None };
    let domain: Vec<Index> = target.domain.iter().map(|&v| Index::var(v)).collect();
    let is_own = |&val: &Val| match target.expr(val) {
        Expr::Load { operand, index, guards } if *operand as usize == position => {
            guards.is_empty() && *index == domain
        }
        Expr::Reduce { .. } => false,
        _ => true,
    };
    let reduces = |val: &Val| matches!(source.expr(*val), Expr::Reduce { .. });
    let fits = source.shape() == target.shape()
        && target.operands[position].shape == source.shape()
        && !target.shape().contains(&0)
        && target.needed(&target.roots).iter().all(is_own)
        && !source.needed(&source.roots).iter().any(reduces);
    if !fits || units.units[from + 1..at].iter().any(|unit| unit.ins.contains(out)) {
        return None;
    }
    substitute((source, producer), (target, consumer), position, true).ok()
}

/// A formula in place of another's loads of operand `position`, its result kept beside the others or not.
fn substitute(
    (source, producer): (&Nest, &Unit),
    (target, consumer): (&Nest, &Unit),
    position: usize,
    keep: bool,
) -> Result<Unit, Refusal> {
    let mut joined = Joined::new(&target.shape());
    let of_target: Vec<Option<u32>> = consumer
        .ins
        .iter()
        .zip(&target.operands)
        .enumerate()
        .map(|(i, (&b, o))| (i != position).then(|| joined.operand(b, o.dtype, &o.shape)))
        .collect();
    let of_source: Vec<u32> = producer
        .ins
        .iter()
        .zip(&source.operands)
        .map(|(&b, o)| joined.operand(b, o.dtype, &o.shape))
        .collect();
    let Joined { mut builder, bufs } = joined;
    if bufs.len() > MOST_OPERANDS {
        return Err(Refusal::TooLarge);
    }
    let domain = builder.domain();
    let mut roots =
        builder.inline(target, &target.roots, &domain, &mut |b, operand, index, guards| match of_target
            [operand as usize]
        {
            Some(own) => load_seen(b, own, index, &target.operands[operand as usize].shape, guards),
            None => {
                let index = reshaped(index, &target.operands[operand as usize].shape, &source.shape());
                inline_guarded(b, source, &of_source, &index, guards)
            }
        });
    let mut outs = consumer.outs.clone();
    if keep {
        roots.push(inline_guarded(&mut builder, source, &of_source, &domain, &[]));
        outs.extend(&producer.outs);
    }
    let merged = builder.finish(&roots);
    if merged.exprs.len() > MOST_EXPRESSIONS {
        return Err(Refusal::TooLarge);
    }
    let mut origin = producer.origin.clone();
    origin.extend(consumer.origin.iter().filter(|o| !producer.origin.contains(o)).cloned());
    let flops = producer.flops + consumer.flops;
    Ok(Unit { work: UnitWork::Nest(Box::new(merged)), ins: bufs, outs, origin, flops })
}

/// An index into a buffer seen under one shape as an index into it under another.
fn reshaped<'i>(index: &'i [Index], seen: &[usize], shape: &[usize]) -> Cow<'i, [Index]> {
    match seen == shape {
        true => Cow::Borrowed(index),
        false => Cow::Owned(Index::unflatten(&Index::flatten(index, seen), shape)),
    }
}

/// A load by a formula that sees the operand under its own shape: packing sees all as one dimension.
fn load_seen(b: &mut NestBuilder, operand: u32, index: &[Index], seen: &[usize], guards: &[Guard]) -> Val {
    let index = reshaped(index, seen, &b.shape_of(operand));
    match guards {
        [] => b.load(operand, &index),
        _ => b.load_guarded(operand, &index.iter().map(|i| i.under(guards)).collect::<Vec<_>>(), guards),
    }
}

/// The producer's element at an index, or 0 where a guard fails; then nothing of it is read.
fn inline_guarded(
    b: &mut NestBuilder,
    source: &Nest,
    operands: &[u32],
    index: &[Index],
    guards: &[Guard],
) -> Val {
    let value = b.inline(source, &source.roots, index, &mut |b, operand, at, own| {
        let all: Cow<'_, [Guard]> = match guards {
            [] => Cow::Borrowed(own),
            _ => Cow::Owned([guards, own].concat()),
        };
        let seen = &source.operands[operand as usize].shape;
        load_seen(b, operands[operand as usize], at, seen, &all)
    })[0];
    if guards.is_empty() {
        return value;
    }
    let inside = b.inside(guards);
    let dtype = b.dtype(value);
    let zero = b.constant_bits(dtype, 0);
    b.apply(ScalarFn::Select, &[inside, value, zero])
}

/// Whether every index of the factors is linear in every variable.
fn is_affine(nest: &Nest) -> bool {
    let Some(Contraction { reduce, factors }) = as_contraction(nest) else { return false };
    let Expr::Reduce { vars, .. } = nest.expr(reduce) else { return false };
    factors.iter().all(|&factor| match nest.expr(factor) {
        Expr::Load { index, .. } => index.iter().all(|i| {
            i.values().is_empty() && nest.domain.iter().chain(vars).all(|&v| i.coefficient(v).is_some())
        }),
        _ => false,
    })
}

/// Whether a unit is nothing but an index map.
fn is_view_unit(unit: &Unit) -> bool {
    matches!(&unit.work, UnitWork::Nest(nest) if is_view(nest))
}
