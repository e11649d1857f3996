//! Every op, from one list.
//!
//! An op is a struct of attributes that implements [`OpDef`]; its file says everything about it:
//! what it takes (numbered constraints, checked by `infer`), what it means (`eval`, as plainly as
//! possible), its gradient (`vjp`), its form for a batch of examples (`vmap`), how it becomes loops (`lower`) and what it simplifies to. The
//! list at the end of this file makes the [`Op`] enum and its dispatch; adding an op is one new file, its `mod`
//! and one line there.
//!
//! `eval` defines the meaning. It shares no code with `lower`, so that each can be tested against
//! the other. Shapes follow numpy's conventions: axes may count from the end where an op's attribute
//! says "axis", and operands broadcast where an op says so.

use std::sync::Arc;

use crate::attrs::{AttrError, Codec};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Graph, Value, Values};
use crate::loops::{Kernel, Nest};
use crate::tensor::Tensor;
use crate::types::TensorType;

pub use recurrence::Recurrence;

/// What an op lowers to.
#[derive(Clone, Debug)]
pub enum Lowered {
    /// A graph of smaller ops, with this op's operands and results.
    Graph(Box<Graph>),
    /// A formula that may fuse with its neighbours.
    Nest(Box<Nest>),
    /// Loops written out, for what no formula expresses (scatter, sort). Parameters are
    /// the operands, then the results.
    Kernel(Box<Kernel>),
    /// Several kernels, some run a number of times over.
    Recurrence(Box<Recurrence>),
    /// A graph run a number of times over.
    Repeated(Box<Repeated>),
    /// Nothing: the runtime calls the interpreter for this op.
    Interpret,
}

impl Lowered {
    /// A formula.
    pub fn nest(nest: Nest) -> Lowered {
        Lowered::Nest(Box::new(nest))
    }

    /// The graph that `body` builds over operands of these types.
    pub fn graph(
        ins: &[TensorType],
        body: impl FnOnce(&mut Builder, &[Value]) -> Result<Values, Error>,
    ) -> Result<Lowered, Error> {
        Ok(Lowered::Graph(Box::new(decompose(ins, body)?)))
    }
}

/// The graph that `body` builds over inputs of these types, for composites.
pub fn decompose(
    ins: &[TensorType],
    body: impl FnOnce(&mut Builder, &[Value]) -> Result<Values, Error>,
) -> Result<Graph, Error> {
    let mut b = Builder::new("body");
    let inputs: Vec<Value> =
        ins.iter().enumerate().map(|(i, ty)| b.input(&format!("in{i}"), ty.clone())).collect();
    let outs = body(&mut b, &inputs)?;
    for (i, out) in outs.into_iter().enumerate() {
        b.output(&format!("out{i}"), out);
    }
    b.finish()
}

/// The whole contract of an op. Every method but `infer` and `eval` has a default.
pub trait OpDef: Sized {
    /// Its spelling in text; a family that shares one struct has several.
    const NAMES: &'static [&'static str];

    /// The ONNX operators, with the opsets, that import as this op attribute by attribute.
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[];

    /// The op of this name with attributes at their defaults, for the parser and the importer.
    fn with_name(name: &str) -> Self;

    /// The spelling of this op.
    fn name(&self) -> &'static str {
        Self::NAMES[0]
    }

    /// Walks over the attributes.
    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        let _ = codec;
        Ok(())
    }

    /// The result types, or the constraint that does not hold.
    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation>;

    /// The results. Late attributes are known, and `infer` accepted the operands' types.
    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String>;

    /// The gradients of the operands. By default those of the graph that the op lowers to, if it does.
    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let types = |values: &[Value]| values.iter().map(|&v| cx.builder.ty(v).clone()).collect::<Vec<_>>();
        match self.lower(&types(cx.ins), &types(cx.outs))? {
            Lowered::Graph(body) => Ok(Vjp::Through(cx.builder.inline(&body, cx.ins)?)),
            Lowered::Nest(_)
            | Lowered::Kernel(_)
            | Lowered::Recurrence(_)
            | Lowered::Repeated(_)
            | Lowered::Interpret => Ok(Vjp::Undefined),
        }
    }

    /// The results for a batch of examples. By default those of the graph that the op lowers to, if it does, else one
    /// after the other.
    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        match self.lower(&cx.types(), cx.outs)? {
            Lowered::Graph(body) => Ok(Vmap::Through(body)),
            Lowered::Nest(_)
            | Lowered::Kernel(_)
            | Lowered::Recurrence(_)
            | Lowered::Repeated(_)
            | Lowered::Interpret => Ok(Vmap::OneByOne),
        }
    }

    /// Loops or smaller ops. Every dimension is fixed and late attributes are known.
    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let _ = (ins, outs);
        Ok(Lowered::Interpret)
    }

    /// Values that can stand for the results, if a simpler computation gives them.
    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        let _ = (b, ins);
        Ok(None)
    }

    /// Whether the results follow from the operands alone (not so for random numbers).
    fn is_pure(&self) -> bool {
        true
    }
}

