//! Hand-written kernels: native code against the loop interpreter, bit for bit.

mod common;

use std::sync::Arc;

use common::{check, check_with};
use windlass_ir::loops::{Guard, Index, Kernel, KernelBuilder, LoopKind, Role};
use windlass_ir::{DType, ScalarFn, Tensor};

use LoopKind::{Parallel, Serial, Unroll, Vector};

fn elementwise(name: &str, kind: LoopKind, len: usize) -> Kernel {
    let mut b = KernelBuilder::new(name);
    let x = b.buffer("x", DType::F32, len, Role::In);
    let y = b.buffer("y", DType::F32, len, Role::In);
    let z = b.buffer("z", DType::F32, len, Role::Out);
    b.repeat(kind, len, |b, i| {
        let (p, q) = (b.load(x, i.clone()), b.load(y, i.clone()));
        let half = b.constant(DType::F32, 0.5);
        let sum = b.apply(ScalarFn::Add, &[p, q]);
        let fused = b.apply(ScalarFn::Fma, &[half, sum, q]);
        let root = b.apply(ScalarFn::Sqrt, &[fused]);
        let low = b.apply(ScalarFn::Min, &[root, p]);
        b.store(z, i, low);
    });
    b.finish()
}

#[test]
fn elementwise_chains_of_every_length() {
    for kind in [Serial, Vector, Parallel] {
        for len in [1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 63, 64, 65, 100, 127, 1000, 1003] {
            check(elementwise("chain", kind, len));
        }
    }
}

#[test]
fn rows_in_parallel_and_columns_as_lanes() {
    for (rows, cols) in [(1, 9), (3, 4), (5, 77), (16, 130)] {
        let mut b = KernelBuilder::new("rows");
        let x = b.buffer("x", DType::F32, rows * cols, Role::In);
        let bias = b.buffer("bias", DType::F32, cols, Role::In);
        let scale = b.buffer("scale", DType::F32, rows, Role::In);
        let y = b.buffer("y", DType::F32, cols * rows, Role::Out);
        b.repeat(Parallel, rows, |b, i| {
            b.repeat(Vector, cols, |b, j| {
                let at = i.mul(cols as i64).add(&j);
                let p = b.load(x, at.clone());
                let q = b.load(bias, j);
                let r = b.load(scale, i.clone());
                let v = b.apply(ScalarFn::Fma, &[r, p, q]);
                b.store(y, at, v);
            });
        });
        check(b.finish());
    }
}

#[test]
fn padding_by_guards() {
    for kind in [Serial, Vector] {
        let (h, w) = (7usize, 21usize);
        let mut b = KernelBuilder::new("pad");
        let x = b.buffer("x", DType::F32, h * w, Role::In);
        let y = b.buffer("y", DType::F32, (h + 4) * (w + 6), Role::Out);
        b.repeat(Parallel, h + 4, |b, i| {
            b.repeat(kind, w + 6, |b, j| {
                let (from_i, from_j) = (i.add_const(-2), j.add_const(-3));
                let guards = vec![Guard::new(from_i.clone(), h), Guard::new(from_j.clone(), w)];
                let v = b.load_guarded(x, from_i.mul(w as i64).add(&from_j), guards);
                b.store(y, i.mul((w + 6) as i64).add(&j), v);
            });
        });
        check(b.finish());
    }
}

#[test]
fn divisions_in_indices() {
    for divisor in [2i64, 3, 7, 10, 64, 1000] {
        for kind in [Serial, Vector] {
            let len = 500usize;
            let mut b = KernelBuilder::new("divide");
            let x = b.buffer("x", DType::I32, 4 * len, Role::In);
            let y = b.buffer("y", DType::I32, len, Role::Out);
            let z = b.buffer("z", DType::I64, len, Role::Out);
            b.repeat(kind, len, |b, i| {
                let from = i.mul(3).add_const(1);
                let at = from.div(divisor).add(&from.rem(divisor));
                let v = b.load(x, at);
                b.store(y, i.clone(), v);
                let below = i.mul(5).add_const(-700);
                let q = below.div(divisor).mul(100_000).add(&below.rem(divisor));
                let v = b.define(DType::I64, windlass_ir::loops::Rhs::Index(q));
                b.store(z, i, v);
            });
            check(b.finish());
        }
    }
}

