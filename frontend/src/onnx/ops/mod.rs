//! Importers of operators that no single op mirrors, one file a family.

mod activation;
mod attention;
mod basic;
mod control;
mod convolution;
mod elementwise;
mod linear;
mod loss;
mod microsoft;
mod movement;
mod normalization;
mod quantization;
mod recurrent;
mod reduce;
mod resize;
mod signal;
mod vision;

use super::registry::Entry;

/// Every family's table, of the default domain.
pub(super) const FAMILIES: &[&[Entry]] = &[
    activation::ENTRIES,
    attention::ENTRIES,
    basic::ENTRIES,
    control::ENTRIES,
    convolution::ENTRIES,
    elementwise::ENTRIES,
    linear::ENTRIES,
    loss::ENTRIES,
    movement::ENTRIES,
    normalization::ENTRIES,
    quantization::ENTRIES,
    recurrent::ENTRIES,
    reduce::ENTRIES,
    resize::ENTRIES,
    signal::ENTRIES,
    vision::ENTRIES,
];

/// The table of the domain `com.microsoft`.
pub(super) const MICROSOFT: &[Entry] = microsoft::ENTRIES;
