//! Ops as ONNX operators.

use windlass_ir::attrs::{AttrError, Keyword, Slot};
use windlass_ir::graph::NodeData;
use windlass_ir::ops::{ArgKind, CumulativeKind, PoolKind, ReduceKind};
use windlass_ir::{DType, Late, Op, Tensor};

use super::scalar::export_scalar;
use super::{Exporter, VERSION, float, floats, int, ints, text};
use crate::onnx::proto::AttributeProto;
use crate::onnx::tensor;

/// Writes one op.
pub(super) fn export_op(
    x: &mut Exporter<'_>,
    data: &NodeData,
    mut ins: Vec<String>,
    outs: Vec<String>,
) -> Result<(), String> {
    let dtype = data.ins.last().map_or(DType::F32, |&v| x.graph.ty(v).dtype);
    let rank = data.ins.first().map_or(0, |&v| x.graph.ty(v).rank() as i64);
    match &*data.op {
        Op::Elementwise(op) => return export_scalar(x, op.f, dtype, ins, outs),
        Op::StopGradient(_) => x.node("Identity", ins, outs, Vec::new()),
        Op::ShapeOf(_) => x.node("Shape", ins, outs, Vec::new()),
        Op::Reshape(op) => {
            let shape = x.late(&op.shape, data);
            let allow = int("allowzero", i64::from(!op.copy_zero));
            x.node("Reshape", vec![ins.swap_remove(0), shape], outs, vec![allow]);
        }
        Op::Broadcast(op) => {
            let shape = x.late(&op.shape, data);
            x.node("Expand", vec![ins.swap_remove(0), shape], outs, Vec::new());
        }
        Op::Tile(op) => {
            let repeats = x.late(&op.repeats, data);
            x.node("Tile", vec![ins.swap_remove(0), repeats], outs, Vec::new());
        }
        Op::Unsqueeze(op) => {
            let axes = x.late(&op.axes, data);
            x.node("Unsqueeze", vec![ins.swap_remove(0), axes], outs, Vec::new());
        }
        Op::Squeeze(op) => {
            let axes = x.late_or_absent(&op.axes, data);
            x.node("Squeeze", trimmed(vec![ins.swap_remove(0), axes]), outs, Vec::new());
        }
        Op::Slice(op) => {
            let (starts, ends) = (x.late(&op.starts, data), x.late(&op.ends, data));
            let (axes, steps) = (x.late_or_absent(&op.axes, data), x.late_or_absent(&op.steps, data));
            x.node("Slice", trimmed(vec![ins.swap_remove(0), starts, ends, axes, steps]), outs, Vec::new());
        }
        Op::Pad(op) => {
            let (pads, axes) = (x.late(&op.pads, data), x.late_or_absent(&op.axes, data));
            let operands = trimmed(vec![ins[0].clone(), pads, ins[1].clone(), axes]);
            x.node("Pad", operands, outs, vec![text("mode", op.mode.word())]);
        }
        Op::OneHot(op) => {
            let depth = x.late(&op.depth, data);
            x.node("OneHot", vec![ins[0].clone(), depth, ins[1].clone()], outs, vec![int("axis", op.axis)]);
        }
        Op::TopK(op) => {
            let k = x.late(&op.k, data);
            let attributes = vec![
                int("axis", op.axis),
                int("largest", op.largest.into()),
                int("sorted", op.sorted.into()),
            ];
            x.node("TopK", vec![ins.swap_remove(0), k], outs, attributes);
        }
        Op::Cumulative(op) => {
            let operator = match op.kind {
                CumulativeKind::Sum => "CumSum",
                CumulativeKind::Prod => return Err(format!("operator set {VERSION} has no CumProd")),
            };
            let axis = match &op.axis {
                Late::Known(axis) => x.initializer(&Tensor::from_ints(axis).reshaped(&[])),
                Late::Operand(index) => ins[*index as usize].clone(),
            };
            let attributes = vec![int("exclusive", op.exclusive.into()), int("reverse", op.reverse.into())];
            x.node(operator, vec![ins.swap_remove(0), axis], outs, attributes);
        }
        Op::ArgReduce(op) => {
            let operator = match op.kind {
                ArgKind::Max => "ArgMax",
                ArgKind::Min => "ArgMin",
            };
            let attributes = vec![
                int("axis", op.axis),
                int("keepdims", op.keep.into()),
                int("select_last_index", op.last.into()),
            ];
            x.node(operator, ins, outs, attributes);
        }
        Op::Reduce(op) => {
            let operator = match op.kind {
                ReduceKind::Sum => "ReduceSum",
                ReduceKind::Mean => "ReduceMean",
                ReduceKind::Prod => "ReduceProd",
                ReduceKind::Max => "ReduceMax",
                ReduceKind::Min => "ReduceMin",
            };
            let axes = x.late_or_absent(&op.axes, data);
            let attributes =
                vec![int("keepdims", op.keep.into()), int("noop_with_empty_axes", op.none_if_empty.into())];
            x.node(operator, trimmed(vec![ins.swap_remove(0), axes]), outs, attributes);
        }
        Op::MatMul(op) => {
            for (i, trans) in [op.trans_a, op.trans_b].into_iter().enumerate() {
                if trans {
                    let rank = x.graph.ty(data.ins[i]).rank() as i64;
                    let mut perm: Vec<i64> = (0..rank).collect();
                    perm.swap(rank as usize - 2, rank as usize - 1);
                    ins[i] = x.apply("Transpose", vec![ins[i].clone()], vec![ints("perm", &perm)]);
                }
            }
            x.node("MatMul", ins, outs, Vec::new());
        }
        Op::Softmax(op) if op.masked => return Err("ONNX has no masked softmax".to_string()),
        Op::Softmax(op) => {
            let operator = if op.log { "LogSoftmax" } else { "Softmax" };
            x.node(operator, ins, outs, vec![int("axis", op.axis)]);
        }
        Op::Silu(op) => {
            let alpha = x.initializer(&Tensor::from_f64s(dtype, &[], &[op.alpha]));
            let scaled = x.apply("Mul", vec![ins[0].clone(), alpha], Vec::new());
            let gate = x.apply("Sigmoid", vec![scaled], Vec::new());
            x.node("Mul", vec![ins[0].clone(), gate], outs, Vec::new());
        }
        Op::Conv(op) => {
            let mut attributes = window(&op.strides, &op.pads, &op.dilations);
            attributes.push(int("group", op.group));
            if op.channels_last {
                // [kernel.., C/group, M] as [M, C/group, kernel..].
                let perm = [rank - 1, rank - 2].into_iter().chain(0..rank - 2);
                ins[1] =
                    x.apply("Transpose", vec![ins[1].clone()], vec![ints("perm", &perm.collect::<Vec<_>>())]);
            }
            channels_first(x, "Conv", ins, outs, attributes, op.channels_last.then_some(rank));
        }
        Op::ConvTranspose(op) => {
            let mut attributes = window(&op.strides, &op.pads, &op.dilations);
            attributes.extend(given("output_padding", &op.output_padding));
            attributes.push(int("group", op.group));
            x.node("ConvTranspose", ins, outs, attributes);
        }
        Op::QuantizeLinear(op) => {
            let to = int("output_dtype", tensor::data_type(op.to).into());
            x.node("QuantizeLinear", ins, outs, scales(op.axis, op.block_size, Some(to)));
        }
        Op::DequantizeLinear(op) => {
            let own = x.graph.ty(data.ins[1]).dtype == op.to;
            let to = (!own).then(|| int("output_dtype", tensor::data_type(op.to).into()));
            x.node("DequantizeLinear", ins, outs, scales(op.axis, op.block_size, to));
        }
        Op::Pool(op) => {
            let mut attributes = window(&op.strides, &op.pads, &op.dilations);
            attributes.push(ints("kernel_shape", &op.kernel));
            attributes.push(int("ceil_mode", op.ceil_mode.into()));
            let operator = match op.kind {
                PoolKind::Max => "MaxPool",
                PoolKind::Average => {
                    attributes.push(int("count_include_pad", op.count_include_pad.into()));
                    "AveragePool"
                }
                PoolKind::Lp => {
                    attributes.push(int("p", op.p));
                    "LpPool"
                }
            };
            channels_first(x, operator, ins, outs, attributes, op.channels_last.then_some(rank));
        }
        Op::BatchNorm(op) => {
            let attributes = vec![float("epsilon", op.epsilon)];
            channels_first(x, "BatchNormalization", ins, outs, attributes, op.channels_last.then_some(rank));
        }
        Op::Lrn(op) => {
            let (alpha, beta, bias) =
                (float("alpha", op.alpha), float("beta", op.beta), float("bias", op.bias));
            let attributes = vec![alpha, beta, bias, int("size", op.size)];
            channels_first(x, "LRN", ins, outs, attributes, op.channels_last.then_some(rank));
        }
        Op::GroupNorm(op) => {
            let mut attributes = vec![float("epsilon", op.epsilon)];
            let operator = if op.instance { "InstanceNormalization" } else { "GroupNormalization" };
            if !op.instance {
                attributes.push(int("num_groups", op.num_groups));
            }
            channels_first(x, operator, ins, outs, attributes, op.channels_last.then_some(rank));
        }
        Op::LayerNorm(op) => {
            if ins.len() < 2 || (op.rms && ins.len() > 2) {
                return Err(format!("ONNX has no such normalization of {} operands", ins.len()));
            }
            let operator = if op.rms { "RMSNormalization" } else { "LayerNormalization" };
            x.node(operator, ins, outs, vec![int("axis", op.axis), float("epsilon", op.epsilon)]);
        }
        op => return export_generic(x, op, ins, outs),
    }
    Ok(())
}

