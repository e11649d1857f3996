//! Memory planning: where every buffer is while the program runs.
//!
//! Buffers live from the step that writes them to the last that reads them. Largest first, each gets the
//! lowest offset at which nothing that lives at the same time is (Pisarchyk and Lee, 2020, "greedy by
//! size"). [`check`] holds the result to its purpose by another method: it follows the bytes.

use std::collections::BTreeMap;

use windlass_ir::Error;
use windlass_ir::loops::{
    Atom, Block, Buffer, Guard, Index, Let, Place, Program, Repeat, Rhs, Role, Stmt, Var, Work,
};

/// A buffer to be placed: its size in bytes, and its first and last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Bytes.
    pub bytes: u64,
    /// The step that writes it.
    pub first: usize,
    /// The last step that reads it.
    pub last: usize,
}

/// Offsets for the buffers, in their order, and the bytes needed in all.
pub fn place(buffers: &[Lifetime]) -> (Vec<u64>, u64) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(buffers[i].bytes), buffers[i].first, i));
    let mut offsets = vec![0u64; buffers.len()];
    // Placed buffers, by offset.
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in order {
        let buffer = buffers[i];
        let size = round_up(buffer.bytes);
        let mut at = 0;
        for &other in &placed {
            let overlaps = buffers[other].first <= buffer.last && buffer.first <= buffers[other].last;
            if !overlaps {
                continue;
            }
            if offsets[other] >= at + size {
                break;
            }
            at = at.max(offsets[other] + round_up(buffers[other].bytes));
        }
        offsets[i] = at;
        total = total.max(at + size);
        let position = placed.partition_point(|&p| offsets[p] <= at);
        placed.insert(position, i);
    }
    (offsets, total)
}

fn round_up(bytes: u64) -> u64 {
    bytes.div_ceil(Program::ALIGN).max(1) * Program::ALIGN
}

/// Who filled an interval of the arena.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A step, by one of its arguments.
    Step(usize, usize),
    /// Repeats that follow each other from this step on, by arguments that move from this byte.
    Rows(usize, u64),
}

