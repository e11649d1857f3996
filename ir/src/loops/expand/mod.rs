//! Rewrites kernels so that every scalar function is one that processors have.
//!
//! **What an emitter must implement** is what remains, [`is_emitted`]; nothing else reaches it:
//!
//! | functions | operand types | note |
//! |---|---|---|
//! | `add sub mul div min max neg` | i8..i64, u8..u64, f32, f64 | as `machine.rs` says: wrapping, total, IEEE minimum |
//! | `abs` | i8..i64, f32, f64 | |
//! | `fma sqrt floor ceil trunc round` | f32, f64 | |
//! | `and or xor not` | i8..i64, u8..u64, bool | bool is the byte 0 or 1, or a mask while in a vector |
//! | `shl shr` | i8..i64, u8..u64 | total: a count past the width gives 0 or the sign |
//! | `eq ne lt le gt ge` | i8..i64, u8..u64, f32, f64 | |
//! | `dot2 dot4` | i32 | |
//! | `select` | bool and two of any type but f16, bf16 | |
//! | `cast` | integer to integer of another width; i32, i64, u64 to and from f32, f64; f32 to and from f64; f16 to and from f32 where [`Native`] says so | |
//! | `bitcast` | any two of equal size but bool; f16 and bf16 to and from i16, u16 | |
//! | `load`, `store`, `const` | every type | f16 and bf16 are their 16 bits |
//!
//! So f16 and bf16 are computed with in f32 and rounded after each function, by integer arithmetic
//! on their bits where there is no instruction. A NaN stays one, quiet, with as much of its payload
//! as fits. Transcendental functions become straight lines of fma, select and integer operations,
//! without branches or tables, so they vectorise wherever their caller does; each file states its
//! bound, and the tests sweep it. Coefficients are minimax polynomials (Remez in 200-bit arithmetic,
//! weighted so that the error stays relative to the function, then rounded to the type).
//!
//! Selects that clamp are written `select(limit < x, limit, x)`: one `min` or `max` instruction on
//! x86-64, and a NaN in `x` stays.

mod cast;
mod compose;
mod erf;
mod exp;
mod half;
mod hyperbolic;
mod inverse;
mod log;
mod pow;
mod scope;
mod trig;

#[cfg(test)]
mod tests;

use cranelift_entity::packed_option::PackedOption;
use cranelift_entity::{PrimaryMap, SecondaryMap};
use smallvec::SmallVec;

use self::scope::Scope;
use super::{Block, Guard, Index, Kernel, Let, Rhs, Stmt, Val};
use crate::dtype::DType;
use crate::error::Error;
use crate::scalar::ScalarFn;

/// What an emitter implements that not all do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Native {
    /// Conversions of f16 to f32 and back.
    pub half_casts: bool,
}

