//! `wide_products`: matrix products and convolutions of f16 and bf16 as those of f32.
//!
//! They are computed in f32 and rounded once in any case. Here their operands are converted by ops of their own: once,
//! with what makes them, or with the model, where a product would convert them at each of its steps; and they take every
//! form that products of f32 have. Products of few rows take as long as reading their weights and keep those as they are.

use windlass_ir::graph::Values;
use windlass_ir::{DType, Graph, Op, Value};

use crate::cx::PassCx;
use crate::error::Error;
use crate::known::is_known;
use crate::manager::Pass;
use crate::rewrite::rewrite;

/// The pass.
pub const PASS: Pass =
    Pass { name: "wide_products", help: "products of f16 and bf16 as products of converted operands", run };

/// Fewer rows than these wait for weights.
const FEW_ROWS: usize = 8;

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    rewrite(graph, cx, |edit, node, cx| {
        let data = graph.node(node);
        let dtype = graph.ty(data.outs[0]).dtype;
        let waits = match &*data.op {
            Op::Conv(_) => false,
            Op::MatMul(_) => is_known(graph, data.ins[1]) && rows(graph, data.outs[0]) < FEW_ROWS,
            _ => true,
        };
        if waits || !matches!(dtype, DType::F16 | DType::BF16) || !cx.fire("product", || graph.describe(node))
        {
            return Ok(None);
        }
        let ins = edit.map_all(&data.ins);
        let b = edit.builder();
        let wide: Values =
            ins.into_iter().map(|value| b.cast(value, DType::F32)).collect::<Result<_, _>>()?;
        let product = b.push1(data.op.clone(), &wide)?;
        Ok(Some(Values::from_slice(&[b.cast(product, dtype)?])))
    })
}

/// The rows of a matrix product's result; many where that is not known.
fn rows(graph: &Graph, product: Value) -> usize {
    let dims = &graph.ty(product).dims;
    let outer = &dims[..dims.len().saturating_sub(1)];
    outer.iter().map(|dim| dim.as_fixed().unwrap_or(FEW_ROWS)).product()
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::ops::{Conv, MatMul};
    use windlass_ir::{Builder, ScalarFn, Tensor};

    use super::*;
    use crate::testing::{after, graph, ops};

    fn weight(b: &mut Builder, dtype: DType, shape: &[usize]) -> Value {
        let count: usize = shape.iter().product();
        let values: Vec<f64> = (0..count).map(|i| (i % 7) as f64 / 4.0 - 0.5).collect();
        b.constant(Tensor::from_f64s(dtype, shape, &values))
    }

    #[test]
    fn operands_are_converted_by_themselves() {
        for dtype in [DType::F16, DType::BF16] {
            let g = graph(&[&[1, 4, 9], &[16, 8]], |b, x| {
                let [image, rows] = [x[0], x[1]].map(|x| b.map(ScalarFn::Cast(dtype), &[x]));
                let (w, bias) = (weight(b, dtype, &[8, 4, 3]), weight(b, dtype, &[8]));
                let y = b.push1(Conv::plain(), &[image?, w, bias])?;
                let w = weight(b, dtype, &[8, 5]);
                let z = b.push1(MatMul::default(), &[rows?, w])?;
                Ok(smallvec![y, z])
            });
            // Two to f16, five to f32, two back.
            assert_eq!(ops(&after(&g, &["wide_products"]).0), "cast 9, conv 1, matmul 1");
        }
    }

    #[test]
    fn products_of_few_rows_read_their_weights_as_they_are() {
        let g = graph(&[&[2, 3, 8]], |b, x| {
            let x = b.map(ScalarFn::Cast(DType::F16), &[x[0]])?;
            let w = weight(b, DType::F16, &[8, 5]);
            Ok(smallvec![b.push1(MatMul::default(), &[x, w])?])
        });
        assert_eq!(ops(&after(&g, &["wide_products"]).0), ops(&g));
    }
}
