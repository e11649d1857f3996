//! Convolutions and pooling: windows over spatial dimensions.

use windlass_ir::ops::{PoolKind, ReduceKind};
use windlass_ir::{Late, ScalarFn, Value, ops};

use crate::onnx::node::{Imported, NodeCx};
use crate::onnx::ops::linear::{centered, requantize};
use crate::onnx::problem::{invalid, unsupported};
use crate::onnx::registry::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[
    entry("Conv", conv),
    entry("ConvInteger", conv_integer),
    entry("QLinearConv", qlinear_conv),
    entry("ConvTranspose", conv_transpose),
    entry("MaxPool", |cx| pool(cx, PoolKind::Max)),
    entry("AveragePool", |cx| pool(cx, PoolKind::Average)),
    entry("LpPool", |cx| pool(cx, PoolKind::Lp)),
    entry("GlobalAveragePool", |cx| global_pool(cx, ReduceKind::Mean)),
    entry("GlobalMaxPool", |cx| global_pool(cx, ReduceKind::Max)),
    entry("GlobalLpPool", global_lp_pool),
];

/// The attributes of a window, `auto_pad` worked out.
pub(super) struct Window {
    pub strides: Vec<i64>,
    pub pads: Vec<i64>,
    pub dilations: Vec<i64>,
}

/// A list with an entry (or `per` of them) a spatial dimension, of at least `least`.
pub(super) fn spatial_list(
    cx: &mut NodeCx<'_, '_>,
    name: &str,
    len: usize,
    default: i64,
    least: i64,
) -> Imported<Vec<i64>> {
    let list = cx.ints(name)?.filter(|list| !list.is_empty()).unwrap_or_else(|| vec![default; len]);
    if list.len() != len || list.iter().any(|&n| n < least || n > i64::from(i32::MAX)) {
        invalid!("attribute `{name}` is {list:?}, for {len} numbers of at least {least}");
    }
    Ok(list)
}

impl Window {
    fn read(cx: &mut NodeCx<'_, '_>, x: Value, kernel: &[i64]) -> Imported<Window> {
        let n = kernel.len();
        let strides = spatial_list(cx, "strides", n, 1, 1)?;
        let dilations = spatial_list(cx, "dilations", n, 1, 1)?;
        let mut pads = spatial_list(cx, "pads", 2 * n, 0, i64::from(i32::MIN))?;
        let upper = match cx.string_or("auto_pad", "NOTSET")?.as_str() {
            "NOTSET" => return Ok(Window { strides, pads, dilations }),
            "VALID" => return Ok(Window { strides, pads: vec![0; 2 * n], dilations }),
            "SAME_UPPER" => true,
            "SAME_LOWER" => false,
            other => invalid!("attribute `auto_pad` is `{other}`"),
        };
        for d in 0..n {
            let reach = (kernel[d] - 1) * dilations[d] + 1;
            let total = match (strides[d], cx.ty(x).dims[d + 2].as_fixed()) {
                (1, _) => reach - 1,
                (stride, Some(size)) => {
                    let size = size as i64;
                    let windows = (size + stride - 1) / stride;
                    ((windows - 1) * stride + reach - size).max(0)
                }
                (_, None) => unsupported!("`auto_pad` for {}, of a size that is not known", cx.ty(x)),
            };
            let small = total / 2;
            (pads[d], pads[n + d]) = if upper { (small, total - small) } else { (total - small, small) };
        }
        Ok(Window { strides, pads, dilations })
    }
}