/// Whether an emitter implements `f` on operands of these types.
pub fn is_emitted(f: ScalarFn, ins: &[DType], native: Native) -> bool {
    let Some(&last) = ins.last() else { return false };
    let computed = last.is_int() || matches!(last, DType::F32 | DType::F64);
    match f {
        ScalarFn::Select => !is_half(last),
        ScalarFn::Bitcast(_) | ScalarFn::Unpack2 | ScalarFn::Dot2 | ScalarFn::Dot4 => true,
        ScalarFn::Cast(to) => {
            let wide = |t| matches!(t, DType::I32 | DType::I64 | DType::U64);
            match (last, to) {
                (DType::F32, DType::F64) | (DType::F64, DType::F32) => true,
                (DType::F16, DType::F32) | (DType::F32, DType::F16) => native.half_casts,
                (DType::F32 | DType::F64, to) => wide(to),
                (from, DType::F32 | DType::F64) => wide(from),
                (from, to) => from.is_int() && to.is_int() && from.size() != to.size(),
            }
        }
        ScalarFn::Add
        | ScalarFn::Sub
        | ScalarFn::Mul
        | ScalarFn::Div
        | ScalarFn::Min
        | ScalarFn::Max
        | ScalarFn::Neg => computed,
        ScalarFn::Abs => computed && !last.is_unsigned_int(),
        ScalarFn::Fma
        | ScalarFn::Sqrt
        | ScalarFn::Floor
        | ScalarFn::Ceil
        | ScalarFn::Trunc
        | ScalarFn::Round => computed && last.is_float(),
        ScalarFn::And | ScalarFn::Or | ScalarFn::Xor | ScalarFn::Not => last.is_int() || last == DType::Bool,
        ScalarFn::Shl | ScalarFn::Shr => last.is_int(),
        ScalarFn::Eq | ScalarFn::Ne | ScalarFn::Lt | ScalarFn::Le | ScalarFn::Gt | ScalarFn::Ge => computed,
        ScalarFn::Rem
        | ScalarFn::Mod
        | ScalarFn::Pow
        | ScalarFn::Clamp
        | ScalarFn::Sign
        | ScalarFn::Relu
        | ScalarFn::Exp
        | ScalarFn::Expm1
        | ScalarFn::Log
        | ScalarFn::Log1p
        | ScalarFn::Sin
        | ScalarFn::Cos
        | ScalarFn::Tan
        | ScalarFn::Asin
        | ScalarFn::Acos
        | ScalarFn::Atan
        | ScalarFn::Sinh
        | ScalarFn::Cosh
        | ScalarFn::Tanh
        | ScalarFn::Asinh
        | ScalarFn::Acosh
        | ScalarFn::Atanh
        | ScalarFn::Erf
        | ScalarFn::Sigmoid
        | ScalarFn::IsNan
        | ScalarFn::Pack2 => false,
    }
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// Fails at the first function that an emitter does not implement (L9).
pub fn check_expanded(kernel: &Kernel, native: Native) -> Result<(), Error> {
    fn check(kernel: &Kernel, block: &Block, native: Native) -> Result<(), Error> {
        for stmt in block {
            match stmt {
                Stmt::For { body, .. } => check(kernel, body, native)?,
                Stmt::If { then, otherwise, .. } => {
                    check(kernel, then, native)?;
                    check(kernel, otherwise, native)?;
                }
                Stmt::Let(Let { val, rhs: Rhs::Apply(f, args) }) => {
                    let types: SmallVec<[DType; 3]> = args.iter().map(|&a| kernel.vals[a]).collect();
                    if !is_emitted(*f, &types, native) {
                        let message = format!("`{}`: {val} = {f} on {types:?} is not expanded", kernel.name);
                        return Err(Error::Verify { invariant: "L9", message });
                    }
                }
                Stmt::Let(_) | Stmt::Store { .. } | Stmt::Prefetch { .. } => {}
            }
        }
        Ok(())
    }
    check(kernel, &kernel.body, native)
}

/// The same kernel with only functions that an emitter implements.
pub fn expand_kernel(kernel: &Kernel, native: Native) -> Kernel {
    match check_expanded(kernel, native) {
        Ok(()) => kernel.clone(),
        Err(_) => expand_with_origins(kernel, native).0,
    }
}

/// As [`expand_kernel`]; and for each statement of the result, in the order of its text, the number of the statement
/// that it was made for. Statements are numbered from 0 in the order of text.
pub fn expand_with_origins(kernel: &Kernel, native: Native) -> (Kernel, Vec<u32>) {
    if check_expanded(kernel, native).is_ok() {
        return (kernel.clone(), (0..count(&kernel.body)).collect());
    }
    let mut cx = Expand {
        from: kernel,
        native,
        vals: PrimaryMap::new(),
        renamed: SecondaryMap::new(),
        constants: SecondaryMap::new(),
        words: SecondaryMap::new(),
        next: 0,
        origins: Vec::new(),
    };
    let body = cx.block(&kernel.body);
    let (name, buffers) = (kernel.name.clone(), kernel.buffers.clone());
    let expanded =
        Kernel { name, buffers, vals: cx.vals, vector_bits: kernel.vector_bits, body: body.into() };
    (expanded, cx.origins)
}

fn count(block: &Block) -> u32 {
    let inside = |stmt: &Stmt| match stmt {
        Stmt::For { body, .. } => count(body),
        Stmt::If { then, otherwise, .. } => count(then) + count(otherwise),
        Stmt::Let(_) | Stmt::Store { .. } | Stmt::Prefetch { .. } => 0,
    };
    block.iter().map(|stmt| 1 + inside(stmt)).sum()
}

struct Expand<'k> {
    from: &'k Kernel,
    native: Native,
    vals: PrimaryMap<Val, DType>,
    /// The new value of each old one.
    renamed: SecondaryMap<Val, PackedOption<Val>>,
    /// The bits of old values that are constants.
    constants: SecondaryMap<Val, Option<u64>>,
    /// The word that a new value was cut from without loss.
    words: SecondaryMap<Val, PackedOption<Val>>,
    /// The number of the next old statement.
    next: u32,
    /// The old statement of each new one.
    origins: Vec<u32>,
}