macro_rules! define_ops {
    ($($module:ident :: $op:ident),* $(,)?) => {
        $(pub use $module::$op;)*

        /// An op with its attributes.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op {
            $(
                #[doc = concat!("See [`", stringify!($op), "`].")]
                $op($op),
            )*
        }

        $(
            impl From<$op> for Op {
                fn from(op: $op) -> Op {
                    Op::$op(op)
                }
            }

            impl From<$op> for Arc<Op> {
                fn from(op: $op) -> Arc<Op> {
                    Arc::new(Op::$op(op))
                }
            }
        )*

        impl Op {
            /// Every op's names and the ONNX operators it imports.
            pub const LIST: &'static [OpInfo] = &[
                $(OpInfo { names: <$op as OpDef>::NAMES, onnx: <$op as OpDef>::ONNX },)*
            ];

            /// The op of this name with attributes at their defaults.
            pub fn from_name(name: &str) -> Option<Op> {
                $(
                    if <$op as OpDef>::NAMES.contains(&name) {
                        return Some(Op::$op(<$op as OpDef>::with_name(name)));
                    }
                )*
                None
            }

            /// Its spelling in text.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$op(op) => op.name(),)* }
            }

            /// Walks over the attributes.
            pub fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
                match self { $(Op::$op(op) => op.attrs(codec),)* }
            }

            /// The result types, or the constraint that does not hold.
            pub fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
                match self { $(Op::$op(op) => op.infer(ins),)* }
            }

            /// The results, by the op's definition. [`crate::interpret::eval_op`] checks operands first.
            pub(crate) fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
                match self { $(Op::$op(op) => op.eval(ins),)* }
            }

            /// The gradients of the operands.
            pub fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
                match self { $(Op::$op(op) => op.vjp(cx),)* }
            }

            /// The results for a batch of examples.
            pub fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
                match self { $(Op::$op(op) => op.vmap(cx),)* }
            }

            /// Loops or smaller ops.
            pub fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
                match self { $(Op::$op(op) => op.lower(ins, outs),)* }
            }

            /// Values that can stand for the results, if a simpler computation gives them.
            pub fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
                match self { $(Op::$op(op) => op.simplify(b, ins),)* }
            }

            /// Whether the results follow from the operands alone.
            pub fn is_pure(&self) -> bool {
                match self { $(Op::$op(op) => op.is_pure(),)* }
            }
        }
    };
}

/// One entry of [`Op::LIST`].
pub struct OpInfo {
    /// The op's spellings in text.
    pub names: &'static [&'static str],
    /// The ONNX operators that import as it, with their opsets.
    pub onnx: &'static [(&'static str, std::ops::RangeInclusive<u32>)],
}

/// Fails unless an op got the number of operands it takes.
pub(crate) fn arity(ins: &[&TensorType], counts: std::ops::RangeInclusive<usize>) -> Result<(), Violation> {
    let (low, high) = (*counts.start(), *counts.end());
    let wanted = match (low, high) {
        _ if counts.contains(&ins.len()) => return Ok(()),
        (a, b) if a == b => format!("{a}"),
        (a, usize::MAX) => format!("at least {a}"),
        (a, b) => format!("{a} to {b}"),
    };
    Err(Violation::new("C0", format!("takes {wanted} operands, found {}", ins.len())))
}