/// The sizes of the kernel, from the weights `[M, C, kernel..]`.
fn kernel_of(cx: &mut NodeCx<'_, '_>, x: Value, w: Value) -> Imported<Vec<i64>> {
    let (rank_x, rank_w) = (cx.rank(x), cx.rank(w));
    if rank_x != rank_w || rank_x < 2 {
        invalid!("{} and {} are not images and weights", cx.ty(x), cx.ty(w));
    }
    let declared = cx.ints("kernel_shape")?;
    let sizes: Option<Vec<i64>> =
        cx.ty(w).dims[2..].iter().map(|d| d.as_fixed().and_then(|n| i64::try_from(n).ok())).collect();
    match (sizes, declared) {
        (Some(sizes), Some(declared)) if sizes != declared => {
            invalid!("attribute `kernel_shape` is {declared:?}, the weights are {}", cx.ty(w))
        }
        (Some(sizes), _) | (None, Some(sizes)) => match sizes.iter().all(|&n| n <= i64::from(i32::MAX)) {
            true => Ok(sizes),
            false => invalid!("a kernel of {sizes:?}"),
        },
        (None, None) => unsupported!("weights of {}, of sizes that are not known", cx.ty(w)),
    }
}

fn conv_op(cx: &mut NodeCx<'_, '_>, x: Value, w: Value) -> Imported<ops::Conv> {
    let kernel = kernel_of(cx, x, w)?;
    let Window { strides, pads, dilations } = Window::read(cx, x, &kernel)?;
    let group = cx.int_or("group", 1)?;
    Ok(ops::Conv { strides, pads, dilations, group, channels_last: false })
}

fn conv(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (x, w) = (cx.input(0)?, cx.input(1)?);
    let op = conv_op(cx, x, w)?;
    let mut ins = vec![x, w];
    ins.extend(cx.optional(2));
    cx.push_whole(op, &ins)
}

fn conv_integer(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (x, w) = (cx.input(0)?, cx.input(1)?);
    let op = conv_op(cx, x, w)?;
    let (zero_x, zero_w) = (cx.optional(2), cx.optional(3));
    let x = centered(cx, x, zero_x, 1)?;
    let w = centered(cx, w, zero_w, 0)?;
    cx.push_whole(op, &[x, w])
}

/// Operands: x, scale, zero point, w, scale, zero point, result's scale, zero point, bias.
fn qlinear_conv(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (x, w) = (cx.input(0)?, cx.input(3)?);
    let op = conv_op(cx, x, w)?;
    let (zero_x, zero_w) = (cx.input(2)?, cx.input(5)?);
    let (scale_x, mut scale_w) = (cx.input(1)?, cx.input(4)?);
    let (scale_y, zero_y) = (cx.input(6)?, cx.input(7)?);
    let rank = cx.rank(x);
    let wide_x = centered(cx, x, Some(zero_x), 1)?;
    let wide_w = centered(cx, w, Some(zero_w), 0)?;
    let mut ins = vec![wide_x, wide_w];
    ins.extend(cx.optional(8));
    let sum = cx.push(op, &ins)?;
    if cx.rank(scale_w) == 1 {
        // One scale an output channel.
        let after: Vec<i64> = (1..=rank as i64 - 2).collect();
        scale_w = cx.unsqueeze(scale_w, &after)?;
    }
    Ok(vec![requantize(cx, sum, [scale_x, scale_w, scale_y], zero_y)?])
}