#[test]
fn gathers_rows() {
    let (rows, cols, count) = (11usize, 24usize, 9usize);
    let mut b = KernelBuilder::new("gather");
    let table = b.buffer("table", DType::F32, rows * cols, Role::In);
    let ids = b.buffer("ids", DType::I64, count, Role::In);
    let y = b.buffer("y", DType::F32, count * cols, Role::Out);
    let z = b.buffer("z", DType::F32, count, Role::Out);
    b.repeat(Serial, count, |b, i| {
        let id = b.load(ids, i.clone());
        b.repeat(Vector, cols, |b, j| {
            let v = b.load(table, Index::value(id, rows).mul(cols as i64).add(&j));
            b.store(y, i.mul(cols as i64).add(&j), v);
        });
    });
    b.repeat(Vector, count, |b, i| {
        let id = b.load(ids, i.clone());
        let v = b.load(table, Index::value(id, rows).mul(cols as i64));
        b.store(z, i, v);
    });
    check_with(b.finish(), |name, tensor| match name {
        "ids" => Tensor::new::<i64>(&[9], &[0, 10, 5, 5, 3, 9, 1, 0, 2]),
        _ => tensor,
    });
}

/// Rows x 8 register tile over panels of 8 columns.
fn product(m: usize, n: usize, k: usize, rows: usize) -> Kernel {
    let mut b = KernelBuilder::new("product");
    let x = b.buffer("x", DType::F32, m * k, Role::In);
    let y = b.buffer("y", DType::F32, k * n, Role::In);
    let z = b.buffer("z", DType::F32, m * n, Role::Out);
    let acc = b.buffer("acc", DType::F32, rows * 8, Role::Register);
    b.repeat(Parallel, m / rows, |b, i| {
        b.repeat(Serial, n / 8, |b, j| {
            b.repeat(Unroll, rows, |b, r| {
                b.repeat(Vector, 8, |b, l| {
                    let zero = b.constant(DType::F32, 0.0);
                    b.store(acc, r.mul(8).add(&l), zero);
                });
            });
            b.repeat(Serial, k, |b, p| {
                b.repeat(Unroll, rows, |b, r| {
                    b.repeat(Vector, 8, |b, l| {
                        let row = i.mul(rows as i64).add(&r);
                        let left = b.load(x, row.mul(k as i64).add(&p));
                        let right = b.load(y, j.mul(k as i64).add(&p).mul(8).add(&l));
                        let sum = b.load(acc, r.mul(8).add(&l));
                        let sum = b.apply(ScalarFn::Fma, &[left, right, sum]);
                        b.store(acc, r.mul(8).add(&l), sum);
                    });
                });
            });
            b.repeat(Unroll, rows, |b, r| {
                b.repeat(Vector, 8, |b, l| {
                    let row = i.mul(rows as i64).add(&r);
                    let sum = b.load(acc, r.mul(8).add(&l));
                    b.store(z, row.mul(n as i64).add(&j.mul(8)).add(&l), sum);
                });
            });
        });
    });
    b.finish()
}

#[test]
fn register_tiles_of_a_matrix_product() {
    for (m, n, k, rows) in [(5, 8, 1, 5), (10, 24, 33, 5), (4, 16, 7, 2), (3, 8, 20, 1)] {
        check(product(m, n, k, rows));
    }
}

