//! Preparation: what depends on constants alone is computed once, before the first run.
//!
//! Weights are scaled, transposed and packed by units like any others. This part takes them out of the
//! units that run each time, and what they compute becomes further constants of the program.

use cranelift_entity::SecondaryMap;

use super::formula::as_identity;
use super::schedule::top_reductions;
use super::units::{Buf, Unit, UnitWork, Units};

/// Bytes that a result may be larger than what it is made from, and still be kept.
const GROWTH: usize = 64 << 10;

/// The buffers that are known before the first run: constants, and what is prepared from them.
pub fn known_bufs(units: &Units) -> SecondaryMap<Buf, bool> {
    let mut known: SecondaryMap<Buf, bool> = SecondaryMap::new();
    for (buf, data) in units.bufs.iter() {
        known[buf] = data.constant.is_some();
    }
    for unit in &units.units {
        if is_prepared(unit, units, &known) {
            unit.outs.iter().for_each(|&b| known[b] = true);
        }
    }
    known
}

/// Whether a unit depends on known buffers alone, and its result is worth keeping: one much larger than
/// what it is made from, such as a broadcast, is cheaper to compute again than to read, unless it takes sums.
fn is_prepared(unit: &Unit, units: &Units, known: &SecondaryMap<Buf, bool>) -> bool {
    let pure = match &unit.work {
        UnitWork::Interpret(op) => op.is_pure(),
        UnitWork::Nest(_) | UnitWork::Copy(_) | UnitWork::Kernel(_) => true,
    };
    let bytes = |bufs: &[Buf]| -> usize {
        bufs.iter().map(|&b| units.bufs[b].elements().saturating_mul(units.bufs[b].dtype.size())).sum()
    };
    let sums = matches!(&unit.work, UnitWork::Nest(nest) if !top_reductions(nest).is_empty());
    let small = || bytes(&unit.outs) <= bytes(&unit.ins).saturating_mul(2).saturating_add(GROWTH);
    pure && !unit.ins.is_empty() && unit.ins.iter().all(|&b| known[b]) && (sums || small())
}

/// Takes the units that are prepared out. Their results that the others read are from then on
/// [`Units::prepared`], in the order in which they are outputs of the units returned.
pub fn split(units: &mut Units) -> Option<Units> {
    let known = known_bufs(units);
    let mut is_output: SecondaryMap<Buf, bool> = SecondaryMap::new();
    units.outputs.iter().for_each(|(_, b)| is_output[*b] = true);
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for unit in std::mem::take(&mut units.units) {
        if unit.outs.iter().any(|&b| !known[b] || is_output[b]) {
            after.push(unit);
        } else if let UnitWork::Nest(nest) = &unit.work
            && let Some(operand) = as_identity(nest)
            && let Some(tensor) = &units.bufs[unit.ins[operand as usize]].constant
        {
            // The same bytes under another shape.
            let out = unit.outs[0];
            units.bufs[out].constant = Some(tensor.reshaped(&units.bufs[out].shape));
        } else {
            before.push(unit);
        }
    }
    units.units = after;
    let mut made: SecondaryMap<Buf, bool> = SecondaryMap::new();
    before.iter().flat_map(|u| &u.outs).for_each(|&b| made[b] = true);
    for &buf in units.units.iter().flat_map(|u| &u.ins) {
        if made[buf] && !units.prepared.contains(&buf) {
            units.prepared.push(buf);
        }
    }
    if units.prepared.is_empty() {
        return None;
    }
    let outputs = units.prepared.iter().enumerate().map(|(i, &b)| (format!("prepared{i}"), b)).collect();
    let prepare = Units { bufs: units.bufs.clone(), outputs, units: before, ..Units::default() };
    // Nothing else needs what they are made from.
    let keep: Vec<Buf> = units.units.iter().flat_map(|u| u.ins.iter().copied()).collect();
    let mut kept: SecondaryMap<Buf, bool> = SecondaryMap::new();
    keep.into_iter().for_each(|b| kept[b] = true);
    units.bufs.iter_mut().filter(|(b, _)| !kept[*b]).for_each(|(_, data)| data.constant = None);
    Some(prepare)
}
