//! Which tiles stand together: blocks of rows by groups of panels, so that what they share stays in the second cache.
//!
//! A right operand that fits there whole is read again by every tile, whose own rows stay in the first cache. A larger
//! one is read from memory once: a group of its panels is as wide as a block is high, and tiles of rows pass over one
//! panel after another.

use windlass_ir::loops::Index;

use super::split::Chunks;
use super::{Emit, Machine};

/// A product as caches see it. Counts are of tiles of rows and of panels of lanes, the rest is bytes.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Tiles of rows.
    pub tiles: usize,
    /// Panels of lanes.
    pub panels: usize,
    /// A tile's sums.
    pub sums: usize,
    /// A step of a panel.
    pub lanes: usize,
    /// A panel with all steps.
    pub panel: usize,
    /// The rows of a tile in a block of steps.
    pub rows: usize,
    /// A panel in a block of steps.
    pub block: usize,
    /// Whether sums wait in memory between blocks of steps.
    pub waits: bool,
}

/// How tiles are blocked.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// Tiles of rows.
    pub rows: Chunks,
    /// Panels.
    pub panels: Chunks,
    /// Whether a block's tiles of rows pass over a panel, rather than panels over a tile of rows.
    panels_outside: bool,
    /// Bytes of the next panel that each tile asks for.
    pub ahead: usize,
}

/// Where a tile stands: which of all tiles of rows and of all panels, and which of its block's and its group's.
#[derive(Clone, Copy, Debug)]
pub struct Place<'i> {
    pub own_tile: &'i Index,
    pub tile: &'i Index,
    pub own_panel: &'i Index,
    pub panel: &'i Index,
}

/// Bytes of the stack in which sums wait between blocks of a long reduction.
const WAITING_BYTES: usize = 72 << 10;

/// Bytes of a row of a group of panels that are read from memory: with as many rows in a block, 128 of 32 bits, both
/// operands are read equally often.
const GROUP_BYTES: usize = 512;

/// With fewer tiles to a panel, reading it is all there is to do.
const TILES_TO_PREFETCH: usize = 4;

impl Blocks {
    /// At least `wanted` of them, for as many threads, if there are as many tiles.
    pub fn of(product: &Footprint, wanted: usize, machine: &Machine) -> Blocks {
        let &Footprint { tiles, panels, .. } = product;
        let panels_outside = product.panel.saturating_mul(panels) > machine.block_bytes;
        let group = if panels_outside { (GROUP_BYTES / product.lanes).max(1) } else { panels };
        let groups = panels.div_ceil(group);
        let fitting = match (product.waits, panels_outside) {
            (true, _) => WAITING_BYTES / (product.sums * panels.div_ceil(groups)),
            (false, true) => machine.block_bytes / product.rows,
            (false, false) => tiles,
        };
        let blocks = tiles.div_ceil(fitting.max(1));
        // What is read from memory once is rather shared out than read by each.
        let (blocks, groups) = match panels_outside {
            true => {
                let groups = groups.max(wanted.div_ceil(blocks).min(panels));
                (blocks.max(wanted.div_ceil(groups)), groups)
            }
            false => {
                let blocks = blocks.max(wanted.div_ceil(groups).min(tiles));
                (blocks, groups.max(wanted.div_ceil(blocks)))
            }
        };
        let rows = Chunks::of(tiles, tiles.div_ceil(blocks));
        let fetches = machine.prefetches && panels_outside && rows.size >= TILES_TO_PREFETCH;
        let ahead = if fetches { product.block.div_ceil(rows.size) } else { 0 };
        Blocks { rows, panels: Chunks::of(panels, panels.div_ceil(groups)), panels_outside, ahead }
    }

    /// Runs `body` for each tile of a block and a group.
    pub fn over<'n>(
        &self,
        emit: &mut Emit<'n>,
        [block, group]: [&Index; 2],
        body: &mut dyn FnMut(&mut Emit<'n>, &Place<'_>),
    ) {
        match self.panels_outside {
            true => self.panels.over(emit, group, &mut |emit, own_panel, panel| {
                self.rows.over(emit, block, &mut |emit, own_tile, tile| {
                    body(emit, &Place { own_tile, tile, own_panel, panel });
                });
            }),
            false => self.rows.over(emit, block, &mut |emit, own_tile, tile| {
                self.panels.over(emit, group, &mut |emit, own_panel, panel| {
                    body(emit, &Place { own_tile, tile, own_panel, panel });
                });
            }),
        }
    }

    /// The panel after a tile's, and how many blocks of steps later it is read, if there are several: at a group's end it
    /// is the group's first.
    pub fn next_panel(&self, place: &Place<'_>, is_cut: bool) -> (Index, Index) {
        let next = place.own_panel.add_const(1);
        match (is_cut, self.panels.size as i64) {
            (true, size) => (place.panel.sub(place.own_panel).add(&next.rem(size)), next.div(size)),
            (false, _) => (place.panel.add_const(1), Index::constant(0)),
        }
    }

    /// The number of a tile in its block and group.
    pub fn number(&self, place: &Place<'_>) -> Index {
        place.own_tile.mul(self.panels.size as i64).add(place.own_panel)
    }
}
