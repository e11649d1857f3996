//! Memory planning: where every buffer is while the program runs.
//!
//! Buffers live from the step that writes them to the last that reads them. Largest first, each gets the
//! lowest offset at which nothing that lives at the same time is (Pisarchyk and Lee, 2020, "greedy by
//! size"). [`check`] holds the result to its purpose by another method: it follows the bytes.

use std::collections::BTreeMap;

use windlass_ir::Error;
use windlass_ir::loops::{Place, Program, Role, Work};

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

/// Follows the bytes of the arena through the program: whatever a step reads there was written by one
/// earlier step, whole, and not overwritten since; and no step reads what it writes itself.
pub fn check(program: &Program) -> Result<(), Error> {
    let fail = |message: String| Err(Error::Verify { invariant: "P1", message });
    // Start of an interval -> (end, number of the write that filled it).
    let mut owners: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
    let mut writes = 0;
    for (number, step) in program.steps.iter().enumerate() {
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
        let arena = |read: bool| {
            step.args.iter().zip(&params).filter_map(move |(place, &(bytes, reads, writes))| match place {
                Place::Arena(at) if bytes > 0 && (if read { reads } else { writes }) => {
                    Some((*at, at + bytes))
                }
                _ => None,
            })
        };
        for (start, end) in arena(true) {
            let owner = owners.range(..=start).next_back();
            if owner.is_none_or(|(_, &(owned, _))| owned < end) {
                return fail(format!(
                    "step {number} reads bytes {start}..{end}, which no one step wrote whole"
                ));
            }
        }
        let reads: Vec<(u64, u64)> = arena(true).collect();
        for (start, end) in arena(false) {
            if end > program.arena_bytes || start % Program::ALIGN != 0 {
                return fail(format!(
                    "step {number} writes bytes {start}..{end} of an arena of {}",
                    program.arena_bytes
                ));
            }
            if reads.iter().any(|&(s, e)| s < end && start < e) {
                return fail(format!("step {number} reads bytes {start}..{end} while it writes them"));
            }
            let hit: Vec<u64> = owners
                .range(..end)
                .rev()
                .take_while(|(_, (owned, _))| *owned > start)
                .map(|(&at, _)| at)
                .collect();
            for at in hit {
                // What is left of an overwritten buffer can no longer be read whole.
                owners.remove(&at);
            }
            owners.insert(start, (end, writes));
            writes += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_never_meet_share_memory() {
        let life = |bytes, first, last| Lifetime { bytes, first, last };
        let (offsets, total) = place(&[life(100, 0, 1), life(64, 1, 2), life(128, 2, 3)]);
        assert_eq!(offsets[0], offsets[2]);
        assert_eq!(total, 128 + 64);
    }
}