#[test]
fn sums_folded_over_lanes() {
    let lanes = 32usize;
    for (rows, groups) in [(1, 1), (4, 10)] {
        let mut b = KernelBuilder::new("fold");
        let x = b.buffer("x", DType::F32, rows * groups * lanes, Role::In);
        let y = b.buffer("y", DType::F32, rows, Role::Out);
        let part = b.buffer("part", DType::F32, lanes, Role::Register);
        b.repeat(Parallel, rows, |b, i| {
            b.repeat(Vector, lanes, |b, l| {
                let zero = b.constant(DType::F32, 0.0);
                b.store(part, l, zero);
            });
            b.repeat(Serial, groups, |b, g| {
                b.repeat(Vector, lanes, |b, l| {
                    let v = b.load(x, i.mul(groups as i64).add(&g).mul(lanes as i64).add(&l));
                    let sum = b.load(part, l.clone());
                    let sum = b.apply(ScalarFn::Add, &[sum, v]);
                    b.store(part, l, sum);
                });
            });
            for half in [16usize, 8, 4, 2, 1] {
                b.repeat(Vector, half, |b, l| {
                    let p = b.load(part, l.clone());
                    let q = b.load(part, l.add_const(half as i64));
                    let sum = b.apply(ScalarFn::Add, &[p, q]);
                    b.store(part, l, sum);
                });
            }
            let sum = b.load(part, Index::constant(0));
            b.store(y, i, sum);
        });
        check(b.finish());
    }
}

/// Each round of a loop hands every value of a register buffer to the next place, the last to the first: more of them
/// than there are registers, in the end.
#[test]
fn values_change_places_in_registers() {
    for (count, lanes, dtype) in [
        (2, 8, DType::F32),
        (15, 8, DType::F32),
        (40, 8, DType::F32),
        (3, 1, DType::I64),
        (20, 1, DType::I64),
    ] {
        let mut b = KernelBuilder::new("rotate");
        let len = count * lanes;
        let x = b.buffer("x", dtype, len, Role::In);
        let y = b.buffer("y", dtype, len, Role::Out);
        let held = b.buffer("held", dtype, len, Role::Register);
        let kind = if lanes == 1 { Serial } else { Vector };
        let at = |place: usize, lane: &Index| lane.add_const((lanes * place) as i64);
        let each = |b: &mut KernelBuilder, body: &dyn Fn(&mut KernelBuilder, &Index)| match kind {
            Vector => b.repeat(Vector, lanes, |b, lane| body(b, &lane)),
            _ => body(b, &Index::constant(0)),
        };
        each(&mut b, &|b, lane| {
            for place in 0..count {
                let v = b.load(x, at(place, lane));
                b.store(held, at(place, lane), v);
            }
        });
        b.repeat(Serial, 7, |b, _| {
            each(b, &|b, lane| {
                let values: Vec<_> = (0..count).map(|place| b.load(held, at(place, lane))).collect();
                for (place, v) in values.into_iter().enumerate() {
                    b.store(held, at((place + 1) % count, lane), v);
                }
            });
        });
        each(&mut b, &|b, lane| {
            for place in 0..count {
                let v = b.load(held, at(place, lane));
                b.store(y, at(place, lane), v);
            }
        });
        check(b.finish());
    }
}

#[test]
fn scalars_in_registers_through_loops_and_branches() {
    let n = 40usize;
    let mut b = KernelBuilder::new("scan");
    let x = b.buffer("x", DType::F64, n, Role::In);
    let y = b.buffer("y", DType::F64, n, Role::Out);
    let acc = b.buffer("acc", DType::F64, 2, Role::Register);
    let zero = b.constant(DType::F64, 0.0);
    b.store(acc, Index::constant(0), zero);
    b.store(acc, Index::constant(1), zero);
    b.repeat(Serial, n, |b, i| {
        let v = b.load(x, i.clone());
        b.begin_if(&[Guard::new(i.add_const(-10), 20)]);
        let sum = b.load(acc, Index::constant(0));
        let sum = b.apply(ScalarFn::Add, &[sum, v]);
        b.store(acc, Index::constant(0), sum);
        b.begin_else();
        let sum = b.load(acc, Index::constant(1));
        let sum = b.apply(ScalarFn::Max, &[sum, v]);
        b.store(acc, Index::constant(1), sum);
        b.end();
        let p = b.load(acc, Index::constant(0));
        let q = b.load(acc, Index::constant(1));
        let r = b.apply(ScalarFn::Sub, &[p, q]);
        b.store(y, i, r);
    });
    check(b.finish());
}

