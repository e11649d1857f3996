//! Words: small integers that are packed as they stand in memory are that memory, seen as words.
//!
//! On a machine that stores low halves first, `pack2(x[2 i], x[2 i + 1])` is word `i` of `x`. A formula that gives all
//! words in order is no work at all, and one that gives them in another order, as weights are laid out, reads words where
//! it would read the elements one by one.

use cranelift_entity::EntitySet;
use rustc_hash::FxHashMap;
use windlass_ir::loops::{Expr, Guard, Index, Nest, NestBuilder, Operand, Val};
use windlass_ir::{DType, ScalarFn};

use super::schedule::Machine;
use super::units::{Buf, BufData, Unit, UnitWork, Units};

/// Bytes of a word.
const BYTES: usize = 4;

/// Elements of an operand that are packed into a word as they stand in memory.
struct Word {
    operand: u32,
    /// How many.
    count: usize,
    /// The first, in the operand as one dimension.
    first: Index,
    guards: Vec<Guard>,
}

/// The operand of which a nest gives neighbours as words, on a machine that stores low halves first the same memory.
pub fn as_words(nest: &Nest) -> Option<u32> {
    let [root] = nest.roots.as_slice() else { return None };
    let Word { operand, count, first, guards } = word(nest, *root)?;
    let domain: Vec<Index> = nest.domain.iter().map(|&v| Index::var(v)).collect();
    let own = first == Index::flatten(&domain, &nest.shape()).mul(count as i64);
    let whole = len(nest, operand) == count * nest.shape().iter().product::<usize>();
    (own && whole && guards.is_empty()).then_some(operand)
}

/// Has formulas read words in place of elements that they pack.
pub fn see(units: &mut Units, machine: &Machine) {
    if !machine.little_endian {
        return;
    }
    let mut seen: FxHashMap<Buf, Buf> = FxHashMap::default();
    let mut result: Vec<Unit> = Vec::with_capacity(units.units.len());
    for mut unit in std::mem::take(&mut units.units) {
        for operand in 0..unit.ins.len() {
            let UnitWork::Nest(nest) = &mut unit.work else { break };
            if as_words(nest).is_some() {
                break;
            }
            let Some(changed) = in_words(nest, operand as u32) else { continue };
            **nest = changed;
            let from = unit.ins[operand];
            unit.ins[operand] = *seen.entry(from).or_insert_with(|| {
                let words = words_of(&units.bufs[from]);
                let data = BufData { dtype: DType::I32, shape: words.shape(), constant: None };
                let to = units.bufs.push(data);
                let work = UnitWork::Nest(Box::new(words));
                result.push(Unit {
                    work,
                    ins: vec![from],
                    outs: vec![to],
                    origin: unit.origin.clone(),
                    flops: 0,
                });
                to
            });
        }
        result.push(unit);
    }
    units.units = result;
}

/// The formula that reads an operand as words, if it packs all that it reads of it.
fn in_words(nest: &Nest, operand: u32) -> Option<Nest> {
    let mut found: Vec<(Val, Word)> = Vec::new();
    let (mut seen, mut left) = (EntitySet::new(), nest.roots.clone());
    while let Some(val) = left.pop() {
        if !seen.insert(val) {
            continue;
        }
        match word(nest, val).filter(|word| word.operand == operand) {
            Some(word) => found.push((val, word)),
            None if matches!(nest.expr(val), Expr::Load { operand: of, .. } if *of == operand) => {
                return None;
            }
            None => nest.expr(val).visit_operands(&mut |of| left.push(of)),
        }
    }
    let count = found.first()?.1.count;
    let starts_one = |word: &Word| word.first.rem(count as i64) == Index::constant(0);
    if !len(nest, operand).is_multiple_of(count) || !found.iter().all(|(_, word)| starts_one(word)) {
        return None;
    }
    let mut changed = nest.clone();
    changed.operands[operand as usize] =
        Operand { dtype: DType::I32, shape: [len(nest, operand) / count].into_iter().collect() };
    for (val, Word { first, guards, .. }) in found {
        let index = vec![first.div(count as i64)];
        changed.exprs[val] = (Expr::Load { operand, index, guards }, DType::I32);
    }
    Some(changed.pruned())
}

/// What a value packs, if that stands in memory as it is packed.
fn word(nest: &Nest, val: Val) -> Option<Word> {
    let mut parts = vec![val];
    while let Expr::Apply(ScalarFn::Pack2, _) = nest.expr(parts[0]) {
        let halves = |&val: &Val| match nest.expr(val) {
            Expr::Apply(ScalarFn::Pack2, halves) => Some(halves.iter().copied()),
            _ => None,
        };
        parts = parts.iter().map(halves).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect();
    }
    let count = parts.len();
    let mut found: Option<Word> = None;
    for (step, part) in parts.into_iter().enumerate() {
        let part = match nest.expr(part) {
            Expr::Apply(ScalarFn::Cast(to), of) if to.size() == nest.dtype(of[0]).size() => of[0],
            _ => part,
        };
        let Expr::Load { operand, index, guards } = nest.expr(part) else { return None };
        let at = Index::flatten(index, &nest.operands[*operand as usize].shape);
        match &found {
            None if count > 1 && nest.dtype(part).size() * count == BYTES => {
                found = Some(Word { operand: *operand, count, first: at, guards: guards.clone() });
            }
            Some(word) if word.operand == *operand && word.guards == *guards => {
                (at == word.first.add_const(step as i64)).then_some(())?;
            }
            _ => return None,
        }
    }
    found
}

/// All words of a buffer, in order.
fn words_of(data: &BufData) -> Nest {
    let count = BYTES / data.dtype.size();
    let mut builder = NestBuilder::new(&[data.elements() / count]);
    let operand = builder.operand(data.dtype, &[data.elements()]);
    let at = builder.domain()[0].mul(count as i64);
    let element = if count == 4 { DType::I8 } else { DType::I16 };
    let parts = (0..count as i64).map(|step| builder.load(operand, &[at.add_const(step)])).collect();
    let word = pack(&mut builder, parts, element);
    builder.finish(&[word])
}

/// Elements, a power of two of them, as one word, the first in its lowest bits.
pub fn pack(builder: &mut NestBuilder, parts: Vec<Val>, element: DType) -> Val {
    let mut parts: Vec<Val> = parts.into_iter().map(|part| builder.cast(part, element)).collect();
    while parts.len() > 1 {
        parts = parts.chunks(2).map(|pair| builder.apply(ScalarFn::Pack2, pair)).collect();
    }
    parts[0]
}

/// The elements of an operand.
fn len(nest: &Nest, operand: u32) -> usize {
    nest.operands[operand as usize].shape.iter().product()
}
