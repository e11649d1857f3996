//! Random valid kernels, each from a seed, for holding emitters against the loop interpreter.
//!
//! A kernel is grown from pieces: loops of every kind in each other, guarded branches, loops whose
//! extent depends on outer ones, register tiles accumulated over a serial loop and folded, small
//! arrays on the stack, and at the leaves random expressions over every scalar function and element
//! type. Loads are strided, reversed, repeated, divided, guarded or gathered; each buffer is as long
//! as its indices need. Every leaf stores to elements of its own, so the kernel keeps the promises of
//! its loop kinds, and every order of parallel iterations and lanes gives the same bits.

mod arrays;

use windlass_ir::loops::interpret::{Argument, Order, Prepared, Region};
use windlass_ir::loops::{Buffer, Guard, Index, Kernel, KernelBuilder, LoopKind, Rhs, Role, Val, Var};
use windlass_ir::{DType, Element, Error, ScalarFn, Tensor, with_element};

use crate::generate::Rng;

/// What kernels are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether functions may be ones that are expanded (and halves computed with), or only those that
    /// emitters implement.
    pub expanded: bool,
    /// How many functions an expression may have.
    pub functions: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { expanded: true, functions: 6 }
    }
}

/// A kernel and what to run it on.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The kernel.
    pub kernel: Kernel,
    /// The parameters' buffers as they are before it runs, in order.
    pub params: Vec<Tensor>,
}

impl Generated {
    /// The parameters' buffers after the interpreter has run the kernel.
    pub fn interpret(&self, order: Order) -> Result<Vec<Tensor>, Error> {
        let mut params = self.params.clone();
        let mut regions: Vec<Region<'_>> = params.iter_mut().map(|t| Region::Write(t.bytes_mut())).collect();
        let args: Vec<Argument> = (0..regions.len()).map(|region| Argument { region, offset: 0 }).collect();
        Prepared::new(&self.kernel)?.run(&mut regions, &args, order)?;
        drop(regions);
        Ok(params)
    }
}

/// Fails at the first element that differs in its bits, unless both are NaN.
pub fn compare_bits(found: &Tensor, expected: &Tensor) -> Result<(), String> {
    if found.ty() != expected.ty() {
        return Err(format!("found {}, expected {}", found.ty(), expected.ty()));
    }
    with_element!(found.dtype(), T => {
        for (i, (a, b)) in found.as_slice::<T>().iter().zip(expected.as_slice::<T>()).enumerate() {
            let nan = Element::to_f64(*a).is_nan() && Element::to_f64(*b).is_nan();
            if !nan && bytemuck::bytes_of(a) != bytemuck::bytes_of(b) {
                return Err(format!("element {i} is {a:?}, expected {b:?}"));
            }
        }
    });
    Ok(())
}

/// The kernel of a seed.
pub fn generate(seed: u64, options: &Options) -> Generated {
    let mut grow = Grow {
        rng: Rng::new(seed),
        options,
        b: KernelBuilder::new(&format!("random_{seed}")),
        vars: Vec::new(),
        values: vec![Vec::new()],
        params: Vec::new(),
        shared: Vec::new(),
        work: 1,
        names: 0,
    };
    if grow.rng.flag() {
        let extent = 1 + grow.rng.below(5);
        grow.enter(LoopKind::Parallel, extent);
        grow.block(0);
        grow.leave();
    } else {
        grow.block(0);
    }
    Generated { kernel: grow.b.finish(), params: grow.params }
}

/// The most element operations nested loops may come to.
const WORK: usize = 4000;

struct Grow<'o> {
    rng: Rng,
    options: &'o Options,
    b: KernelBuilder,
    /// Variables of open loops with their kinds.
    vars: Vec<(Var, LoopKind)>,
    /// Values by the open block that defines them.
    values: Vec<Vec<(Val, DType)>>,
    params: Vec<Tensor>,
    /// Parameters that are only read, with their lengths.
    shared: Vec<(Buffer, DType, usize)>,
    /// How often the innermost block runs.
    work: usize,
    names: usize,
}

