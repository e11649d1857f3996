//! Pieces: a large operand that every run makes from much less is made and read a piece at a time.
//!
//! Winograd's form of weights takes four times their memory, and no cache has it from the formula that makes it until the
//! products that read it. But nothing needs all of it: of the channels of a result, a few need a piece.
//!
//! ```text
//! for piece of channels                          a repeat
//!   weights[positions, channels, few] = form     one buffer for all pieces
//!   sums[positions, tiles, few] = products       beside those of other pieces
//! ```
//!
//! The rule is about one dimension of the operand. Its maker computes slice `i` of it, and its reader slice `i` of its own
//! result from slice `i` alone; and what both read and write besides moves by a constant from slice to slice. Then both
//! are kernels for the first slices, which are called for the others with their buffers moved.

use std::collections::BTreeSet;

use cranelift_entity::SecondaryMap;
use windlass_ir::loops::{Call, Expr, Guard, Index, Kernel, Nest, NestBuilder, Part, Rounds, Stage, Var};

use super::formula::{flatten_operands, split_loops};
use super::margins::{Margins, as_reduction};
use super::prepare::REMADE;
use super::schedule::{Machine, normalize, schedule};
use super::sliced::Sliced;
use super::units::{Buf, Unit, UnitWork, Units, origins};

/// Bytes of a piece, which stays in the last-level cache beside what its reader reads with it.
const PIECE_BYTES: usize = 3 << 20;

/// The fewest bytes of a piece that rounds are worth, each of which all threads begin together.
const LEAST_BYTES: usize = 512 << 10;

/// Replaces units that make a large operand, and those that read it, by rounds of both.
pub fn cut(units: &mut Units, machine: &Machine) {
    let makers = units.makers_for_one();
    let mut dead: BTreeSet<usize> = BTreeSet::new();
    for at in 0..units.units.len() {
        let cut = Cut::new(units, at, &makers).map(|cut| (cut.unit(units, machine), cut.numbers[0]));
        if let Some((unit, maker)) = cut {
            units.units[at] = unit;
            dead.insert(maker);
        }
    }
    units.remove(&dead);
}

/// A maker of a large operand and its reader, which run in rounds.
struct Cut {
    /// The numbers of the units: the maker, the reader.
    numbers: [usize; 2],
    /// The formulas, their operands flat.
    nests: [Nest; 2],
    /// The variables of their domains that count slices.
    vars: [Var; 2],
    /// By how many elements each of their operands moves from slice to slice.
    steps: [Vec<usize>; 2],
    /// The reader's operand that the maker makes.
    operand: usize,
    array: Sliced,
    /// The slices of a piece.
    size: usize,
}

impl Cut {
    /// The cut of a large operand of a unit. `makers` are those of buffers with one reader.
    fn new(units: &Units, reader: usize, makers: &SecondaryMap<Buf, Option<usize>>) -> Option<Cut> {
        let ins = &units.units[reader].ins;
        (0..ins.len()).find_map(|operand| {
            let data = &units.bufs[ins[operand]];
            let bytes = data.elements().saturating_mul(data.dtype.size());
            let number = makers[ins[operand]].filter(|_| bytes >= REMADE)?;
            let UnitWork::Nest(made) = &units.units[number].work else { return None };
            let (read, None) = as_reduction(&units.units[reader]).filter(|_| made.roots.len() == 1)? else {
                return None;
            };
            let nests = [&**made, read].map(|nest| split_loops(flatten_operands(nest)));
            // Not along the last dimension: lanes stay together.
            let cuts = (0..data.shape.len().saturating_sub(1)).filter_map(|dim| {
                let array = Sliced::new(&data.shape, dim);
                let made = array.counted_by(&nests[0])?;
                let mut domain = nests[1].domain.iter().copied();
                let read =
                    domain.find(|&v| v.extent == made.extent && array.is_read_by(&nests[1], operand, v))?;
                let steps = [steps(&nests[0], made, None)?, steps(&nests[1], read, Some(operand))?];
                let slice_bytes = bytes / made.extent;
                let fits = |&size: &usize| {
                    let bytes = LEAST_BYTES..=PIECE_BYTES;
                    made.extent.is_multiple_of(size) && bytes.contains(&(size * slice_bytes))
                };
                let size = (1..made.extent).rev().find(fits)?;
                let (numbers, vars, nests) = ([number, reader], [made, read], nests.clone());
                Some(Cut { numbers, nests, vars, steps, operand, array, size })
            });
            cuts.min_by_key(|cut| cut.bytes_read_again(units))
        })
    }

    /// The bytes that all pieces read alike, for each of them.
    fn bytes_read_again(&self, units: &Units) -> usize {
        let shared = (0..2).flat_map(|which| {
            let ins = self.others(which, units).filter(move |&(at, _)| self.steps[which][at] == 0);
            ins.map(|(_, buf)| units.bufs[buf].elements() * units.bufs[buf].dtype.size())
        });
        shared.sum::<usize>() * (self.vars[0].extent / self.size)
    }

