//! RNN, GRU and LSTM.

use windlass_ir::attrs::KeywordSlot;
use windlass_ir::ops::{CellKind, Recurrent};

use crate::onnx::node::{Imported, NodeCx};
use crate::onnx::problem::{invalid, unsupported};
use crate::onnx::registry::{Entry, entry_at};

pub(super) const ENTRIES: &[Entry] = &[
    entry_at("RNN", 7..=u32::MAX, |cx| recurrent(cx, CellKind::Rnn)),
    entry_at("GRU", 7..=u32::MAX, |cx| recurrent(cx, CellKind::Gru)),
    entry_at("LSTM", 7..=u32::MAX, |cx| recurrent(cx, CellKind::Lstm)),
];

/// Operands: x, weights, recurrence weights, bias, lengths, first h, first c, peepholes.
fn recurrent(cx: &mut NodeCx<'_, '_>, kind: CellKind) -> Imported {
    let mut ins = vec![cx.input(0)?, cx.input(1)?, cx.input(2)?];
    let mut op = Recurrent::plain(kind);
    let direction = cx.string_or("direction", "forward")?;
    if !op.direction.set_word(&direction) {
        invalid!("attribute `direction` is `{direction}`");
    }
    op.batch_first = cx.bool_or("layout", false)?;
    op.cell.activations = cx.strings("activations")?.unwrap_or_default().join(" ");
    op.cell.activation_alpha = cx.floats("activation_alpha")?.unwrap_or_default();
    op.cell.activation_beta = cx.floats("activation_beta")?.unwrap_or_default();
    op.cell.clip = cx.float_or("clip", 0.0)?;
    match kind {
        CellKind::Rnn => {}
        CellKind::Gru => op.cell.linear_before_reset = cx.bool_or("linear_before_reset", false)?,
        CellKind::Lstm => op.cell.input_forget = cx.bool_or("input_forget", false)?,
    }
    if cx.rank(ins[2]) != 3 {
        invalid!("recurrence weights {}", cx.ty(ins[2]));
    }
    if let (Some(declared), Some(size)) = (cx.int("hidden_size")?, cx.ty(ins[2]).dims[2].as_fixed())
        && declared != size as i64
    {
        invalid!("attribute `hidden_size` is {declared}, the weights are {}", cx.ty(ins[2]));
    }
    let mut optional = |cx: &NodeCx<'_, '_>, index: usize| {
        let given = cx.optional(index);
        ins.extend(given);
        given.is_some()
    };
    op.bias = optional(cx, 3);
    op.sequence_lens = optional(cx, 4);
    op.initial_h = optional(cx, 5);
    if kind == CellKind::Lstm {
        op.initial_c = optional(cx, 6);
        op.peepholes = optional(cx, 7);
    } else if cx.input_count() > 6 {
        unsupported!("{} operands", cx.input_count());
    }
    cx.push_whole(op, &ins)
}
