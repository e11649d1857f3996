//! Which elements of a register buffer statements read and write.

use smallvec::SmallVec;
use windlass_ir::loops::{Atom, Buffer, Index, Let, Rhs, Stmt, Var, visit_accesses};

/// An access to more elements than this is not looked at.
const MOST_PLACES: usize = 1 << 14;

/// The elements that statements may read: no other needs a value.
pub(super) fn read(block: &[Stmt], buffer: Buffer, len: usize) -> Vec<bool> {
    let mut read = vec![false; len];
    match mark_read(block, buffer, &mut Vec::new(), &mut read) {
        Some(()) => read,
        None => vec![true; len],
    }
}

/// Whether a block writes all that is needed of a buffer before it reads any of it (or does not touch it), where all that
/// reads the buffer is in it.
pub(super) fn kills(block: &[Stmt], buffer: Buffer, needed: &[bool]) -> bool {
    kills_for(block, buffer, needed, &vec![false; needed.len()])
}

/// Whether a block does so, where `after` is read behind it.
fn kills_for(block: &[Stmt], buffer: Buffer, needed: &[bool], after: &[bool]) -> bool {
    let mut written: Vec<bool> = needed.iter().map(|needed| !needed).collect();
    for (at, stmt) in block.iter().enumerate() {
        let (mut reads, mut writes) = (false, false);
        visit_accesses(std::slice::from_ref(stmt), &mut |b, _, write| {
            writes |= b == buffer && write;
            reads |= b == buffer && !write;
        });
        let both = |a: &[bool], b: &[bool]| -> Vec<bool> { a.iter().zip(b).map(|(a, b)| a | b).collect() };
        let behind = || both(after, &read(&block[at + 1..], buffer, needed.len()));
        match stmt {
            _ if !reads && !writes => {}
            Stmt::For { body, .. } if reads => return kills_for(body, buffer, needed, &behind()),
            Stmt::If { then, otherwise, .. } if reads => {
                let behind = behind();
                // A side does without what only the other one reads.
                return [then, otherwise].iter().all(|side| {
                    let reads = both(&behind, &read(side, buffer, needed.len()));
                    let needed: Vec<bool> = needed.iter().zip(reads).map(|(a, b)| a & b).collect();
                    kills_for(side, buffer, &needed, &behind)
                });
            }
            Stmt::Let(_) | Stmt::Prefetch { .. } => return false,
            Stmt::If { then, otherwise, .. } => {
                // What either side writes.
                let mut sides = [then, otherwise].map(|side| {
                    let mut written = written.clone();
                    mark_written(side, buffer, &mut Vec::new(), &mut written);
                    written
                });
                let [ours, theirs] = &mut sides;
                ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| *ours &= *theirs);
                written.copy_from_slice(ours);
            }
            Stmt::For { .. } | Stmt::Store { .. } => {
                mark_written(std::slice::from_ref(stmt), buffer, &mut Vec::new(), &mut written);
            }
        }
        if written.iter().all(|&w| w) {
            return true;
        }
    }
    // Read nowhere, or written in part and never read.
    true
}

/// Marks the elements that statements certainly write.
fn mark_written(block: &[Stmt], buffer: Buffer, loops: &mut Vec<(Var, i64)>, written: &mut [bool]) {
    for stmt in block {
        match stmt {
            Stmt::Store { buffer: b, index, .. } if *b == buffer => {
                mark(index, loops, written);
            }
            Stmt::For { var, extent, body, .. } => {
                let Some(extent) = extent.as_constant().filter(|n| *n > 0) else { continue };
                loops.push((*var, extent));
                mark_written(body, buffer, loops, written);
                loops.pop();
            }
            Stmt::Store { .. } | Stmt::Let(_) | Stmt::If { .. } | Stmt::Prefetch { .. } => {}
        }
    }
}