/// Follows the bytes of the arena through the program: whatever a step reads there was written by one
/// earlier step, whole, and not overwritten since; and no step reads what it writes itself, unless each
/// element is read only where it is about to be overwritten. Every round of a repeat is followed. What arguments that
/// move in one buffer fill in several rounds, or in repeats right after each other, counts as written by one step. An
/// input in whose memory an output is counts as a part of the arena that is no longer read once the output is written.
pub fn check(program: &Program) -> Result<(), Error> {
    let fail = |message: String| Err(Error::Verify { invariant: "P1", message });
    // Start of an interval -> (end, what filled it).
    let mut owners: BTreeMap<u64, (u64, Owner)> = BTreeMap::new();
    // The output in the memory of an input, and whether it is written yet.
    let mut replaced: BTreeMap<u32, (u32, bool)> =
        program.in_place.iter().map(|&(input, output)| (input, (output, false))).collect();
    let replaces: BTreeMap<u32, u32> =
        program.in_place.iter().map(|&(input, output)| (output, input)).collect();
    for (number, round) in program.order() {
        let step = &program.steps[number];
        let params: Vec<(u64, bool, bool)> = match &step.work {
            Work::Kernel(k) => program.kernels[*k as usize]
                .params()
                .map(|(_, b)| {
                    let bytes = (b.len * b.dtype.size()) as u64;
                    // What a kernel reads of an `inout` result it has written there before.
                    (bytes, b.role == Role::In, b.role != Role::In)
                })
                .collect(),
            Work::Interpret { ins, outs, .. } => {
                let bytes =
                    |ty: &windlass_ir::TensorType| (ty.as_len().unwrap_or(0) * ty.dtype.size()) as u64;
                let ins = ins.iter().map(|ty| (bytes(ty), true, false));
                ins.chain(outs.iter().map(|ty| (bytes(ty), false, true))).collect()
            }
        };
        if params.len() != step.args.len() {
            return fail(format!("step {number} passes {} buffers, takes {}", step.args.len(), params.len()));
        }
        for place in &step.args {
            let Place::Input(input) = place else { continue };
            let Some(&(output, written)) = replaced.get(input) else { continue };
            let to = Place::Output(output);
            if written || step.args.contains(&to) && !is_in_place(program, step, *place, to) {
                let name = &program.inputs[*input as usize].0;
                return fail(format!("step {number} reads input `{name}` where an output has replaced it"));
            }
        }
        for place in &step.args {
            if let Place::Output(output) = place
                && let Some((_, written)) = replaces.get(output).and_then(|input| replaced.get_mut(input))
            {
                *written = true;
            }
        }
        let moved = program.starts(number, round);
        let moved = &moved;
        let arena = |read: bool| {
            let args = step.args.iter().zip(&params).zip(moved).enumerate();
            args.filter_map(move |(arg, ((place, &(bytes, reads, writes)), moved))| match place {
                Place::Arena(at) if bytes > 0 && (if read { reads } else { writes }) => {
                    // What lies before the arena is past its end.
                    let start = at.checked_add_signed(*moved).unwrap_or(u64::MAX - bytes);
                    Some((start, start + bytes, arg))
                }
                _ => None,
            })
        };
        for (start, end, _) in arena(true) {
            let owner = owners.range(..=start).next_back();
            if owner.is_none_or(|(_, &(owned, _))| owned < end) {
                return fail(format!(
                    "step {number} reads bytes {start}..{end}, which no one step wrote whole"
                ));
            }
        }
        let reads: Vec<(u64, u64)> = arena(true).map(|(start, end, _)| (start, end)).collect();
        for (start, end, arg) in arena(false) {
            let unaligned = start % Program::ALIGN != 0 && moved[arg] == 0;
            if end > program.arena_bytes || unaligned {
                return fail(format!(
                    "step {number} writes bytes {start}..{end} of an arena of {}",
                    program.arena_bytes
                ));
            }
            let overlaps = |&&(s, e): &&(u64, u64)| s < end && start < e;
            let place = Place::Arena(start);
            let in_place =
                |&(s, e): &(u64, u64)| (s, e) == (start, end) && is_in_place(program, step, place, place);
            if !reads.iter().filter(overlaps).all(in_place) {
                return fail(format!("step {number} reads bytes {start}..{end} while it writes them"));
            }
            let is_moved = |repeat: &&Repeat| repeat.moves.iter().any(|m| (m.step, m.arg) == (number, arg));
            let by = match (program.repeat_of(number).filter(is_moved), step.args[arg]) {
                (Some(repeat), Place::Arena(base)) => Owner::Rows(chain(program, repeat), base),
                _ => Owner::Step(number, arg),
            };
            let (mut first, mut last) = (start, end);
            let hit: Vec<u64> = owners
                .range(..=end)
                .rev()
                .take_while(|(_, (owned, _))| *owned >= start)
                .map(|(&at, _)| at)
                .collect();
            for at in hit {
                let (owned, owner) = owners[&at];
                // What other rounds wrote, here or beside it, is of the same buffer. What is left of
                // another one that is overwritten can no longer be read whole.
                if owner == by {
                    (first, last) = (first.min(at), last.max(owned));
                } else if at >= end || owned <= start {
                    continue;
                }
                owners.remove(&at);
            }
            owners.insert(first, (last, by));
        }
    }
    Ok(())
}

/// The first step of the repeats right after each other of which this is one.
fn chain(program: &Program, repeat: &Repeat) -> usize {
    let mut first = repeat.first;
    while let Some(before) = first.checked_sub(1).and_then(|step| program.repeat_of(step)) {
        first = before.first;
    }
    first
}