impl Grow<'_> {
    fn enter(&mut self, kind: LoopKind, extent: usize) -> Index {
        let var = self.b.begin_loop(kind, extent);
        self.vars.push((var, kind));
        self.values.push(Vec::new());
        self.work *= extent.max(1);
        Index::var(var)
    }

    fn leave(&mut self) {
        let (var, _) = self.vars.pop().expect("a loop is open");
        self.work /= var.extent.max(1);
        self.values.pop();
        self.b.end();
    }

    fn name(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    /// Declares a parameter of random contents.
    fn param(&mut self, dtype: DType, len: usize, role: Role) -> Buffer {
        let name = self.name(match role {
            Role::In => "x",
            _ => "y",
        });
        let contents =
            if role == Role::Out { Tensor::zeros(dtype, &[len]) } else { self.contents(dtype, len) };
        self.params.push(contents);
        self.b.buffer(&name, dtype, len, role)
    }

    /// Small numbers, special ones and any bits.
    fn contents(&mut self, dtype: DType, len: usize) -> Tensor {
        const SPECIAL: [f64; 12] = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            0.5,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            1e30,
            -1e-40,
            300.0,
            2147483648.0,
        ];
        let mut tensor = Tensor::zeros(dtype, &[len]);
        let rng = &mut self.rng;
        with_element!(dtype, T => for slot in tensor.as_mut_slice::<T>() {
            *slot = match rng.below(8) {
                0 => <T as Element>::from_f64(*rng.choose(&SPECIAL)),
                1 if dtype != DType::Bool => {
                    let bits = rng.bits().to_le_bytes();
                    bytemuck::pod_read_unaligned(&bits[..size_of::<T>()])
                }
                _ if dtype.is_float() => <T as Element>::from_f64(rng.between(-9000, 9000) as f64 / 1000.0),
                _ => <T as Element>::from_i128(i128::from(rng.between(-20, 20))),
            };
        });
        tensor
    }

    fn dtype(&mut self) -> DType {
        let common = [DType::F32, DType::F32, DType::F64, DType::I32, DType::I64, DType::U8];
        loop {
            let dtype =
                if self.rng.flag() { *self.rng.choose(&common) } else { *self.rng.choose(&DType::ALL) };
            if self.options.expanded || !matches!(dtype, DType::F16 | DType::BF16) {
                return dtype;
            }
        }
    }

    /// One to three pieces.
    fn block(&mut self, depth: usize) {
        for _ in 0..1 + self.rng.below(3) {
            self.piece(depth);
        }
    }

    fn extent(&mut self) -> usize {
        let most = (WORK / self.work).clamp(1, 70);
        match self.rng.below(6) {
            0 => *self.rng.choose(&[1, 4, 8, 16, 32]).min(&most),
            _ => 1 + self.rng.below(most.min(20)),
        }
    }

    fn piece(&mut self, depth: usize) {
        let deep = depth >= 3 || self.work > WORK / 8;
        match self.rng.below(if deep { 4 } else { 9 }) {
            0 | 1 => {
                let extent = self.extent();
                let kind = *self.rng.choose(&[LoopKind::Vector, LoopKind::Vector, LoopKind::Serial]);
                self.enter(kind, extent);
                self.leaf();
                self.leave();
            }
            2 => self.tile(),
            3 => self.leaf(),
            4 => {
                let kind = *self.rng.choose(&[LoopKind::Serial, LoopKind::Serial, LoopKind::Unroll]);
                let extent =
                    if kind == LoopKind::Unroll { 1 + self.rng.below(4) } else { self.extent().min(12) };
                self.enter(kind, extent);
                self.block(depth + 1);
                self.leave();
            }
            5 => self.branch(depth),
            6 => self.triangle(depth),
            7 => self.stack(),
            _ => {
                // A value for the blocks to come.
                let dtype = self.dtype();
                self.expression(dtype, 2);
            }
        }
    }

    fn guard(&mut self) -> Guard {
        let index = self.affine();
        let (low, high) = index.range();
        let span = (high - low) as usize + 1;
        let start = self.rng.between(low - 1, high);
        Guard::new(index.add_const(-start), 1 + self.rng.below(span + 1))
    }

    fn branch(&mut self, depth: usize) {
        let guards: Vec<Guard> = (0..1 + self.rng.below(2)).map(|_| self.guard()).collect();
        self.b.begin_if(&guards);
        self.values.push(Vec::new());
        self.block(depth + 1);
        self.values.pop();
        if self.rng.flag() {
            self.b.begin_else();
            self.values.push(Vec::new());
            self.block(depth + 1);
            self.values.pop();
        }
        self.b.end();
    }

    /// A loop that runs as often as an outer variable says.
    fn triangle(&mut self, depth: usize) {
        let Some(&(outer, _)) = self.vars.last() else { return self.leaf() };
        let extra = self.rng.below(3);
        let bound = outer.extent - 1 + extra;
        if bound == 0 || bound * self.work > WORK {
            return self.leaf();
        }
        let extent = Index::var(outer).add_const(extra as i64);
        let var = self.b.begin_loop_below(bound, extent);
        self.vars.push((var, LoopKind::Serial));
        self.values.push(Vec::new());
        self.work *= bound;
        if depth < 2 && self.rng.flag() {
            let extent = self.extent();
            self.enter(LoopKind::Vector, extent);
            self.leaf();
            self.leave();
        } else {
            self.leaf();
        }
        self.work /= bound;
        self.values.pop();
        self.vars.pop();
        self.b.end();
    }

    /// Stores an expression to elements that no other iteration stores to.
    fn leaf(&mut self) {
        let dtype = self.dtype();
        let (at, len) = self.own_element();
        let role = if self.rng.one_in(4) { Role::InOut } else { Role::Out };
        let to = self.param(dtype, len, role);
        if role == Role::InOut {
            let old = self.b.load(to, at.clone());
            self.keep(old);
        }
        let value = self.expression(dtype, self.options.functions);
        self.b.store(to, at, value);
    }

    /// An index that differs from iteration to iteration, and how many elements it needs.
    fn own_element(&mut self) -> (Index, usize) {
        let order = self.rng.shuffled(self.vars.len());
        let mut at = Index::constant(0);
        let mut len = 1;
        for k in order {
            let var = self.vars[k].0;
            let reversed = self.rng.one_in(6);
            let part = match reversed {
                true => Index::constant(var.extent as i64 - 1).sub(&Index::var(var)),
                false => Index::var(var),
            };
            at = at.mul(var.extent as i64).add(&part);
            len *= var.extent;
        }
        let stride = if self.rng.one_in(5) { 1 + self.rng.below(3) } else { 1 };
        let offset = self.rng.below(3);
        (at.mul(stride as i64).add_const(offset as i64), len * stride + offset)
    }

    fn keep(&mut self, val: Val) -> Val {
        let dtype = self.b.dtype(val);
        self.values.last_mut().expect("a block is open").push((val, dtype));
        val
    }

    /// A sum of multiples of open loops' variables, perhaps divided.
    fn affine(&mut self) -> Index {
        let mut at = Index::constant(self.rng.between(-2, 2));
        for (var, _) in self.vars.clone() {
            let c = *self.rng.choose(&[0, 1, 1, 1, 2, 3, -1, -2, 8]);
            at = at.add(&Index::var(var).mul(c));
        }
        match self.rng.below(8) {
            0 => at.div(1 + self.rng.between(1, 5)),
            1 => at.rem(1 + self.rng.between(1, 7)),
            _ => at,
        }
    }

    /// A load of this type.
    fn load(&mut self, dtype: DType) -> Val {
        let mut at = self.affine();
        if self.rng.one_in(6) {
            at = at.add(&self.gathered());
        }
        let (low, high) = at.range();
        let at = at.add_const(-low);
        let len = (high - low) as usize + 1;
        let reused = self.shared.iter().find(|(_, t, n)| *t == dtype && *n >= len).copied();
        let (buffer, len) = match reused {
            Some((buffer, _, n)) if self.rng.flag() => (buffer, n),
            _ => {
                let buffer = self.param(dtype, len, Role::In);
                self.shared.push((buffer, dtype, len));
                (buffer, len)
            }
        };
        let val = if self.rng.one_in(4) && at.values().is_empty() {
            let at = at.add_const(self.rng.between(-3, 3));
            let mut guards = vec![Guard::new(at.clone(), len)];
            if self.rng.flag() {
                guards.push(self.guard());
            }
            self.b.load_guarded(buffer, at, guards)
        } else {
            self.b.load(buffer, at)
        };
        self.keep(val)
    }

    /// A position that is loaded.
    fn gathered(&mut self) -> Index {
        let at = self.affine();
        let (low, high) = at.range();
        let len = (high - low) as usize + 1;
        let extent = 1 + self.rng.below(12);
        let positions: Vec<i64> = (0..len).map(|_| self.rng.below(extent) as i64).collect();
        let name = self.name("at");
        self.params.push(Tensor::new(&[len], &positions));
        let buffer = self.b.buffer(&name, DType::I64, len, Role::In);
        let position = self.b.load(buffer, at.add_const(-low));
        Index::value(position, extent).mul(self.rng.between(1, 3))
    }

    /// A value of this type, of at most `functions` functions.
    fn expression(&mut self, dtype: DType, functions: usize) -> Val {
        if functions == 0 || self.rng.one_in(6) {
            return self.simple(dtype);
        }
        for _ in 0..20 {
            let (f, types) = self.function(dtype);
            if f.result_type(&types) != Ok(dtype) || !self.may_use(f, &types) {
                continue;
            }
            let share = (functions - 1) / types.len();
            let args: Vec<Val> = types.iter().map(|&t| self.expression(t, share)).collect();
            let val = self.b.apply(f, &args);
            return self.keep(val);
        }
        self.simple(dtype)
    }

    /// A function that may give this type, and operand types.
    fn function(&mut self, dtype: DType) -> (ScalarFn, Vec<DType>) {
        match self.rng.below(5) {
            0 => (ScalarFn::Cast(dtype), vec![self.dtype()]),
            1 if self.rng.flag() => {
                // The bits of a computed NaN are not defined.
                let from = *self.rng.choose(&DType::ALL);
                (if from.is_float() { ScalarFn::Cast(dtype) } else { ScalarFn::Bitcast(dtype) }, vec![from])
            }
            _ => {
                let f = *self.rng.choose(ScalarFn::PLAIN);
                let types = match f {
                    ScalarFn::Pack2 if dtype == DType::I16 => vec![DType::I8; 2],
                    ScalarFn::Pack2 => vec![DType::I16; 2],
                    ScalarFn::Unpack2 => vec![DType::I16],
                    ScalarFn::Dot2 | ScalarFn::Dot4 => vec![DType::I32; 2],
                    ScalarFn::Select => vec![DType::Bool, dtype, dtype],
                    _ if dtype == DType::Bool && self.rng.flag() => vec![self.dtype(); f.arity()],
                    _ => vec![dtype; f.arity()],
                };
                (f, types)
            }
        }
    }

    fn may_use(&self, f: ScalarFn, types: &[DType]) -> bool {
        // Integer powers expand to hundreds of functions.
        let heavy = f == ScalarFn::Pow && types[0].is_int() && types[0].size() > 1;
        !heavy
            && (self.options.expanded
                || windlass_ir::loops::is_emitted(f, types, windlass_ir::loops::Native::default()))
    }

    fn simple(&mut self, dtype: DType) -> Val {
        let known: Vec<Val> =
            self.values.iter().flatten().filter(|(_, t)| *t == dtype).map(|(val, _)| *val).collect();
        match self.rng.below(6) {
            0 | 1 if !known.is_empty() => *self.rng.choose(&known),
            0 => {
                let one = self.contents(dtype, 1);
                let mut bits = [0; 8];
                bits[..dtype.size()].copy_from_slice(one.bytes());
                let val = self.b.define(dtype, Rhs::Const(u64::from_le_bytes(bits)));
                self.keep(val)
            }
            1 if dtype == DType::I64 => {
                let at = self.affine();
                let val = self.b.define(dtype, Rhs::Index(at));
                self.keep(val)
            }
            2 if dtype == DType::Bool => {
                let guards = vec![self.guard()];
                let val = self.b.define(dtype, Rhs::Inside(guards));
                self.keep(val)
            }
            _ => self.load(dtype),
        }
    }
}
