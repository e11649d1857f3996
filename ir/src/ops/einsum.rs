//! `einsum`: sums of products, written as an equation over subscripts.

use super::elementwise::broadcast_index;
use super::{Gradients, Iota, Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::{DType, Element};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Index, NestBuilder, Reduction};
use crate::ops::points::points;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType, broadcast_dims, strides};
use crate::with_element;

/// Sums of products over subscripts: `"ij,jk->ik"` is a matrix product.
///
/// Each operand has a letter a dimension, and `...` stands for any number of dimensions that broadcast,
/// aligned at the right. A letter twice in an operand takes the diagonal. Subscripts that the result
/// does not have are summed over; without `->` it has those of `...`, then the letters that occur once,
/// in alphabetical order. A dimension of 1 broadcasts. f16 and bf16 are summed in f32 and rounded once.
///
/// - (C1) the equation is well formed, with a term an operand; the result's letters are distinct and
///   occur in operands;
/// - (C2) each term fits the rank of its operand;
/// - (C3) dimensions of one subscript are equal or 1;
/// - (C4) the operands are numbers of one type.
///
/// ONNX: `Einsum` (12..).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Einsum {
    /// The equation.
    pub equation: String,
}

/// What a dimension is called: a letter, or its distance from the right end of `...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Subscript {
    Ellipsis(usize),
    Letter(char),
}

/// An equation resolved for operands of known rank.
struct Terms {
    operands: Vec<Vec<Subscript>>,
    result: Vec<Subscript>,
}

impl Terms {
    /// Every subscript, those of the result first, then the others in order of appearance.
    fn all(&self) -> Vec<Subscript> {
        let mut all = self.result.clone();
        for &subscript in self.operands.iter().flatten() {
            if !all.contains(&subscript) {
                all.push(subscript);
            }
        }
        all
    }

    /// The size of each subscript of [`Self::all`].
    fn sizes(&self, shapes: &[Shape]) -> Vec<(Subscript, usize)> {
        let size = |wanted: Subscript| {
            let dims = self.operands.iter().zip(shapes).flat_map(|(term, shape)| term.iter().zip(shape));
            let sizes = dims.filter(|(s, _)| **s == wanted).map(|(_, &n)| n);
            sizes.fold(1, |a, b| if a == 1 { b } else { a })
        };
        self.all().into_iter().map(|s| (s, size(s))).collect()
    }
}

/// Every letter.
fn letters() -> impl Iterator<Item = char> {
    ('a'..='z').chain('A'..='Z')
}

/// A term's letters, and the number of them before `...` if it has that.
fn parse_term(text: &str) -> Result<(Vec<char>, Option<usize>), Violation> {
    let (mut letters, mut ellipsis) = (Vec::new(), None);
    let mut rest = text.trim();
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("...") {
            require!(ellipsis.is_none(), "C1", "`{text}` has more than one ellipsis");
            ellipsis = Some(letters.len());
            rest = after;
        } else {
            require!(c.is_ascii_alphabetic() || c == ' ', "C1", "`{text}` has a stray `{c}`");
            if c != ' ' {
                letters.push(c);
            }
            rest = &rest[1..];
        }
    }
    Ok((letters, ellipsis))
}

impl Einsum {
    fn terms(&self, ranks: &[usize]) -> Result<Terms, Violation> {
        let (left, right) = match self.equation.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (self.equation.as_str(), None),
        };
        let found = left.split(',').count();
        require!(found == ranks.len(), "C1", "`{left}` has {found} terms for {} operands", ranks.len());
        let mut operands = Vec::new();
        let mut widest = 0;
        for (text, &rank) in left.split(',').zip(ranks) {
            let (letters, ellipsis) = parse_term(text)?;
            let fits = if ellipsis.is_some() { rank >= letters.len() } else { rank == letters.len() };
            require!(fits, "C2", "`{text}` does not fit rank {rank}");
            let width = rank - letters.len();
            widest = widest.max(width);
            operands.push(spread(&letters, ellipsis, width));
        }
        let result = match right {
            Some(text) => {
                let (letters, ellipsis) = parse_term(text)?;
                spread(&letters, ellipsis, widest)
            }
            None => {
                let mut letters: Vec<Subscript> = operands.concat();
                letters.retain(|s| matches!(s, Subscript::Letter(_)));
                letters.sort_unstable();
                let once = |s: &&Subscript| letters.iter().filter(|t| t == s).count() == 1;
                let letters: Vec<Subscript> = letters.iter().filter(once).copied().collect();
                spread(&[], Some(0), widest).into_iter().chain(letters).collect()
            }
        };
        for (i, s) in result.iter().enumerate() {
            let known = operands.iter().flatten().any(|t| t == s);
            require!(
                known && !result[..i].contains(s),
                "C1",
                "the result of `{}` is not clear",
                self.equation
            );
        }
        Ok(Terms { operands, result })
    }

    fn terms_of(&self, ins: &[&TensorType]) -> Result<Terms, Violation> {
        self.terms(&ins.iter().map(|t| t.rank()).collect::<Vec<_>>())
    }
}