/// Whether the kernel of a step reads each element of the operands at `from` only in the iteration that overwrites it by
/// the result at `to`, before it does: every block that loads one stores to the same index later, and the index tells
/// each iteration of the loops around from the others.
fn is_in_place(program: &Program, step: &windlass_ir::loops::Step, from: Place, to: Place) -> bool {
    let Work::Kernel(kernel) = &step.work else { return false };
    let kernel = &program.kernels[*kernel as usize];
    let at = |role: Role, place: Place| -> Vec<Buffer> {
        let params = kernel.params().zip(&step.args);
        params
            .filter(|((_, b), own)| b.role == role && **own == place)
            .map(|((buffer, _), _)| buffer)
            .collect()
    };
    let (ins, outs) = (at(Role::In, from), at(Role::Out, to));
    match outs.as_slice() {
        [to] => ins.iter().all(|&from| overwrites(&kernel.body, from, *to, &mut Vec::new())),
        _ => false,
    }
}

fn overwrites(block: &Block, from: Buffer, to: Buffer, around: &mut Vec<Var>) -> bool {
    block.iter().enumerate().all(|(at, stmt)| match stmt {
        Stmt::For { var, body, .. } => {
            around.push(*var);
            let fine = overwrites(body, from, to, around);
            around.pop();
            fine
        }
        Stmt::If { guards, then, otherwise } => {
            let mut free: Vec<Var> =
                around.iter().copied().filter(|v| !guards.iter().any(|g| fixes(g, *v))).collect();
            overwrites(then, from, to, &mut free) && overwrites(otherwise, from, to, around)
        }
        Stmt::Let(Let { rhs: Rhs::Load { buffer, index, guards }, .. }) if *buffer == from => {
            guards.is_empty() && stores(&block[at..], to, index) && is_injective(index, around)
        }
        Stmt::Let(_) | Stmt::Store { .. } | Stmt::Prefetch { .. } => true,
    })
}

/// Whether a variable has one value wherever a guard holds.
fn fixes(guard: &Guard, var: Var) -> bool {
    guard.size == 1 && guard.index.terms().len() == 1 && guard.index.mentions(var)
}

/// Whether the statements store to this index.
fn stores(block: &[Stmt], to: Buffer, at: &Index) -> bool {
    block.iter().any(|stmt| match stmt {
        Stmt::For { body, .. } => stores(body, to, at),
        Stmt::If { then, otherwise, .. } => stores(then, to, at) || stores(otherwise, to, at),
        Stmt::Store { buffer, index, .. } => *buffer == to && index == at,
        Stmt::Let(_) | Stmt::Prefetch { .. } => false,
    })
}

/// Whether no two points of these loops have the same index.
fn is_injective(index: &Index, vars: &[Var]) -> bool {
    let mut known = Vec::new();
    determines(index, &mut known) && vars.iter().filter(|v| v.extent > 1).all(|var| known.contains(var))
}