impl Expand<'_> {
    fn block(&mut self, block: &Block) -> Block {
        let mut out = Block::new();
        // Constants of expansions are shared within a run of statements.
        let mut known = Vec::new();
        for stmt in block {
            let number = self.next;
            self.next += 1;
            // Statements of an expansion follow; others are one for one, before those inside them.
            if !matches!(stmt, Stmt::Let(Let { rhs: Rhs::Apply(..), .. })) {
                self.origins.push(number);
            }
            let stmt = match stmt {
                Stmt::For { var, extent, kind, body } => {
                    let extent = self.index(extent);
                    Stmt::For { var: *var, extent, kind: *kind, body: self.block(body) }
                }
                Stmt::If { guards, then, otherwise } => Stmt::If {
                    guards: self.guards(guards),
                    then: self.block(then),
                    otherwise: self.block(otherwise),
                },
                Stmt::Store { buffer, index, val } => {
                    Stmt::Store { buffer: *buffer, index: self.index(index), val: self.val(*val) }
                }
                Stmt::Prefetch { buffer, index } => {
                    Stmt::Prefetch { buffer: *buffer, index: self.index(index) }
                }
                Stmt::Let(Let { val, rhs }) => {
                    let rhs = match rhs {
                        Rhs::Apply(f, args) => {
                            let bits: SmallVec<[Option<u64>; 3]> =
                                args.iter().map(|&a| self.constants[a]).collect();
                            let args: SmallVec<[Val; 3]> = args.iter().map(|&a| self.val(a)).collect();
                            let before = out.len();
                            let mut scope = Scope {
                                vals: &mut self.vals,
                                out: &mut out,
                                known: &mut known,
                                words: &mut self.words,
                                native: self.native,
                            };
                            let result = expand_apply(&mut scope, *f, &args, &bits);
                            self.renamed[*val] = result.into();
                            self.origins.extend((before..out.len()).map(|_| number));
                            continue;
                        }
                        Rhs::Const(bits) => {
                            self.constants[*val] = Some(*bits);
                            Rhs::Const(*bits)
                        }
                        Rhs::Load { buffer, index, guards } => Rhs::Load {
                            buffer: *buffer,
                            index: self.index(index),
                            guards: self.guards(guards),
                        },
                        Rhs::Index(index) => Rhs::Index(self.index(index)),
                        Rhs::Inside(guards) => Rhs::Inside(self.guards(guards)),
                    };
                    let new = self.vals.push(self.from.vals[*val]);
                    self.renamed[*val] = new.into();
                    Stmt::Let(Let { val: new, rhs })
                }
            };
            out.push(stmt);
        }
        out
    }

    fn val(&self, val: Val) -> Val {
        self.renamed[val].expand().expect("(L1) values are defined before they are used")
    }

    fn index(&self, index: &Index) -> Index {
        index.map_values(&|v| self.val(v))
    }

    fn guards(&self, guards: &[Guard]) -> Vec<Guard> {
        guards.iter().map(|g| Guard::new(self.index(&g.index), g.size)).collect()
    }
}