/// A node whose first operand and result have their channels second in ONNX; `last` is their rank where they have
/// them last.
fn channels_first(
    x: &mut Exporter<'_>,
    operator: &str,
    mut ins: Vec<String>,
    outs: Vec<String>,
    attributes: Vec<AttributeProto>,
    last: Option<i64>,
) {
    let Some(rank) = last else { return x.node(operator, ins, outs, attributes) };
    let to_first: Vec<i64> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    let to_last: Vec<i64> = [0].into_iter().chain(2..rank).chain([1]).collect();
    ins[0] = x.apply("Transpose", vec![ins[0].clone()], vec![ints("perm", &to_first)]);
    let first = x.apply(operator, ins, attributes);
    x.node("Transpose", vec![first], outs, vec![ints("perm", &to_last)]);
}

/// Operands without those at the end that are left out.
fn trimmed(mut ins: Vec<String>) -> Vec<String> {
    while ins.last().is_some_and(String::is_empty) {
        ins.pop();
    }
    ins
}

/// An attribute, unless it is empty.
fn given(name: &str, list: &[i64]) -> Option<AttributeProto> {
    (!list.is_empty()).then(|| ints(name, list))
}

fn window(strides: &[i64], pads: &[i64], dilations: &[i64]) -> Vec<AttributeProto> {
    [("strides", strides), ("pads", pads), ("dilations", dilations)]
        .into_iter()
        .filter_map(|(name, list)| given(name, list))
        .collect()
}