    /// What a formula reads but for the pieces.
    fn others<'u>(&self, which: usize, units: &'u Units) -> impl Iterator<Item = (usize, Buf)> + use<'u> {
        let ins = units.units[self.numbers[which]].ins.iter().copied().enumerate();
        let piece = Some(self.operand).filter(|_| which == 1);
        ins.filter(move |&(at, _)| Some(at) != piece)
    }

    /// One of the formulas for the first piece, and how its result stands among those of the others.
    fn restricted(&self, which: usize) -> (Nest, Margins) {
        let nest = &self.nests[which];
        let at = nest.domain.iter().position(|v| *v == self.vars[which]).expect("it counts slices");
        let whole = nest.shape();
        let mut shape = whole.clone();
        shape[at] = self.size;
        let made = |operand: usize| which == 1 && operand == self.operand;
        let mut builder = NestBuilder::new(&shape);
        for (number, operand) in nest.operands.iter().enumerate() {
            match made(number) {
                true => builder.operand(operand.dtype, &[self.array.elements(self.size)]),
                false => builder.operand(operand.dtype, &operand.shape),
            };
        }
        let own = builder.domain();
        let mut load = |b: &mut NestBuilder, operand: u32, index: &[Index], guards: &[Guard]| match made(
            operand as usize,
        ) {
            true => b.load(operand, &[self.array.place(&index[0], &own[at], self.size)]),
            false => b.load_guarded(operand, index, guards),
        };
        let roots = builder.inline(nest, &nest.roots, &own, &mut load);
        (builder.finish(&roots), Margins::among_others(&shape, &whole))
    }

    /// By how many elements the reader's result moves from piece to piece.
    fn step_of_result(&self) -> usize {
        let within = self.nests[1].domain.iter().rev().take_while(|v| **v != self.vars[1]);
        within.map(|v| v.extent).product::<usize>() * self.size
    }

    /// The rounds.
    fn unit(&self, units: &Units, machine: &Machine) -> Unit {
        let parts = self.numbers.map(|number| &units.units[number]);
        let times = self.vars[0].extent / self.size;
        let (mut ins, mut calls, mut kernels) = (Vec::new(), Vec::new(), Vec::new());
        for (_, buf) in (0..2).flat_map(|which| self.others(which, units)) {
            if !ins.contains(&buf) {
                ins.push(buf);
            }
        }
        // Buffers are what is read, the result, and the piece.
        let (result, piece) = (ins.len(), ins.len() + 1);
        for (which, unit) in parts.into_iter().enumerate() {
            let (nest, margins) = self.restricted(which);
            let mut kernel =
                schedule(&normalize(&nest), Some(&margins).filter(|_| which == 1), "piece", machine);
            let mut args: Vec<Part> = unit.ins.iter().map(|_| Part::whole(piece)).collect();
            for (at, buf) in self.others(which, units) {
                let buffer = ins.iter().position(|&b| b == buf).expect("it is read");
                let stride = self.steps[which][at] * self.size;
                args[at] = Part { buffer, start: 0, stride: stride as i64, period: 0 };
            }
            args.push(match which {
                0 => Part::whole(piece),
                _ => Part { buffer: result, start: 0, stride: self.step_of_result() as i64, period: 0 },
            });
            shorten(&mut kernel, &args, times);
            let (origin, flops) = (unit.origin.clone(), unit.flops / times as u64);
            calls.push(Call { kernel: kernels.len(), args, origin, flops });
            kernels.push(kernel);
        }
        let data = &units.bufs[parts[0].outs[0]];
        let scratch = vec![(data.dtype, self.array.elements(self.size))];
        let rounds = Rounds { kernels, scratch, stages: vec![Stage { times, calls }] };
        Unit {
            work: UnitWork::Rounds(Box::new(rounds)),
            ins,
            outs: parts[1].outs.clone(),
            origin: origins(parts),
            flops: parts.iter().map(|unit| unit.flops).sum(),
        }
    }
}

/// Makes the parameters of a kernel end where, moved so many times, their buffers do.
fn shorten(kernel: &mut Kernel, args: &[Part], times: usize) {
    let params: Vec<_> = kernel.params().map(|(buffer, _)| buffer).collect();
    for (buffer, part) in params.into_iter().zip(args) {
        kernel.buffers[buffer].len -= part.stride as usize * (times - 1);
    }
}

/// By how many elements each operand moves where a variable of the domain grows by one, if all that the formula reads does so
/// evenly.
fn steps(nest: &Nest, var: Var, made: Option<usize>) -> Option<Vec<usize>> {
    let mut steps: Vec<Option<usize>> = vec![None; nest.operands.len()];
    for val in nest.needed(&nest.roots) {
        match nest.expr(val) {
            Expr::Load { operand, .. } if Some(*operand as usize) == made => {}
            Expr::Load { operand, index, guards } => {
                let step = usize::try_from(index[0].coefficient(var)?).ok()?;
                let known = steps[*operand as usize].replace(step);
                let is_even = known.is_none_or(|known| known == step);
                if !is_even || guards.iter().any(|guard| guard.index.mentions(var)) {
                    return None;
                }
            }
            Expr::Index(index) if index.mentions(var) => return None,
            Expr::Inside(guards) if guards.iter().any(|guard| guard.index.mentions(var)) => return None,
            Expr::Index(_) | Expr::Inside(_) | Expr::Const(_) | Expr::Apply(..) | Expr::Reduce { .. } => {}
        }
    }
    Some(steps.into_iter().map(|step| step.unwrap_or(0)).collect())
}
