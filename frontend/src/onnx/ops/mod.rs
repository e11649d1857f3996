//! Importers of operators that no single op mirrors, one file a family.

mod activation;
mod basic;
mod convolution;
mod elementwise;
mod linear;
mod loss;
mod movement;
mod normalization;
mod reduce;

use super::registry::Entry;

/// Every family's table.
pub(super) const FAMILIES: &[&[Entry]] = &[
    activation::ENTRIES,
    basic::ENTRIES,
    convolution::ENTRIES,
    elementwise::ENTRIES,
    linear::ENTRIES,
    loss::ENTRIES,
    movement::ENTRIES,
    normalization::ENTRIES,
    reduce::ENTRIES,
];
