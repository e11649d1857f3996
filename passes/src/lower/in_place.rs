//! Outputs that stand in the memory of an input: what a training step makes of a parameter takes its place.
//!
//! The caller has one buffer for both. So nothing may read the input once the output is being written, but for a formula
//! that reads each element of the input only for the same element of its result. Where something does, the output is
//! made in memory of its own, and copied at the end.

use std::collections::BTreeSet;

use cranelift_entity::SecondaryMap;

use super::formula::reads_own_places;
use super::units::{Buf, Unit, UnitWork, Units};
use super::{aliases, copy_of};
use crate::lower::schedule::Machine;

/// Copies outputs at the end whose units cannot write to where they belong, or all of them.
pub fn settle(units: &mut Units, machine: &Machine, all: bool) {
    let aliases = aliases(units, machine);
    let root = |buf: Buf| aliases[buf].unwrap_or(buf);
    let (mut writer, mut last): (Positions, Positions) = (SecondaryMap::new(), SecondaryMap::new());
    for (at, unit) in units.units.iter().enumerate().filter(|(_, unit)| aliases[unit.outs[0]].is_none()) {
        unit.ins.iter().for_each(|&buf| last[root(buf)] = Some(at));
        unit.outs.iter().for_each(|&buf| writer[buf] = Some(at));
    }
    let is_late = |&(input, output): &(usize, usize)| {
        let (from, to) = (units.inputs[input].1, root(units.outputs[output].1));
        from != to
            && match (writer[to], last[from]) {
                _ if all => true,
                (Some(writer), Some(last)) if last == writer => {
                    !reads_own_elements(&units.units[writer], |buf| root(buf) == from)
                }
                (Some(writer), last) => last > Some(writer),
                (None, _) => true,
            }
    };
    let late: BTreeSet<usize> =
        units.in_place.iter().filter(|pair| is_late(pair)).map(|&(_, output)| output).collect();
    for output in late {
        let copy = copy_of(units, output);
        units.outputs[output].1 = copy;
    }
}

type Positions = SecondaryMap<Buf, Option<usize>>;

/// Whether a formula reads each element of some operands for the same element of its results alone. All of its results'
/// elements are stored once, after everything that they are made of was read.
fn reads_own_elements(unit: &Unit, is_of: impl Fn(Buf) -> bool) -> bool {
    let (UnitWork::Nest(nest) | UnitWork::Copy(nest)) = &unit.work else { return false };
    reads_own_places(nest, |operand| is_of(unit.ins[operand as usize]))
}
