//! Loop text: kernels, printed and parsed back; nests and programs, printed for reading.
//!
//! ```text
//! kernel scale(x: f32[12] in, y: f32[12] out) {
//!   local acc: f32[4] register
//!   parallel for i0 in 0..3 {
//!     v0 = const f32 2.0
//!     vector for i1 in 0..4 {
//!       v1 = load x[4*i0 + i1] if i1 - 1 in 0..3
//!       v2 = mul v1 v0
//!       y[4*i0 + i1] = v2
//!     }
//!   }
//! }
//! ```
//!
//! The grammar is that of `kernel.rs`, with what text needs besides:
//!
//! - a loop whose number of iterations is not constant says how many its variable may take:
//!   `for i1 in 0..i0 + 1 below 8`;
//! - an index says below what a computed value lies: `v3<16`; divisions are of what stands in
//!   parentheses: `(i0 + i1)/4`, `(i0)%3`;
//! - `cast` and `bitcast` name their type first: `v2 = cast i32 v1`;
//! - a constant is decimal if that gives its bits back, else `0x` and the bits;
//! - `inside always` has no guards;
//! - a kernel for narrower vectors than a machine's widest says so: `kernel scale(..) vectors 256 {`.
//!
//! Parameters come before locals. Values are numbered as they are written, so that a kernel whose
//! values are all defined comes back equal.

mod lex;
mod parse;
mod print;

pub use parse::parse_kernel;
pub use print::{print_kernel, print_lines, print_nest, print_program};

impl std::fmt::Display for super::Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&print_kernel(self))
    }
}

impl std::fmt::Display for super::Nest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&print_nest(self))
    }
}

impl std::fmt::Display for super::Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&print_program(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::loops::{Guard, Index, KernelBuilder, LoopKind, NestBuilder, Reduction, Rhs, Role};
    use crate::scalar::ScalarFn;

    #[test]
    fn kernels_come_back() {
        let mut b = KernelBuilder::new("everything");
        let x = b.buffer("x", DType::F32, 64, Role::In);
        let at = b.buffer("at", DType::I64, 8, Role::In);
        let y = b.buffer("y", DType::F32, 64, Role::InOut);
        let acc = b.buffer("acc", DType::F32, 4, Role::Register);
        b.repeat(LoopKind::Parallel, 8, |b, i| {
            let position = b.load(at, i.clone());
            let gathered = b.load(x, Index::value(position, 8).mul(8).add_const(3));
            b.repeat(LoopKind::Unroll, 4, |b, j| b.store(acc, j, gathered));
            b.repeat_while_below(8, i.add_const(1), |b, j| {
                let at = i.mul(3).add(&j).add_const(-2);
                let guards = vec![Guard::new(at.div(5), 4), Guard::new(at.rem(7), 6)];
                b.begin_if(&guards);
                let v = b.load_guarded(x, at.clone(), vec![Guard::new(at.clone(), 64)]);
                let inside = b.define(DType::Bool, Rhs::Inside(guards.clone()));
                let n = b.define(DType::I64, Rhs::Index(at));
                let n = b.apply(ScalarFn::Cast(DType::F32), &[n]);
                let chosen = b.apply(ScalarFn::Select, &[inside, v, n]);
                b.store(y, i.mul(8).add(&j), chosen);
                b.begin_else();
                for bits in [0x7fc0_0001u64, 0x8000_0000, 0x3dcc_cccd, 0x7f80_0000, 1] {
                    b.define(DType::F32, Rhs::Const(bits));
                }
                b.define(DType::I8, Rhs::Const(0xff));
                b.define(DType::F16, Rhs::Const(0x3c01));
                b.define(DType::U64, Rhs::Const(u64::MAX));
                b.define(DType::Bool, Rhs::Const(1));
                b.end();
            });
        });
        let mut kernel = b.finish();
        for vector_bits in [None, Some(256)] {
            kernel.vector_bits = vector_bits;
            let text = print_kernel(&kernel);
            assert_eq!(parse_kernel(&text).unwrap(), kernel, "{text}");
        }
    }

    #[test]
    fn errors_name_the_place() {
        let text = "kernel k(x: f32[4] in) {\n  v0 = load z[0]\n}";
        let Err(crate::Error::Parse { span, message }) = parse_kernel(text) else { panic!("it parsed") };
        assert_eq!((&text[span], message.as_str()), ("z", "no buffer is called `z`"));
        assert!(parse_kernel("kernel k(x: f32[4] in) { v0 = add v1 v2 }").is_err());
        assert!(parse_kernel("kernel k(x: f32[4] in) { v4000000000 = const f32 1 }").is_err());
    }

    #[test]
    fn nests_read_as_formulas() {
        let mut n = NestBuilder::new(&[2, 3]);
        let x = n.operand(DType::F32, &[2, 3]);
        let i = n.domain();
        let max = n.reduce(Reduction::Max, &[3], |n, k| n.load(x, &[i[0].clone(), k[0].clone()]));
        let own = n.load(x, &i);
        let less = n.apply(ScalarFn::Sub, &[own, max]);
        let root = n.apply(ScalarFn::Exp, &[less]);
        let nest = n.finish(&[root]);
        assert_eq!(
            print_nest(&nest),
            "nest(x0: f32[2, 3]) over i0 < 2, i1 < 3 {\n  \
             y0: f32 = exp(x0[i0, i1] - max(i2 < 3) x0[i0, i2])\n}\n"
        );
    }
}