/// The value of `f`, by functions that the emitter implements. `bits` are those of constant operands.
fn expand_apply(s: &mut Scope<'_>, f: ScalarFn, args: &[Val], bits: &[Option<u64>]) -> Val {
    let types: SmallVec<[DType; 3]> = args.iter().map(|&a| s.dtype(a)).collect();
    if let ScalarFn::Cast(to) = f
        && let Some(word) = s.words[args[0]].expand()
    {
        return cast::cast(s, word, to);
    }
    if is_emitted(f, &types, s.native) {
        return s.apply(f, args);
    }
    let (x, last) = (args[0], types[types.len() - 1]);
    match f {
        ScalarFn::Cast(to) => cast::cast(s, x, to),
        ScalarFn::Bitcast(_) => unreachable!("every bitcast is emitted"),
        ScalarFn::Select => {
            // Halves move as their bits.
            let (a, b) = (s.bitcast(args[1], DType::U16), s.bitcast(args[2], DType::U16));
            let chosen = s.select(x, a, b);
            s.bitcast(chosen, last)
        }
        _ if is_half(last) => half::apply(s, f, args, bits),
        ScalarFn::Eq | ScalarFn::Ne | ScalarFn::Lt | ScalarFn::Le | ScalarFn::Gt | ScalarFn::Ge => {
            compose::compare_bools(s, f, args[0], args[1])
        }
        ScalarFn::Abs => x,
        ScalarFn::Rem => compose::rem(s, x, args[1]),
        ScalarFn::Mod => compose::modulo(s, x, args[1]),
        ScalarFn::Clamp => compose::clamp(s, x, args[1], args[2]),
        ScalarFn::Sign => compose::sign(s, x),
        ScalarFn::Relu => compose::relu(s, x),
        ScalarFn::IsNan => s.ne(x, x),
        ScalarFn::Pack2 => compose::pack2(s, x, args[1]),
        ScalarFn::Pow if last.is_int() => pow::int_pow(s, x, args[1], bits[1]),
        ScalarFn::Pow => pow::pow(s, x, args[1], bits[1]),
        ScalarFn::Exp => exp::exp(s, x),
        ScalarFn::Sigmoid => exp::sigmoid(s, x),
        ScalarFn::Tanh => hyperbolic::tanh(s, x),
        ScalarFn::Log => log::log(s, x),
        ScalarFn::Erf => erf::erf(s, x),
        ScalarFn::Sin => trig::sin(s, x),
        ScalarFn::Cos => trig::cos(s, x),
        ScalarFn::Tan => trig::tan(s, x),
        ScalarFn::Expm1 => exp::expm1(s, x),
        ScalarFn::Log1p => log::log1p(s, x),
        ScalarFn::Asin => in_f64(s, x, inverse::asin),
        ScalarFn::Acos => in_f64(s, x, inverse::acos),
        ScalarFn::Atan => in_f64(s, x, inverse::atan),
        ScalarFn::Sinh => in_f64(s, x, hyperbolic::sinh),
        ScalarFn::Cosh => in_f64(s, x, hyperbolic::cosh),
        ScalarFn::Asinh => in_f64(s, x, hyperbolic::asinh),
        ScalarFn::Acosh => in_f64(s, x, hyperbolic::acosh),
        ScalarFn::Atanh => in_f64(s, x, hyperbolic::atanh),
        ScalarFn::Add
        | ScalarFn::Sub
        | ScalarFn::Mul
        | ScalarFn::Div
        | ScalarFn::Min
        | ScalarFn::Max
        | ScalarFn::Neg
        | ScalarFn::Fma
        | ScalarFn::Sqrt
        | ScalarFn::Floor
        | ScalarFn::Ceil
        | ScalarFn::Trunc
        | ScalarFn::Round
        | ScalarFn::And
        | ScalarFn::Or
        | ScalarFn::Xor
        | ScalarFn::Not
        | ScalarFn::Shl
        | ScalarFn::Shr
        | ScalarFn::Unpack2
        | ScalarFn::Dot2
        | ScalarFn::Dot4 => unreachable!("{f} on {types:?} is emitted, or refused by its types"),
    }
}

/// A function computed in f64; for f32 that leaves only the final rounding.
fn in_f64(s: &mut Scope<'_>, x: Val, f: fn(&mut Scope<'_>, Val) -> Val) -> Val {
    if s.dtype(x) == DType::F64 {
        return f(s, x);
    }
    let wide = s.cast(x, DType::F64);
    let y = f(s, wide);
    s.cast(y, DType::F32)
}