fn spread(letters: &[char], ellipsis: Option<usize>, width: usize) -> Vec<Subscript> {
    let before = ellipsis.unwrap_or(letters.len());
    let letter = |&c: &char| Subscript::Letter(c);
    let dots = if ellipsis.is_some() { width } else { 0 };
    let middle = (0..dots).rev().map(Subscript::Ellipsis);
    letters[..before].iter().map(letter).chain(middle).chain(letters[before..].iter().map(letter)).collect()
}

impl OpDef for Einsum {
    const NAMES: &'static [&'static str] = &["einsum"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("Einsum", 12..=u32::MAX)];

    fn with_name(_: &str) -> Einsum {
        Einsum::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("equation", Slot::Text(&mut self.equation))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=usize::MAX)?;
        let terms = self.terms_of(ins)?;
        for ty in ins {
            let fits = ty.dtype == ins[0].dtype && ty.dtype != DType::Bool;
            require!(fits, "C4", "{} and {ty} are not numbers of one type", ins[0]);
        }
        let mut dims: Vec<(Subscript, Dim)> = Vec::new();
        for (term, ty) in terms.operands.iter().zip(ins) {
            for (subscript, dim) in term.iter().zip(&ty.dims) {
                let Some((_, known)) = dims.iter_mut().find(|(s, _)| s == subscript) else {
                    dims.push((*subscript, dim.clone()));
                    continue;
                };
                let joined = broadcast_dims(std::slice::from_ref(known), std::slice::from_ref(dim));
                let Some(joined) = joined else {
                    let message = format!("`{}` pairs {known} with {dim}", self.equation);
                    return Err(Violation::new("C3", message));
                };
                *known = joined[0].clone();
            }
        }
        let dim = |s: &Subscript| dims.iter().find(|(t, _)| t == s).map_or(Dim::Unknown, |(_, d)| d.clone());
        Ok(vec![TensorType::new(ins[0].dtype, terms.result.iter().map(dim))])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let ranks: Vec<usize> = ins.iter().map(Tensor::rank).collect();
        let terms = self.terms(&ranks).map_err(|v| v.to_string())?;
        let shapes: Vec<Shape> = ins.iter().map(|t| t.shape().into()).collect();
        let sizes = terms.sizes(&shapes);
        let extents: Vec<usize> = sizes.iter().map(|(_, n)| *n).collect();
        let (result, summed) = extents.split_at(terms.result.len());
        // How far each operand moves along each subscript.
        let steps: Vec<Vec<usize>> = terms
            .operands
            .iter()
            .zip(&shapes)
            .map(|(term, shape)| {
                let stride = strides(shape);
                let moves = |wanted: &Subscript| {
                    let own = term.iter().zip(stride.iter().zip(shape));
                    own.filter(|(s, (_, n))| *s == wanted && **n != 1).map(|(_, (&step, _))| step).sum()
                };
                sizes.iter().map(|(s, _)| moves(s)).collect()
            })
            .collect();
        let dtype = ins[0].dtype();
        let place = |operand: usize, at: &[usize], inner: &[usize]| -> usize {
            at.iter().chain(inner).zip(&steps[operand]).map(|(i, s)| i * s).sum()
        };
        let values: Vec<(Vec<f64>, Vec<i128>)> = match dtype.is_float() {
            true => ins.iter().map(|t| (t.to_f64s(), Vec::new())).collect(),
            false => ins.iter().map(|t| (Vec::new(), t.to_i128s())).collect(),
        };
        let float = |at: &[usize]| -> f64 {
            let product = |inner: Shape| {
                values.iter().enumerate().map(|(i, (v, _))| v[place(i, at, &inner)]).product::<f64>()
            };
            points(summed).map(product).sum()
        };
        // Wrapping at each step keeps products of many operands inside an i128.
        let wrap = |x: i128| with_element!(dtype, T => T::from_i128(x).to_i128());
        let int = |at: &[usize]| -> i128 {
            let product = |inner: Shape| {
                values.iter().enumerate().fold(1, |p, (i, (_, v))| wrap(p * v[place(i, at, &inner)]))
            };
            points(summed).map(product).fold(0, |a, b| wrap(a + b))
        };
        Ok(vec![match dtype.is_float() {
            true => {
                Tensor::from_f64s(dtype, result, &points(result).map(|at| float(&at)).collect::<Vec<_>>())
            }
            false => {
                Tensor::from_i128s(dtype, result, &points(result).map(|at| int(&at)).collect::<Vec<_>>())
            }
        }])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let types: Vec<TensorType> = cx.ins.iter().map(|&v| cx.builder.ty(v).clone()).collect();
        let terms = self.terms_of(&types.iter().collect::<Vec<_>>()).expect("infer accepted the equation");
        let shapes: Vec<Shape> = types.iter().map(TensorType::shape).collect();
        let (all, g) = (terms.all(), cx.dout(0));
        let names: Vec<char> = letters().collect();
        if all.len() > names.len() {
            return Ok(Vjp::Undefined);
        }
        let spell = |term: &[Subscript]| -> String {
            term.iter().filter_map(|s| Some(names[all.iter().position(|t| t == s)?])).collect()
        };
        let sizes = terms.sizes(&shapes);
        let size = |wanted: &Subscript| sizes.iter().find(|(s, _)| s == wanted).map_or(1, |(_, n)| *n);
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        for (i, term) in terms.operands.iter().enumerate().filter(|(i, _)| cx.wanted[*i]) {
            // Everything else summed to the subscripts of this operand, each once.
            let mut own: Vec<Subscript> = Vec::new();
            term.iter().for_each(|s| {
                if !own.contains(s) {
                    own.push(*s)
                }
            });
            let others = (0..cx.ins.len()).filter(|&j| j != i);
            let mut ins: Vec<Value> = vec![g];
            ins.extend(others.clone().map(|j| cx.ins[j]));
            let mut factors = vec![spell(&terms.result)];
            factors.extend(others.map(|j| spell(&terms.operands[j])));
            // Subscripts of this operand alone: what flows back is the same all along them.
            let lone: Vec<Subscript> =
                own.iter().copied().filter(|s| !factors.iter().any(|f| f.contains(&spell(&[*s])))).collect();
            if !lone.is_empty() {
                let along: Vec<usize> = lone.iter().map(size).collect();
                let one = cx.builder.scalar_like(g, 1.0);
                ins.push(cx.broadcast(one, &along)?);
                factors.push(spell(&lone));
            }
            let equation = format!("{}->{}", factors.join(","), spell(&own));
            let mut flow = cx.push(Einsum { equation }, &ins)?;
            // Dimensions of 1 that were repeated.
            let mut shape: Shape = own.iter().map(size).collect();
            let of_own = |s: &Subscript| term.iter().position(|t| t == s).map_or(1, |d| shapes[i][d]);
            let narrow: Vec<usize> =
                (0..own.len()).filter(|&d| of_own(&own[d]) == 1 && shape[d] != 1).collect();
            flow = cx.sum(flow, &narrow, true)?;
            narrow.iter().for_each(|&d| shape[d] = 1);
            gradients[i] = Some(diagonal(cx, flow, &own, term, &shapes[i])?);
        }
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let types = cx.types();
        let terms = self.terms_of(&types.iter().collect::<Vec<_>>()).expect("infer accepted the equation");
        let (all, names) = (terms.all(), letters().collect::<Vec<char>>());
        if all.len() >= names.len() {
            return Ok(Vmap::OneByOne);
        }
        let spell = |term: &[Subscript], batched: bool| -> String {
            let own = term.iter().filter_map(|s| Some(names[all.iter().position(|t| t == s)?]));
            batched.then_some(names[all.len()]).into_iter().chain(own).collect()
        };
        let operands = terms.operands.iter().zip(cx.batched).map(|(term, &batched)| spell(term, batched));
        let operands = operands.collect::<Vec<_>>().join(",");
        let equation = format!("{operands}->{}", spell(&terms.result, true));
        cx.push(Einsum { equation }, cx.ins)
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let types: Vec<&TensorType> = ins.iter().collect();
        let terms = self.terms_of(&types).expect("infer accepted the equation");
        if ins.len() > 2
            && let Some(pairs) = Pairs::new(&terms)
        {
            return Lowered::graph(ins, |b, ins| pairs.build(b, ins));
        }
        let dtype = outs[0].dtype;
        let shapes: Vec<Shape> = ins.iter().map(TensorType::shape).collect();
        let sizes = terms.sizes(&shapes);
        let mut n = NestBuilder::new(&outs[0].shape());
        let operands: Vec<u32> = shapes.iter().map(|shape| n.operand(dtype, shape)).collect();
        let at = n.domain();
        let (result, summed) = sizes.split_at(terms.result.len());
        let extents: Vec<usize> = summed.iter().map(|(_, n)| *n).collect();
        let sum = n.reduce(Reduction::Sum, &extents, |n, k| {
            let along = |wanted: &Subscript| -> Index {
                let indices = result.iter().zip(&at).chain(summed.iter().zip(k));
                let mut own = indices.filter(|((s, _), _)| s == wanted).map(|(_, index)| index.clone());
                own.next().expect("every subscript has an index")
            };
            let factors: Vec<_> = terms
                .operands
                .iter()
                .zip(&operands)
                .zip(&shapes)
                .map(|((term, &operand), shape)| {
                    let index: Vec<Index> = term.iter().map(along).collect();
                    let value = n.load(operand, &broadcast_index(&index, shape));
                    n.cast(value, dtype.accumulator())
                })
                .collect();
            factors.into_iter().reduce(|a, b| n.apply(ScalarFn::Mul, &[a, b])).expect("one operand or more")
        });
        let result = n.cast(sum, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

/// A tensor of the subscripts `own`, each of which it has once, as one of `term`, which may have some more
/// often: it is 0 where indices of one subscript differ.
fn diagonal(
    cx: &mut VjpCx<'_>,
    mut flow: Value,
    own: &[Subscript],
    term: &[Subscript],
    shape: &[usize],
) -> Result<Value, Error> {
    if own.len() == term.len() {
        return Ok(flow);
    }
    let first = |d: usize| term.iter().position(|s| *s == term[d]).unwrap_or(d);
    let spread: Vec<usize> = (0..term.len()).map(|d| if first(d) == d { shape[d] } else { 1 }).collect();
    flow = cx.reshape(flow, &spread)?;
    flow = cx.broadcast(flow, shape)?;
    let sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    for d in (0..term.len()).filter(|&d| first(d) != d) {
        let [a, b] = [first(d), d].map(|axis| {
            cx.push(Iota { shape: sizes.clone().into(), axis: axis as i64, dtype: DType::I64 }, &[])
        });
        let same = cx.map(ScalarFn::Eq, &[a?, b?])?;
        flow = cx.masked(same, flow)?;
    }
    Ok(flow)
}

/// An equation of many operands as one of two operands after another, from left to right.
struct Pairs {
    equations: Vec<String>,
}

impl Pairs {
    /// `None` if there are more subscripts than letters.
    fn new(terms: &Terms) -> Option<Pairs> {
        let names: Vec<char> = letters().collect();
        let all = terms.all();
        if all.len() > names.len() {
            return None;
        }
        let spell = |term: &[Subscript]| -> String {
            term.iter().filter_map(|s| Some(names[all.iter().position(|t| t == s)?])).collect()
        };
        let mut so_far = terms.operands[0].clone();
        let mut equations = Vec::new();
        for (i, next) in terms.operands.iter().enumerate().skip(1) {
            let rest = &terms.operands[i + 1..];
            let kept: Vec<Subscript> = match rest.is_empty() {
                true => terms.result.clone(),
                false => all
                    .iter()
                    .filter(|s| so_far.contains(s) || next.contains(s))
                    .filter(|s| terms.result.contains(s) || rest.iter().flatten().any(|t| t == *s))
                    .copied()
                    .collect(),
            };
            equations.push(format!("{},{}->{}", spell(&so_far), spell(next), spell(&kept)));
            so_far = kept;
        }
        Some(Pairs { equations })
    }

    fn build(&self, b: &mut Builder, ins: &[Value]) -> Result<Values, Error> {
        let dtype = b.ty(ins[0]).dtype;
        let mut so_far = b.cast(ins[0], dtype.accumulator())?;
        for (equation, &next) in self.equations.iter().zip(&ins[1..]) {
            let next = b.cast(next, dtype.accumulator())?;
            so_far = b.push1(Einsum { equation: equation.clone() }, &[so_far, next])?;
        }
        Ok(Values::from_slice(&[b.cast(so_far, dtype)?]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, sample};

    fn run(equation: &str, shapes: &[&[usize]]) -> Tensor {
        for dtype in [DType::F16, DType::I32, DType::F64] {
            let ins: Vec<Tensor> =
                shapes.iter().zip(1..).map(|(shape, seed)| sample(dtype, shape, seed)).collect();
            let y = check(Einsum { equation: equation.to_string() }, &ins).remove(0);
            if dtype == DType::F64 {
                return y;
            }
        }
        unreachable!("the last type is f64");
    }

    #[test]
    fn equations_agree_with_their_formulas() {
        assert_eq!(run("ij,jk->ik", &[&[2, 3], &[3, 4]]).shape(), [2, 4]);
        assert_eq!(run("ij,jk", &[&[2, 3], &[3, 4]]).shape(), [2, 4]);
        assert_eq!(run("ji", &[&[2, 3]]).shape(), [3, 2]);
        assert_eq!(run("ij->", &[&[2, 3]]).shape(), [0usize; 0]);
        assert_eq!(run("...ii->...i", &[&[2, 3, 3]]).shape(), [2, 3]);
        assert_eq!(run("bij, bjk -> bik", &[&[2, 3, 4], &[2, 4, 5]]).shape(), [2, 3, 5]);
        assert_eq!(run("...ij,...jk->...ik", &[&[2, 1, 3, 4], &[5, 4, 2]]).shape(), [2, 5, 3, 2]);
        assert_eq!(run("i,i", &[&[5], &[5]]).shape(), [0usize; 0]);
        assert_eq!(run("ab,bc,cd->ad", &[&[2, 3], &[3, 4], &[4, 2]]).shape(), [2, 2]);
        assert_eq!(run("...a,b...,ab->...", &[&[2, 3], &[4, 2], &[3, 4]]).shape(), [2]);
        assert_eq!(run("ij,jk->ki", &[&[0, 3], &[3, 4]]).shape(), [4, 0]);
        assert_eq!(run("ij,jk->ik", &[&[2, 0], &[0, 2]]).to_f64s(), [0.0; 4]);
    }

    #[test]
    fn a_trace_and_a_diagonal() {
        let x = Tensor::new(&[2, 2], &[1f32, 2., 3., 4.]);
        let run = |equation: &str| {
            check(Einsum { equation: equation.to_string() }, std::slice::from_ref(&x)).remove(0).to_f64s()
        };
        assert_eq!(run("ii->i"), [1., 4.]);
        assert_eq!(run("ii"), [5.]);
    }

    #[test]
    fn constraints_are_named() {
        let f32 = |shape: &[usize]| TensorType::fixed(DType::F32, shape);
        let violated = |equation: &str, ins: &[&TensorType]| {
            Einsum { equation: equation.to_string() }.infer(ins).unwrap_err().constraint
        };
        let x = f32(&[2, 3]);
        assert_eq!(violated("ij,jk", &[&x]), "C1");
        assert_eq!(violated("ij->ik", &[&x]), "C1");
        assert_eq!(violated("ij->ii", &[&x]), "C1");
        assert_eq!(violated("i1", &[&x]), "C1");
        assert_eq!(violated("ü", &[&x]), "C1");
        assert_eq!(violated("i", &[&x]), "C2");
        assert_eq!(violated("ij,jk", &[&x, &f32(&[2, 2])]), "C3");
        assert_eq!(violated("ij,jk", &[&x, &TensorType::fixed(DType::F64, &[3, 2])]), "C4");
    }
}