/// Padding follows from `output_shape` if that is given, or from `auto_pad`.
fn conv_transpose(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (x, w) = (cx.input(0)?, cx.input(1)?);
    let kernel = kernel_of(cx, x, w)?;
    let n = kernel.len();
    let strides = spatial_list(cx, "strides", n, 1, 1)?;
    let dilations = spatial_list(cx, "dilations", n, 1, 1)?;
    let mut pads = spatial_list(cx, "pads", 2 * n, 0, i64::from(i32::MIN))?;
    let mut output_padding = spatial_list(cx, "output_padding", n, 0, 0)?;
    let group = cx.int_or("group", 1)?;
    let auto_pad = cx.string_or("auto_pad", "NOTSET")?;
    let wanted = cx.ints("output_shape")?;
    if wanted.as_ref().is_some_and(|sizes| sizes.len() < n) {
        invalid!("attribute `output_shape` is {wanted:?} for {n} dimensions");
    }
    let upper = match auto_pad.as_str() {
        "NOTSET" | "SAME_LOWER" => false,
        "VALID" => {
            pads = vec![0; 2 * n];
            false
        }
        "SAME_UPPER" => true,
        other => invalid!("attribute `auto_pad` is `{other}`"),
    };
    let same = auto_pad.starts_with("SAME");
    for d in (0..n).filter(|_| same || wanted.is_some()) {
        let Some(size) = cx.ty(x).dims[d + 2].as_fixed().and_then(|size| i64::try_from(size).ok()) else {
            unsupported!("padding for {}, of a size that is not known", cx.ty(x));
        };
        // Some exporters give the batch and channels too.
        let wanted = match &wanted {
            Some(sizes) => sizes[sizes.len() - n + d],
            None => size.saturating_mul(strides[d]),
        };
        let reach = (kernel[d] - 1) * dilations[d] + 1 + output_padding[d];
        let total = (size - 1).saturating_mul(strides[d]).saturating_add(reach).saturating_sub(wanted);
        if total < 0 {
            output_padding[d] -= total;
        }
        let (total, small) = (total.max(0), total.max(0) / 2);
        (pads[d], pads[n + d]) = if upper { (small, total - small) } else { (total - small, small) };
    }
    let mut ins = vec![x, w];
    ins.extend(cx.optional(2));
    cx.push_whole(ops::ConvTranspose { strides, pads, dilations, output_padding, group }, &ins)
}

fn pool(cx: &mut NodeCx<'_, '_>, kind: PoolKind) -> Imported {
    let x = cx.input(0)?;
    let Some(kernel) = cx.ints("kernel_shape")? else { invalid!("attribute `kernel_shape` is missing") };
    let in_range = kernel.iter().all(|&n| (1..=i64::from(i32::MAX)).contains(&n));
    if kernel.len() + 2 != cx.rank(x) || !in_range {
        invalid!("attribute `kernel_shape` is {kernel:?} for {}", cx.ty(x));
    }
    let Window { strides, pads, dilations } = Window::read(cx, x, &kernel)?;
    let op = ops::Pool {
        kernel,
        strides,
        pads,
        dilations,
        ceil_mode: cx.bool_or("ceil_mode", false)?,
        count_include_pad: cx.bool_or("count_include_pad", false)?,
        p: cx.int_or("p", 2)?,
        ..ops::Pool::plain(kind, &[])
    };
    let storage_order = cx.bool_or("storage_order", false)?;
    let mut outs = vec![cx.push(op.clone(), &[x])?];
    if kind == PoolKind::Max && cx.wants_output(1) {
        outs.push(cx.push(ops::MaxPoolIndices { pool: op, storage_order }, &[x])?);
    }
    Ok(outs)
}

fn spatial_axes(cx: &NodeCx<'_, '_>, x: Value) -> Late {
    Late::Known((2..cx.rank(x) as i64).collect())
}

fn global_pool(cx: &mut NodeCx<'_, '_>, kind: ReduceKind) -> Imported {
    let x = cx.input(0)?;
    let axes = spatial_axes(cx, x);
    cx.push_whole(ops::Reduce { kind, axes, keep: true, none_if_empty: true }, &[x])
}

/// `sum(|x|^p)^(1/p)`
fn global_lp_pool(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    let p = if cx.version() < 2 { cx.float_or("p", 2.0)? } else { cx.int_or("p", 2)? as f64 };
    let dtype = cx.dtype_of(x);
    let wide = cx.cast(x, dtype.accumulator())?;
    let size = cx.map(ScalarFn::Abs, &[wide])?;
    let power = cx.map_constant(ScalarFn::Pow, size, p)?;
    let axes = spatial_axes(cx, x);
    let sum =
        cx.push(ops::Reduce { kind: ReduceKind::Sum, axes, keep: true, none_if_empty: true }, &[power])?;
    let root = cx.map_constant(ScalarFn::Pow, sum, 1.0 / p)?;
    Ok(vec![cx.cast(root, dtype)?])
}