#[test]
fn extents_that_depend_on_outer_loops() {
    let n = 23usize;
    for kind in [Serial, Vector] {
        let mut b = KernelBuilder::new("triangle");
        let x = b.buffer("x", DType::F32, n * n, Role::In);
        let y = b.buffer("y", DType::F32, n * n, Role::InOut);
        let one = b.constant(DType::F32, 1.0);
        b.repeat(Serial, n, |b, i| {
            b.repeat_while_below(n, i.clone(), |b, j| {
                let v = b.load(x, j.mul(n as i64).add(&i));
                let v = b.apply(ScalarFn::Add, &[v, one]);
                b.store(y, i.mul(n as i64).add(&j), v);
            });
        });
        let mut kernel = b.finish();
        set_inner_kind(Arc::make_mut(&mut kernel.body), kind);
        check(kernel);
    }
}

fn set_inner_kind(block: &mut windlass_ir::loops::Block, to: LoopKind) {
    for stmt in block {
        if let windlass_ir::loops::Stmt::For { body, kind, .. } = stmt {
            match body.iter().any(|s| matches!(s, windlass_ir::loops::Stmt::For { .. })) {
                true => set_inner_kind(body, to),
                false => *kind = to,
            }
        }
    }
}

#[test]
fn stack_arrays() {
    let n = 50usize;
    let mut b = KernelBuilder::new("stack");
    let x = b.buffer("x", DType::F32, 4 * n, Role::In);
    let y = b.buffer("y", DType::F32, 4 * n, Role::Out);
    let row = b.buffer("row", DType::F32, n, Role::Stack);
    b.repeat(Parallel, 4, |b, i| {
        b.repeat(Vector, n, |b, j| {
            let v = b.load(x, i.mul(n as i64).add(&j));
            let v = b.apply(ScalarFn::Mul, &[v, v]);
            b.store(row, j, v);
        });
        b.repeat(Vector, n, |b, j| {
            let v = b.load(row, j.mul(-1).add_const(n as i64 - 1));
            b.store(y, i.mul(n as i64).add(&j), v);
        });
    });
    check(b.finish());
}

/// Every function on every type it takes, as scalars and as lanes.
#[test]
fn every_function() {
    let one_type = |f: ScalarFn, dtype: DType| match f {
        ScalarFn::Select => vec![DType::Bool, dtype, dtype],
        _ => vec![dtype; f.arity()],
    };
    let mut functions: Vec<ScalarFn> = ScalarFn::PLAIN.iter().copied().filter(|f| f.is_primitive()).collect();
    functions.extend(DType::ALL.map(ScalarFn::Cast));
    functions.extend(DType::ALL.map(ScalarFn::Bitcast));
    let mut count = 0;
    for f in functions {
        for dtype in DType::ALL {
            let types = one_type(f, dtype);
            let Ok(result) = f.result_type(&types) else { continue };
            for kind in [Serial, Vector] {
                let len = 70usize;
                let mut b = KernelBuilder::new(f.name());
                let ins: Vec<_> = types
                    .iter()
                    .enumerate()
                    .map(|(i, &t)| b.buffer(&format!("x{i}"), t, len, Role::In))
                    .collect();
                let y = b.buffer("y", result, len, Role::Out);
                b.repeat(kind, len, |b, i| {
                    let args: Vec<_> = ins.iter().map(|&x| b.load(x, i.clone())).collect();
                    let v = b.apply(f, &args);
                    b.store(y, i, v);
                });
                check(b.finish());
                count += 1;
            }
        }
    }
    assert!(count > 900, "{count} cases");
}