/// Where scales lie, and the type that is made.
fn scales(axis: i64, block_size: i64, to: Option<AttributeProto>) -> Vec<AttributeProto> {
    let blocks = (block_size != 0).then(|| int("block_size", block_size));
    [int("axis", axis)].into_iter().chain(blocks).chain(to).collect()
}

/// Writes an op that names its ONNX operator, attribute by attribute.
fn export_generic(x: &mut Exporter<'_>, op: &Op, ins: Vec<String>, outs: Vec<String>) -> Result<(), String> {
    let missing = || format!("ONNX has no `{}`", op.name());
    let info = Op::LIST.iter().find(|info| info.names.contains(&op.name())).ok_or_else(missing)?;
    let own = info.names.iter().position(|name| *name == op.name()).unwrap_or(0);
    let (operator, _) = info
        .onnx
        .iter()
        .enumerate()
        .filter(|(i, _)| info.names.len() == 1 || *i == own)
        .find_map(|(_, row)| row.1.contains(&VERSION).then_some(row))
        .ok_or_else(missing)?;
    let mut attributes = Vec::new();
    let mut write = |name: &'static str, slot: Slot<'_>| {
        let error = |message: &str| AttrError { name: name.to_string(), message: message.to_string() };
        attributes.push(match slot {
            Slot::Int(i) => int(name, *i),
            Slot::Ints(list) => ints(name, list),
            Slot::Float(f) => float(name, *f),
            Slot::Floats(list) => floats(name, list),
            Slot::Text(s) => text(name, s),
            Slot::Bool(b) => int(name, i64::from(*b)),
            Slot::Keyword(word) => text(name, word.word()),
            Slot::DType(dtype) => int(name, tensor::data_type(*dtype).into()),
            Slot::Tensor(_) | Slot::Graph(_) | Slot::Late(_) => return Err(error("is not written")),
        });
        Ok(())
    };
    op.clone().attrs(&mut write).map_err(|error| error.to_string())?;
    x.node(operator, ins, outs, attributes);
    Ok(())
}