/// Marks the elements that statements may read, or none if that is not known.
fn mark_read(block: &[Stmt], buffer: Buffer, loops: &mut Vec<(Var, i64)>, read: &mut [bool]) -> Option<()> {
    for stmt in block {
        match stmt {
            Stmt::Let(Let { rhs: Rhs::Load { buffer: b, index, .. }, .. }) if *b == buffer => {
                mark(index, loops, read)?;
            }
            Stmt::For { var, extent, body, .. } => {
                // An index is not known if it mentions the variable of a loop whose extent is not constant.
                let outside = loops.len();
                loops.extend(extent.as_constant().map(|extent| (*var, extent)));
                mark_read(body, buffer, loops, read)?;
                loops.truncate(outside);
            }
            Stmt::If { then, otherwise, .. } => {
                mark_read(then, buffer, loops, read)?;
                mark_read(otherwise, buffer, loops, read)?;
            }
            Stmt::Let(_) | Stmt::Store { .. } | Stmt::Prefetch { .. } => {}
        }
    }
    Some(())
}

/// Marks the elements at an index in open loops, if it follows from their variables alone.
fn mark(index: &Index, loops: &[(Var, i64)], marked: &mut [bool]) -> Option<()> {
    let mut steps: SmallVec<[(i64, i64); 4]> = SmallVec::new();
    let mut places = 1usize;
    for (atom, step) in index.terms() {
        let Atom::Var(var) = atom else { return None };
        let &(_, extent) = loops.iter().find(|(open, _)| open.id == var.id)?;
        places = places.saturating_mul(extent as usize);
        steps.push((*step, extent));
    }
    (places <= MOST_PLACES).then(|| mark_from(index.offset(), &steps, marked))
}

/// Marks the elements that are sums of a first one and some number of each step.
fn mark_from(first: i64, steps: &[(i64, i64)], marked: &mut [bool]) {
    let (step, count, rest) = match steps {
        [] => (1, 1, &[][..]),
        [(step, count), rest @ ..] => (*step, *count, rest),
    };
    match rest {
        // A run of elements.
        [] if step == 1 => {
            let [from, to] = [first, first + count].map(|at| at.clamp(0, marked.len() as i64) as usize);
            marked[from..to].fill(true);
        }
        _ => (0..count).for_each(|i| mark_from(first + i * step, rest, marked)),
    }
}

#[cfg(test)]
mod tests {
    use windlass_ir::DType;
    use windlass_ir::loops::{Guard, Kernel, KernelBuilder, LoopKind, Role};

    use super::*;

    /// A loop whose body has a branch: one side writes and reads four elements, the other two.
    fn branches(behind: Option<i64>) -> (Kernel, Buffer) {
        let mut b = KernelBuilder::new("branches");
        let x = b.buffer("x", DType::F32, 8, Role::In);
        let y = b.buffer("y", DType::F32, 8, Role::Out);
        let acc = b.buffer("acc", DType::F32, 4, Role::Register);
        let side = |b: &mut KernelBuilder, lanes: usize, i: &Index| {
            b.repeat(LoopKind::Vector, lanes, |b, lane| {
                let value = b.load(x, i.add(&lane));
                b.store(acc, lane, value);
            });
            b.repeat(LoopKind::Vector, lanes, |b, lane| {
                let value = b.load(acc, lane.clone());
                b.store(y, i.add(&lane), value);
            });
        };
        b.repeat(LoopKind::Parallel, 4, |b, i| {
            b.begin_if(&[Guard::new(i.clone(), 2)]);
            side(b, 4, &i);
            b.begin_else();
            side(b, 2, &i);
            b.end();
            if let Some(at) = behind {
                let value = b.load(acc, Index::constant(at));
                b.store(y, i, value);
            }
        });
        (b.finish(), acc)
    }

    #[test]
    fn a_side_of_a_branch_does_without_what_only_the_other_one_reads() {
        let kills = |behind| {
            let (kernel, acc) = branches(behind);
            kills(&kernel.body, acc, &read(&kernel.body, acc, 4))
        };
        assert!(kills(None));
        assert!(kills(Some(1)));
        // What only one side writes is read behind both.
        assert!(!kills(Some(3)));
    }
}