mod activation;
mod arg_reduce;
mod attention;
mod batch_norm;
mod body;
mod broadcast;
mod cell;
mod col2im;
mod concat;
mod constant;
mod conv;
mod conv_transpose;
mod conv_vjp;
mod cumulative;
mod deform_conv;
mod deform_conv_vjp;
mod derivative;
mod det;
mod dft;
mod dft_butterfly;
mod dft_lower;
mod dft_pass;
mod dynamic_quantize;
mod einsum;
mod elementwise;
mod fail;
mod formula;
mod gather;
mod gelu;
mod grid_sample;
mod grid_sample_vjp;
mod group_norm;
mod hardmax;
mod if_op;
mod layer_norm;
mod loop_op;
mod loss;
mod lp_norm;
mod lrn;
mod matmul;
mod max_pool_grad;
mod max_pool_indices;
mod movement;
mod non_max_suppression;
mod non_zero;
mod one_hot;
mod pad;
mod points;
mod pool;
mod quantize;
mod range;
mod recompute;
mod recurrence;
mod recurrent;
mod recurrent_blocks;
mod recurrent_kernels;
mod recurrent_scan;
mod recurrent_steps;
mod reduce;
mod reshape;
mod resize;
mod resize_lower;
mod reverse_sequence;
mod roi_align;
mod roi_align_vjp;
mod scan;
mod scan_lower;
mod scan_sums;
mod scan_vjp;
mod scan_vmap;
mod scatter;
mod shape_of;
mod slice;
mod softmax;
mod stop_gradient;
#[cfg(test)]
mod testing;
mod threefry;
mod tile;
mod top_k;
mod top_k_lower;
mod transpose;
mod unsqueeze;
mod vjp;
mod vmap;
mod window;
mod winograd;
mod winograd_lower;

pub use arg_reduce::ArgKind;
pub use attention::Scores;
pub use cell::{Cell, CellKind};
pub use cumulative::CumulativeKind;
pub use gelu::GeluForm;
pub use grid_sample::{SampleMode, SamplePadding};
pub use loss::LossReduction;
pub use pad::PadMode;
pub use pool::PoolKind;
pub use recurrent::Direction;
pub use reduce::ReduceKind;
pub use resize::{AspectPolicy, Coordinates, Interpolation, NearestMode};
pub use roi_align::RoiMode;
pub use scan_lower::Repeated;
pub use scatter::ScatterReduction;
pub use vjp::{Gradients, Vjp, VjpCx};
pub use vmap::{Vmap, VmapCx};
pub use winograd::WinogradPart;

define_ops! {
    arg_reduce::ArgReduce,
    batch_norm::BatchNorm,
    broadcast::Broadcast,
    concat::Concat,
    constant::Constant,
    conv::Conv,
    cumulative::Cumulative,
    elementwise::Elementwise,
    fail::Fail,
    gather::Gather,
    gather::GatherElements,
    gather::GatherNd,
    gelu::Gelu,
    gelu::Silu,
    group_norm::GroupNorm,
    hardmax::Hardmax,
    layer_norm::LayerNorm,
    lp_norm::LpNorm,
    lrn::Lrn,
    matmul::MatMul,
    max_pool_grad::MaxPoolGrad,
    max_pool_indices::MaxPoolIndices,
    non_zero::Compress,
    non_zero::NonZero,
    one_hot::OneHot,
    one_hot::Trilu,
    pad::Pad,
    pool::Pool,
    range::Iota,
    range::Range,
    recompute::Recompute,
    reduce::Reduce,
    reshape::Reshape,
    resize::Resize,
    reverse_sequence::ReverseSequence,
    scatter::ScatterElements,
    scatter::ScatterNd,
    shape_of::ShapeOf,
    slice::Slice,
    softmax::Softmax,
    stop_gradient::StopGradient,
    threefry::Threefry,
    tile::Tile,
    top_k::TopK,
    transpose::Transpose,
    unsqueeze::Flatten,
    unsqueeze::Squeeze,
    unsqueeze::Unsqueeze,
    attention::Attention,
    einsum::Einsum,
    quantize::DequantizeLinear,
    quantize::QuantizeLinear,
    dynamic_quantize::DynamicQuantizeLinear,
    conv_transpose::ConvTranspose,
    loss::NllLoss,
    loss::SoftmaxCrossEntropy,
    if_op::If,
    loop_op::Loop,
    scan::Scan,
    recurrent::Recurrent,
    recurrent_steps::RecurrentSteps,
    grid_sample::GridSample,
    dft::Dft,
    dft_pass::DftPass,
    col2im::Col2Im,
    non_max_suppression::NonMaxSuppression,
    det::Det,
    roi_align::RoiAlign,
    deform_conv::DeformConv,
    winograd::Winograd,
}
