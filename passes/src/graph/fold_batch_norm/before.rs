//! The rule `before`: channels scaled and shifted before a convolution, into its weights and bias.

use windlass_ir::graph::Values;
use windlass_ir::ops::{Conv, Elementwise, Reduce, ReduceKind, Reshape};
use windlass_ir::{Builder, Edit, Node, Op, ScalarFn, Tensor, Value};

use super::per_channel;
use crate::cx::PassCx;
use crate::error::Error;
use crate::known::{is_known, widened};
use crate::reason::Reason;

/// `conv(x * factor + shift)`, where factor and shift are constants a channel.
pub(super) fn before(
    edit: &mut Edit<'_>,
    node: Node,
    op: &Conv,
    cx: &mut PassCx,
) -> Result<Option<Values>, Error> {
    const RULE: &str = "before";
    let ins = edit.map_all(&edit.old().node(node).ins);
    let built = edit.graph();
    let ty = built.ty(ins[0]).clone();
    let channel = if op.channels_last { ty.rank() - 1 } else { 1 };
    let Some(channels) = ty.dims[channel].as_fixed().filter(|_| ty.dtype.is_float()) else { return Ok(None) };
    // Peels `+ shift`, then `* factor`.
    let peel = |value: Value, wanted: ScalarFn| -> Option<(Value, Vec<f64>)> {
        let data = built.def_node(value)?;
        let Op::Elementwise(Elementwise { f }) = *data.op else { return None };
        if f != wanted || built.ty(value) != &ty {
            return None;
        }
        [(0, 1), (1, 0)].into_iter().find_map(|(x, c)| {
            let numbers = per_channel(built.as_constant(data.ins[c])?, ty.rank(), channel, Some(channels))?;
            (built.ty(data.ins[x]) == &ty).then_some((data.ins[x], numbers))
        })
    };
    let (inner, shift) = peel(ins[0], ScalarFn::Add).unwrap_or((ins[0], vec![0.0; channels]));
    let (source, factor) = peel(inner, ScalarFn::Mul).unwrap_or((inner, vec![1.0; channels]));
    if source == ins[0] {
        return Ok(None);
    }
    let mut reason = None;
    let readers = edit.old_uses(ins[0]).max(if inner == source { 0 } else { edit.old_uses(inner) });
    if readers > 1 {
        reason = Some(Reason::OtherReaders { value: "the scaled operand".into(), readers, expected: 1 });
    }
    if op.pads.iter().any(|&p| p != 0) && shift.iter().any(|&s| s != 0.0) {
        reason = Some(Reason::Unsound("padding is not shifted"));
    }
    let bias = ins.get(2).map(|&v| built.as_constant(v).map(Tensor::to_f64s));
    let (true, Some(bias), None) =
        (is_known(built, ins[1]), bias.map_or(Some(None), |b| b.map(Some)), &reason)
    else {
        let constant = Reason::NotConstant { what: "the weight or bias".into() };
        cx.blocked(RULE, || edit.old().describe(node), || reason.unwrap_or(constant));
        return Ok(None);
    };
    if !cx.fire(RULE, || edit.old().describe(node)) {
        return Ok(None);
    }
    let b = edit.builder();
    let dtype = b.ty(ins[1]).dtype;
    let weights = by_group(b, ins[1], op)?;
    let factor = weights.per_input(b, &factor);
    let product = b.map(ScalarFn::Mul, &[weights.wide, factor])?;
    let product = b.push1(Reshape::to(&weights.shape), &[product])?;
    let new = b.cast(product, dtype)?;
    // What the shift contributes to each output channel.
    let shift = weights.per_input(b, &shift);
    let contributed = b.map(ScalarFn::Mul, &[weights.wide, shift])?;
    let others: Vec<i64> = (0..b.ty(contributed).rank())
        .filter(|&d| d != weights.group && d != weights.output)
        .map(|d| d as i64)
        .collect();
    let contributed = b.push1(Reduce::over(ReduceKind::Sum, &others, false), &[contributed])?;
    let outs = weights.outputs;
    let contributed = b.push1(Reshape::to(&[outs]), &[contributed])?;
    let bias = b.constant(Tensor::new(&[outs], &bias.unwrap_or_else(|| vec![0.0; outs])));
    let bias = b.map(ScalarFn::Add, &[bias, contributed])?;
    let bias = b.cast(bias, dtype)?;
    Ok(Some(Values::from_slice(&[b.push1(op.clone(), &[source, new, bias])?])))
}

/// A convolution's weights in f64, their output channels split into group and channel of the group.
struct ByGroup {
    wide: Value,
    /// The shape before the split.
    shape: Vec<usize>,
    group: usize,
    output: usize,
    input: usize,
    groups: usize,
    outputs: usize,
    inputs: usize,
}

fn by_group(b: &mut Builder, weights: Value, op: &Conv) -> Result<ByGroup, Error> {
    let shape = b.ty(weights).shape().to_vec();
    let rank = shape.len();
    let groups = op.group.max(1) as usize;
    let (out_dim, in_dim) = if op.channels_last { (rank - 1, rank - 2) } else { (0, 1) };
    let (outputs, inputs) = (shape[out_dim], shape[in_dim]);
    let mut split = shape.clone();
    split[out_dim] = outputs / groups;
    split.insert(out_dim, groups);
    let wide = widened(b, weights)?;
    let wide = b.push1(Reshape::to(&split), &[wide])?;
    let input = if op.channels_last { in_dim } else { in_dim + 1 };
    Ok(ByGroup { wide, shape, group: out_dim, output: out_dim + 1, input, groups, outputs, inputs })
}

impl ByGroup {
    /// A number for each input channel of the convolution, in the weights' dimensions.
    fn per_input(&self, b: &mut Builder, numbers: &[f64]) -> Value {
        let mut shape = vec![1; self.shape.len() + 1];
        (shape[self.group], shape[self.input]) = (self.groups, self.inputs);
        let mut ordered = Vec::with_capacity(numbers.len());
        match self.group < self.input {
            true => ordered.extend_from_slice(numbers),
            false => {
                for i in 0..self.inputs {
                    ordered.extend((0..self.groups).map(|g| numbers[g * self.inputs + i]));
                }
            }
        }
        b.constant(Tensor::new(&shape, &ordered))
    }
}