/// Whether the value of an index tells those of its terms, each term's steps being longer than all that those with shorter
/// steps reach together. Adds the variables that they tell: a quotient and its remainder tell what is divided.
fn determines(index: &Index, known: &mut Vec<Var>) -> bool {
    let mut steps: Vec<(i64, i64)> = Vec::new();
    for (atom, step) in index.terms() {
        let (low, high) = match atom {
            Atom::Var(var) => (0, var.extent as i64 - 1),
            Atom::Div(x, by) => (x.range().0.div_euclid(*by), x.range().1.div_euclid(*by)),
            Atom::Mod(x, by) => (0, if x.range().0 < 0 { by - 1 } else { x.range().1.min(by - 1) }),
            Atom::Value(..) => return false,
        };
        if *step <= 0 || low < 0 {
            return false;
        }
        steps.push((*step, high));
    }
    steps.sort_unstable();
    let mut reach = 0i64;
    let apart = steps.into_iter().all(|(step, most)| {
        let fine = step > reach;
        reach = reach.saturating_add(step.saturating_mul(most));
        fine
    });
    if !apart {
        return false;
    }
    for (atom, _) in index.terms() {
        match atom {
            Atom::Var(var) => known.push(*var),
            Atom::Mod(x, by) => {
                let whole = x.range().0 >= 0 && x.range().1 < *by;
                let quotient =
                    |(other, _): &(Atom, i64)| matches!(other, Atom::Div(y, d) if y == x && d == by);
                if whole || index.terms().iter().any(quotient) {
                    // What is divided may tell less than all of its variables.
                    determines(x, known);
                }
            }
            Atom::Div(..) | Atom::Value(..) => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use windlass_ir::DType;
    use windlass_ir::loops::{KernelBuilder, LoopKind, Move, Step};

    use super::*;

    /// A state of 64 bytes, kept in the halves of the first 128 bytes in turns, three times changed; each change needs
    /// what stands at byte `kept` too.
    fn repeated(kept: u64) -> Program {
        let kernel = |ins: usize| {
            let mut b = KernelBuilder::new("k");
            let ins: Vec<Buffer> =
                (0..ins).map(|i| b.buffer(&format!("x{i}"), DType::F32, 16, Role::In)).collect();
            let y = b.buffer("y", DType::F32, 16, Role::Out);
            b.repeat(LoopKind::Vector, 16, |b, i| {
                let x = b.load(ins[0], i.clone());
                b.store(y, i, x);
            });
            b.finish()
        };
        let step = |kernel: u32, args: &[Place]| Step {
            work: Work::Kernel(kernel),
            args: args.to_vec(),
            origin: Vec::new(),
            flops: 0,
        };
        let moving = |arg, start, stride| Move { step: 2, arg, start, stride, period: 2 };
        Program {
            kernels: vec![kernel(1), kernel(2)],
            steps: vec![
                step(0, &[Place::Input(0), Place::Arena(0)]),
                step(0, &[Place::Input(0), Place::Arena(kept)]),
                step(1, &[Place::Arena(0), Place::Arena(kept), Place::Arena(0)]),
                step(0, &[Place::Arena(64), Place::Output(0)]),
            ],
            repeats: vec![Repeat {
                first: 2,
                steps: 1,
                times: 3,
                moves: vec![moving(0, 0, 64), moving(2, 64, -64)],
            }],
            arena_bytes: kept + 64,
            ..Program::default()
        }
    }

    #[test]
    fn every_round_is_followed() {
        assert!(check(&repeated(128)).is_ok());
        // Overwritten in the first round, read in the second.
        let message = check(&repeated(64)).unwrap_err().to_string();
        assert!(message.contains("step 2 reads"), "{message}");
        let mut once = repeated(128);
        once.repeats.clear();
        assert!(check(&once).is_err(), "nothing writes the other half");
    }

    #[test]
    fn quotients_and_remainders_tell_what_is_divided() {
        let [i, j] = [Var { id: 0, extent: 16 }, Var { id: 1, extent: 8 }];
        let (x, y) = (Index::var(i), Index::var(j));
        let swapped = x.div(4).add(&x.rem(4).mul(4));
        assert!(is_injective(&swapped.mul(8).add(&y), &[i, j]));
        // Half of what is divided, steps that overlap, a variable that does not count.
        assert!(!is_injective(&x.div(4).mul(8).add(&y), &[i, j]));
        assert!(!is_injective(&swapped.mul(4).add(&y), &[i, j]));
        assert!(!is_injective(&swapped, &[i, j]));
        assert!(is_injective(&swapped, &[i]));
    }

    #[test]
    fn buffers_that_never_meet_share_memory() {
        let life = |bytes, first, last| Lifetime { bytes, first, last };
        let (offsets, total) = place(&[life(100, 0, 1), life(64, 1, 2), life(128, 2, 3)]);
        assert_eq!(offsets[0], offsets[2]);
        assert_eq!(total, 128 + 64);
    }
}
