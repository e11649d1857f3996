//! `choose_layout`: convolutions with their channels last, where channels are contiguous and every tap
//! of the kernel is a matrix product of rows.
//!
//! Each convolution is put between two transposes, and its weights are transposed to
//! `[kernel.., C/group, M]`. `sink_transposes` then cancels the pairs between convolutions, through
//! whatever stands between them, until transposes are left only at the borders. Constant weights are
//! transposed once and for all.

use windlass_ir::graph::Values;
use windlass_ir::ops::{Conv, Transpose};
use windlass_ir::{Graph, Op};

use crate::cx::PassCx;
use crate::error::Error;
use crate::known::is_known;
use crate::manager::Pass;
use crate::permutation::Permutation;
use crate::reason::Reason;
use crate::rewrite::rewrite;

/// The pass.
pub const PASS: Pass =
    Pass { name: "choose_layout", help: "give convolutions their channels last, between transposes", run };

const RULE: &str = "channels_last";

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    rewrite(graph, cx, |edit, node, cx| {
        let data = graph.node(node);
        let Op::Conv(op) = &*data.op else { return Ok(None) };
        let (x, w) = (graph.ty(data.ins[0]), graph.ty(data.ins[1]));
        let rank = x.rank();
        if op.channels_last || rank < 3 {
            return Ok(None);
        }
        if !is_known(graph, data.ins[1]) {
            // Transposing weights at each run costs more than it gains where they are large.
            cx.blocked(
                RULE,
                || graph.describe(node),
                || Reason::NotConstant { what: format!("the weight {w}") },
            );
            return Ok(None);
        }
        if !cx.fire(RULE, || graph.describe(node)) {
            return Ok(None);
        }
        let mut ins = edit.map_all(&data.ins);
        let b = edit.builder();
        let to_last = Permutation::to_channels_last(rank);
        let kernel_first: Permutation = (2..rank).chain([1, 0]).collect();
        ins[0] = b.push1(Transpose::by(to_last.as_slice()), &[ins[0]])?;
        ins[1] = b.push1(Transpose::by(kernel_first.as_slice()), &[ins[1]])?;
        let y = b.push1(Conv { channels_last: true, ..op.clone() }, &ins)?;
        Ok(Some(Values::from_slice(&[b.push1(Transpose::by(to_last.inverse().as_slice()), &[y])?])))
    })
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::ops::{Concat, Lrn, Pool, PoolKind, Reduce, ReduceKind, Reshape};
    use windlass_ir::{Builder, ScalarFn, Value};

    use super::*;
    use crate::testing::{after, blocked, graph, ops, weights};

    const PASSES: [&str; 5] = ["choose_layout", "simplify", "fold", "sink_transposes", "simplify"];

    fn conv(b: &mut Builder, x: Value, to: usize, kernel: usize, group: usize) -> Value {
        let from = b.ty(x).dims[1].as_fixed().unwrap();
        let (w, bias) = (weights(b, &[to, from / group, kernel, kernel], 3), weights(b, &[to], 4));
        let pads = vec![kernel as i64 / 2; 4];
        b.push1(Conv { pads, group: group as i64, ..Conv::plain() }, &[x, w, bias]).unwrap()
    }

    #[test]
    fn a_residual_network_is_transposed_only_at_its_input() {
        let g = graph(&[&[2, 3, 8, 8]], |b, x| {
            let y = conv(b, x[0], 4, 3, 1);
            let y = b.map(ScalarFn::Relu, &[y])?;
            let pool = Pool { strides: vec![2, 2], ..Pool::plain(PoolKind::Max, &[2, 2]) };
            let mut y = b.push1(pool, &[y])?;
            for _ in 0..2 {
                let branch = conv(b, y, 4, 3, 2);
                let branch = b.map(ScalarFn::Relu, &[branch])?;
                let branch = conv(b, branch, 4, 1, 1);
                y = b.map(ScalarFn::Add, &[branch, y])?;
                y = b.map(ScalarFn::Relu, &[y])?;
            }
            let wide = conv(b, y, 6, 1, 1);
            let y = b.push1(Concat { axis: 1 }, &[y, wide])?;
            let y = b.push1(Reduce::over(ReduceKind::Mean, &[2, 3], true), &[y])?;
            Ok(smallvec![b.push1(Reshape::to(&[2, 10]), &[y])?])
        });
        let (g, _) = after(&g, &PASSES);
        assert_eq!(
            ops(&g),
            "add 2, concat 1, conv 6, max_pool 1, reduce_mean 1, relu 5, reshape 1, transpose 1"
        );
    }

    #[test]
    fn responses_are_normalized_across_the_last_dimension() {
        let g = graph(&[&[2, 3, 8, 8]], |b, x| {
            let y = conv(b, x[0], 6, 3, 1);
            let y =
                b.push1(Lrn { alpha: 1e-4, beta: 0.75, bias: 1.0, size: 5, channels_last: false }, &[y])?;
            let y = b.push1(Pool::plain(PoolKind::Max, &[2, 2]), &[y])?;
            Ok(smallvec![conv(b, y, 4, 1, 1)])
        });
        let (g, _) = after(&g, &PASSES);
        assert_eq!(ops(&g), "conv 2, lrn 1, max_pool 1, transpose 2");
    }

    #[test]
    fn a_convolution_of_one_dimension() {
        let g = graph(&[&[2, 3, 8]], |b, x| {
            let w = weights(b, &[4, 3, 3], 3);
            Ok(smallvec![b.push1(Conv::plain(), &[x[0], w])?])
        });
        assert_eq!(ops(&after(&g, &PASSES).0), "conv 1, transpose 2");
    }

    #[test]
    fn weights_computed_at_run_time_block() {
        let g = graph(&[&[2, 3, 8], &[4, 3, 3]], |b, x| Ok(smallvec![b.push1(Conv::plain(), x)?]));
        let (_, records) = after(&g, &PASSES);
        assert!(matches!(blocked(&records, RULE), Some(Reason::NotConstant { .. })));
    }
}
