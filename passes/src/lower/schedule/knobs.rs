//! What tuning may turn: the numbers of a [`Machine`] from which the cost model chooses the blocks of a product.
//!
//! None of them changes the order in which an element is accumulated, so none shows in results. The lanes of a tile are
//! not among them, since packed operands are laid out for them.

use windlass_ir::loops::Nest;

use super::contraction::is_product;
use super::{Machine, tile, top_reductions};

/// Other values of one number each, in the order in which it pays to try them.
pub const KNOBS: [fn(&Machine) -> Vec<Machine>; 4] = [rows, panels, blocks, prefetches];

fn rows(machine: &Machine) -> Vec<Machine> {
    let fewer = |less: usize| machine.tile_rows.checked_sub(less).filter(|rows| *rows > 0);
    [1, 2].into_iter().filter_map(fewer).map(|tile_rows| Machine { tile_rows, ..*machine }).collect()
}

fn panels(machine: &Machine) -> Vec<Machine> {
    let bytes = [machine.panel_bytes / 2, machine.panel_bytes * 2, machine.panel_bytes * 4];
    bytes.map(|panel_bytes| Machine { panel_bytes, ..*machine }).to_vec()
}

fn blocks(machine: &Machine) -> Vec<Machine> {
    let bytes = [machine.block_bytes / 2, machine.block_bytes * 2, machine.block_bytes * 4];
    bytes.map(|block_bytes| Machine { block_bytes, ..*machine }).to_vec()
}

fn prefetches(machine: &Machine) -> Vec<Machine> {
    vec![Machine { prefetches: !machine.prefetches, ..*machine }]
}

/// Whether a normalized formula is a product whose schedule these numbers decide.
pub fn is_tunable(nest: &Nest, machine: &Machine) -> bool {
    let reductions = top_reductions(nest);
    let empty = nest.shape().contains(&0) || reductions.is_empty();
    !empty && is_product(nest) && tile::plan(nest, &reductions, machine).is_some()
}
