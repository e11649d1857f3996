//! Losses.

use windlass_ir::attrs::KeywordSlot;
use windlass_ir::ops::{self, LossReduction};

use crate::onnx::node::{Imported, NodeCx};
use crate::onnx::problem::invalid;
use crate::onnx::registry::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[
    entry("NegativeLogLikelihoodLoss", negative_log_likelihood),
    entry("SoftmaxCrossEntropyLoss", softmax_cross_entropy),
];

fn attributes(cx: &mut NodeCx<'_, '_>) -> Imported<(LossReduction, Vec<i64>)> {
    let word = cx.string_or("reduction", "mean")?;
    let mut reduction = LossReduction::Mean;
    if !reduction.set_word(&word) {
        invalid!("attribute `reduction` is `{word}`");
    }
    Ok((reduction, cx.int("ignore_index")?.into_iter().collect()))
}

fn negative_log_likelihood(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (reduction, ignore_index) = attributes(cx)?;
    let ins = cx.inputs()?;
    cx.push_whole(ops::NllLoss { reduction, ignore_index }, &ins)
}

fn softmax_cross_entropy(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (reduction, ignore_index) = attributes(cx)?;
    let ins = cx.inputs()?;
    cx.push_whole(ops::SoftmaxCrossEntropy { reduction, ignore_index }, &ins)
}