#[test]
fn mixed_widths_in_one_body() {
    let len = 75usize;
    let mut b = KernelBuilder::new("mixed");
    let x = b.buffer("x", DType::U8, len, Role::In);
    let y = b.buffer("y", DType::F32, len, Role::In);
    let m = b.buffer("m", DType::Bool, len, Role::In);
    let z = b.buffer("z", DType::I8, len, Role::Out);
    let w = b.buffer("w", DType::F64, len, Role::Out);
    let t = b.buffer("t", DType::Bool, len, Role::Out);
    b.repeat(Vector, len, |b, i| {
        let (p, q, c) = (b.load(x, i.clone()), b.load(y, i.clone()), b.load(m, i.clone()));
        let p = b.apply(ScalarFn::Cast(DType::F32), &[p]);
        let sum = b.apply(ScalarFn::Add, &[p, q]);
        let less = b.apply(ScalarFn::Lt, &[p, q]);
        let both = b.apply(ScalarFn::And, &[less, c]);
        let chosen = b.apply(ScalarFn::Select, &[both, sum, q]);
        let narrow = b.apply(ScalarFn::Cast(DType::I8), &[chosen]);
        let wide = b.apply(ScalarFn::Cast(DType::F64), &[chosen]);
        b.store(z, i.clone(), narrow);
        b.store(w, i.clone(), wide);
        b.store(t, i, both);
    });
    check(b.finish());
}

#[test]
fn shifts_by_constants() {
    let len = 70usize;
    for dtype in DType::ALL.into_iter().filter(|d| d.is_int()) {
        let bits = 8 * dtype.size() as u32;
        for f in [ScalarFn::Shl, ScalarFn::Shr] {
            for count in [0, 1, 3, bits / 2, bits - 1] {
                let mut b = KernelBuilder::new("shift");
                let x = b.buffer("x", dtype, len, Role::In);
                let y = b.buffer("y", dtype, len, Role::Out);
                b.repeat(Vector, len, |b, i| {
                    let v = b.load(x, i.clone());
                    let by = b.constant(dtype, f64::from(count));
                    let v = b.apply(f, &[v, by]);
                    b.store(y, i, v);
                });
                check(b.finish());
            }
        }
    }
}

/// What is asked for may lie anywhere.
#[test]
fn prefetches_change_nothing() {
    let mut b = KernelBuilder::new("ahead");
    let x = b.buffer("x", DType::F32, 100, Role::In);
    let y = b.buffer("y", DType::F32, 100, Role::Out);
    let stack = b.buffer("stack", DType::F32, 16, Role::Stack);
    b.repeat(Parallel, 10, |b, i| {
        for far in [-1 << 40, -4000, 0, 50, 1 << 20, 1 << 40] {
            b.prefetch(x, i.mul(10).add_const(far));
        }
        b.repeat(Unroll, 3, |b, j| b.prefetch(y, i.mul(10).add(&j.mul(16))));
        b.prefetch(stack, i.clone());
        b.repeat(Vector, 10, |b, j| {
            let at = i.mul(10).add(&j);
            let v = b.load(x, at.clone());
            b.store(y, at, v);
        });
    });
    check(b.finish());
}

#[test]
fn vector_loops_of_every_length_and_width() {
    for dtype in [DType::U8, DType::I16, DType::F32, DType::F64] {
        for len in (1..140).chain([255, 256, 257, 383]) {
            let mut b = KernelBuilder::new("negated");
            let x = b.buffer("x", dtype, len, Role::In);
            let y = b.buffer("y", dtype, len, Role::Out);
            b.repeat(Vector, len, |b, i| {
                let v = b.load(x, i.clone());
                let v = b.apply(ScalarFn::Neg, &[v]);
                b.store(y, i, v);
            });
            check(b.finish());
        }
    }
}
