//! The printers.

use std::borrow::Cow;
use std::fmt::{Display, Write};

use cranelift_entity::SecondaryMap;

use crate::dtype::{DType, Element};
use crate::loops::{
    Atom, Block, BufferData, Expr, Guard, Index, Kernel, Let, LoopKind, Move, Nest, Place, Program, Repeat,
    Rhs, Role, Stmt, Val, Work,
};
use crate::scalar::ScalarFn;
use crate::with_element;

/// A kernel as text.
pub fn print_kernel(kernel: &Kernel) -> String {
    let kernel = &with_distinct_names(kernel);
    let mut out = signature(kernel);
    out.push('\n');
    for (_, local) in kernel.buffers.iter().filter(|(_, b)| !b.role.is_param()) {
        let _ = writeln!(out, "  local {}", buffer(local));
    }
    block(&mut out, kernel, &kernel.body, 1);
    out.push_str("}\n");
    out
}

/// A kernel's first line.
fn signature(kernel: &Kernel) -> String {
    let params: Vec<String> = kernel.params().map(|(_, b)| buffer(b)).collect();
    let vectors = kernel.vector_bits.map_or_else(String::new, |bits| format!("vectors {bits} "));
    format!("kernel {}({}) {vectors}{{", kernel.name, params.join(", "))
}

fn buffer(b: &BufferData) -> String {
    format!("{}: {}[{}] {}", b.name, b.dtype, b.len, role(b.role))
}

/// The same kernel, buffers of the same name told apart by their ids.
fn with_distinct_names(kernel: &Kernel) -> Cow<'_, Kernel> {
    let mut names: Vec<&str> = kernel.buffers.values().map(|b| b.name.as_str()).collect();
    names.sort_unstable();
    let repeated: Vec<String> =
        names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0].to_string()).collect();
    if repeated.is_empty() {
        return Cow::Borrowed(kernel);
    }
    let mut renamed = kernel.clone();
    for (buffer, data) in renamed.buffers.iter_mut().filter(|(_, data)| repeated.contains(&data.name)) {
        data.name = format!("{}_{buffer}", data.name);
    }
    Cow::Owned(renamed)
}

pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::In => "in",
        Role::Out => "out",
        Role::InOut => "inout",
        Role::Register => "register",
        Role::Stack => "stack",
    }
}

fn block(out: &mut String, kernel: &Kernel, body: &Block, depth: usize) {
    let pad = "  ".repeat(depth);
    for stmt in body {
        let _ = writeln!(out, "{pad}{}", head(kernel, stmt));
        match stmt {
            Stmt::For { body, .. } => {
                block(out, kernel, body, depth + 1);
                let _ = writeln!(out, "{pad}}}");
            }
            Stmt::If { then, otherwise, .. } => {
                block(out, kernel, then, depth + 1);
                if !otherwise.is_empty() {
                    let _ = writeln!(out, "{pad}}} else {{");
                    block(out, kernel, otherwise, depth + 1);
                }
                let _ = writeln!(out, "{pad}}}");
            }
            Stmt::Let(_) | Stmt::Store { .. } | Stmt::Prefetch { .. } => {}
        }
    }
}

/// A kernel's first line, and of each statement the first line, indented as in its text and in its order.
pub fn print_lines(kernel: &Kernel) -> Vec<String> {
    fn visit(lines: &mut Vec<String>, kernel: &Kernel, body: &Block, depth: usize) {
        for stmt in body {
            lines.push(format!("{}{}", "  ".repeat(depth), head(kernel, stmt)));
            match stmt {
                Stmt::For { body, .. } => visit(lines, kernel, body, depth + 1),
                Stmt::If { then, otherwise, .. } => {
                    visit(lines, kernel, then, depth + 1);
                    visit(lines, kernel, otherwise, depth + 1);
                }
                Stmt::Let(_) | Stmt::Store { .. } | Stmt::Prefetch { .. } => {}
            }
        }
    }
    let kernel = &with_distinct_names(kernel);
    let mut lines = vec![signature(kernel)];
    visit(&mut lines, kernel, &kernel.body, 1);
    lines
}

/// The first line of a statement: all of it, if it holds no others.
fn head(kernel: &Kernel, stmt: &Stmt) -> String {
    let mut out = String::new();
    let _ = match stmt {
        Stmt::For { var, extent, kind, .. } => {
            let kind = match kind {
                LoopKind::Serial => "",
                LoopKind::Parallel => "parallel ",
                LoopKind::Vector => "vector ",
                LoopKind::Unroll => "unroll ",
            };
            let _ = write!(out, "{kind}for {var} in 0..{}", index(extent));
            if extent.as_constant() != Some(var.extent as i64) {
                let _ = write!(out, " below {}", var.extent);
            }
            write!(out, " {{")
        }
        Stmt::If { guards: tested, .. } => write!(out, "if {} {{", guards(tested)),
        Stmt::Store { buffer, index: at, val } => {
            write!(out, "{}[{}] = {val}", kernel.buffers[*buffer].name, index(at))
        }
        Stmt::Prefetch { buffer, index: at } => {
            write!(out, "prefetch {}[{}]", kernel.buffers[*buffer].name, index(at))
        }
        Stmt::Let(Let { val, rhs }) => {
            let _ = write!(out, "{val} = ");
            match rhs {
                Rhs::Load { buffer, index: at, guards: tested } => {
                    let _ = write!(out, "load {}[{}]", kernel.buffers[*buffer].name, index(at));
                    match tested.as_slice() {
                        [] => Ok(()),
                        tested => write!(out, " if {}", guards(tested)),
                    }
                }
                Rhs::Const(bits) => {
                    let dtype = kernel.vals[*val];
                    write!(out, "const {dtype} {}", literal(dtype, *bits))
                }
                Rhs::Index(at) => write!(out, "index {}", index(at)),
                Rhs::Inside(tested) => write!(out, "inside {}", guards(tested)),
                Rhs::Apply(f, args) => {
                    let _ = match f {
                        ScalarFn::Cast(to) | ScalarFn::Bitcast(to) => write!(out, "{} {to}", f.name()),
                        _ => write!(out, "{}", f.name()),
                    };
                    args.iter().try_for_each(|arg| write!(out, " {arg}"))
                }
            }
        }
    };
    out
}

fn guards(guards: &[Guard]) -> String {
    let one = |guard: &Guard| format!("{} in 0..{}", index(&guard.index), guard.size);
    match guards {
        [] => "always".to_string(),
        _ => guards.iter().map(one).collect::<Vec<_>>().join(" and "),
    }
}

/// An index, computed values with the number of values they may take.
fn index(at: &Index) -> String {
    index_with(at, &|val, extent| format!("{val}<{extent}"))
}

fn index_with(at: &Index, value: &dyn Fn(Val, usize) -> String) -> String {
    let mut out = String::new();
    for (i, (atom, c)) in at.terms().iter().enumerate() {
        out.push_str(match (i, *c < 0) {
            (0, false) => "",
            (0, true) => "-",
            (_, false) => " + ",
            (_, true) => " - ",
        });
        if c.unsigned_abs() != 1 {
            let _ = write!(out, "{}*", c.unsigned_abs());
        }
        let _ = match atom {
            Atom::Var(var) => write!(out, "{var}"),
            Atom::Div(x, c) => write!(out, "({})/{c}", index_with(x, value)),
            Atom::Mod(x, c) => write!(out, "({})%{c}", index_with(x, value)),
            Atom::Value(val, extent) => write!(out, "{}", value(*val, *extent)),
        };
    }
    let offset = at.offset();
    let _ = match (out.is_empty(), offset) {
        (true, _) => write!(out, "{offset}"),
        (false, 0) => Ok(()),
        (false, c) if c < 0 => write!(out, " - {}", c.unsigned_abs()),
        (false, c) => write!(out, " + {c}"),
    };
    out
}

/// A constant: decimal where that gives the same bits, else hexadecimal.
fn literal(dtype: DType, bits: u64) -> String {
    let bytes = bits.to_le_bytes();
    with_element!(dtype, T => {
        let value: T = bytemuck::pod_read_unaligned(&bytes[..size_of::<T>()]);
        if dtype == DType::Bool {
            return if bits <= 1 { (bits == 1).to_string() } else { format!("{bits:#x}") };
        }
        if !dtype.is_float() {
            return value.to_i128().to_string();
        }
        let wide = Element::to_f64(value);
        // As few digits as give the value back.
        let text = if dtype == DType::F64 { format!("{wide:?}") } else { format!("{:?}", wide as f32) };
        let back = text.parse::<f64>().map(<T as Element>::from_f64);
        let same = back.is_ok_and(|back| bytemuck::bytes_of(&back) == bytemuck::bytes_of(&value));
        if same && wide.is_finite() { text } else { format!("{bits:#x}") }
    })
}

/// A nest as formulas, values used once written in place.
pub fn print_nest(nest: &Nest) -> String {
    let mut uses: SecondaryMap<Val, usize> = SecondaryMap::new();
    for (_, (expr, _)) in nest.exprs.iter() {
        expr.visit_operands(&mut |v| uses[v] += 1);
    }
    nest.roots.iter().for_each(|&root| uses[root] += 1);
    let printer = NestPrinter { nest, uses };
    let list = |items: Vec<String>| items.join(", ");
    let operand = |(i, o): (usize, &crate::loops::Operand)| {
        format!("x{i}: {}[{}]", o.dtype, list(o.shape.iter().map(usize::to_string).collect()))
    };
    let operands = list(nest.operands.iter().enumerate().map(operand).collect());
    let domain = list(nest.domain.iter().map(|v| format!("{v} < {}", v.extent)).collect());
    let over = if domain.is_empty() { String::new() } else { format!(" over {domain}") };
    let mut out = format!("nest({operands}){over} {{\n");
    for val in nest.needed(&nest.roots) {
        if printer.is_named(val) {
            let _ = writeln!(out, "  {val}: {} = {}", nest.dtype(val), printer.formula(val, 0));
        }
    }
    for (i, &root) in nest.roots.iter().enumerate() {
        let _ = writeln!(out, "  y{i}: {} = {}", nest.dtype(root), printer.expr(root, 0));
    }
    out.push_str("}\n");
    out
}

struct NestPrinter<'n> {
    nest: &'n Nest,
    uses: SecondaryMap<Val, usize>,
}

impl NestPrinter<'_> {
    fn is_named(&self, val: Val) -> bool {
        self.uses[val] > 1 && !matches!(self.nest.expr(val), Expr::Const(_))
    }

    /// The name of a value used several times, else its formula.
    fn expr(&self, val: Val, binding: u8) -> String {
        match self.is_named(val) {
            true => val.to_string(),
            false => self.formula(val, binding),
        }
    }

    fn index(&self, at: &Index) -> String {
        index_with(at, &|val, _| self.expr(val, 3))
    }

    fn guards(&self, guards: &[Guard]) -> String {
        let one = |g: &Guard| format!("{} in 0..{}", self.index(&g.index), g.size);
        guards.iter().map(one).collect::<Vec<_>>().join(" and ")
    }

    /// The formula, in parentheses if what surrounds it binds tighter than it does.
    fn formula(&self, val: Val, binding: u8) -> String {
        let (expr, dtype) = &self.nest.exprs[val];
        let (text, own) = match expr {
            Expr::Load { operand, index, guards } => {
                let at: Vec<String> = index.iter().map(|i| self.index(i)).collect();
                let load = format!("x{operand}[{}]", at.join(", "));
                match guards.is_empty() {
                    true => (load, 3),
                    false => (format!("{load} if {}", self.guards(guards)), 0),
                }
            }
            Expr::Const(bits) => (literal(*dtype, *bits), 3),
            Expr::Index(index) => (self.index(index), 1),
            Expr::Inside(guards) => (self.guards(guards), 0),
            Expr::Apply(f, args) => match f {
                ScalarFn::Add => (self.infix(args, "+", 1), 1),
                ScalarFn::Sub => (self.infix(args, "-", 1), 1),
                ScalarFn::Mul => (self.infix(args, "*", 2), 2),
                ScalarFn::Div => (self.infix(args, "/", 2), 2),
                ScalarFn::Cast(to) | ScalarFn::Bitcast(to) => {
                    (format!("{f}<{to}>({})", self.expr(args[0], 0)), 3)
                }
                _ => {
                    let args: Vec<String> = args.iter().map(|&a| self.expr(a, 0)).collect();
                    (format!("{f}({})", args.join(", ")), 3)
                }
            },
            Expr::Reduce { kind, vars, arg, within } => {
                let vars: Vec<String> = vars.iter().map(|v| format!("{v} < {}", v.extent)).collect();
                let within = match within.is_empty() {
                    true => String::new(),
                    false => format!("; {}", self.guards(within)),
                };
                (format!("{}({}{within}) {}", kind.name(), vars.join(", "), self.expr(*arg, 2)), 2)
            }
        };
        if own < binding { format!("({text})") } else { text }
    }

    fn infix(&self, args: &[Val], sign: &str, binding: u8) -> String {
        format!("{} {sign} {}", self.expr(args[0], binding), self.expr(args[1], binding + 1))
    }
}

/// A program: its steps and what they run on, then its kernels; before it the one that prepares its
/// constants.
pub fn print_program(program: &Program) -> String {
    let mut out = String::new();
    if let Some(prepare) = &program.prepare {
        let _ = writeln!(out, "// prepares constants {}..", program.constants.len());
        out.push_str(&print_program(prepare));
        out.push('\n');
    }
    let typed = |items: &[(String, crate::TensorType)]| {
        let one = |(name, ty): &(String, crate::TensorType)| format!("{name}: {ty}");
        items.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let constants: usize = program.constants.iter().map(|t| t.raw_bytes().len()).sum();
    let _ = writeln!(out, "program({}) -> ({}) {{", typed(&program.inputs), typed(&program.outputs));
    let _ = writeln!(out, "  // arena: {} bytes, constants: {constants} bytes", program.arena_bytes);
    let place = |place: &Place| match *place {
        Place::Input(i) => {
            program.inputs.get(i as usize).map_or_else(|| format!("input{i}"), |x| x.0.clone())
        }
        Place::Output(i) => {
            program.outputs.get(i as usize).map_or_else(|| format!("output{i}"), |x| x.0.clone())
        }
        Place::Constant(i) => format!("constant{i}"),
        Place::Arena(offset) => format!("arena+{offset}"),
    };
    let mut repeats = program.repeats.iter().peekable();
    let mut repeat: Option<&Repeat> = None;
    for (i, step) in program.steps.iter().enumerate() {
        if let Some(next) = repeats.next_if(|next| next.first == i) {
            let _ = writeln!(out, "  repeat {} {{", next.times);
            repeat = Some(next);
        }
        let moves = |arg: usize| {
            let moves = repeat.map_or(&[][..], |repeat| &repeat.moves);
            moves.iter().find(|moving| (moving.step, moving.arg) == (i, arg)).map_or(String::new(), moved)
        };
        let args: Vec<String> =
            step.args.iter().enumerate().map(|(arg, at)| format!("{}{}", place(at), moves(arg))).collect();
        let work: &dyn Display = match &step.work {
            Work::Kernel(k) => &program.kernels[*k as usize].name,
            Work::Interpret { op, .. } => &op.name(),
        };
        let called = if matches!(step.work, Work::Interpret { .. }) { "interpret " } else { "" };
        let indent = if repeat.is_some() { "  " } else { "" };
        let _ = write!(out, "{indent}  {i}: {called}{work}({})", args.join(", "));
        if !step.origin.is_empty() || step.flops > 0 {
            let _ = write!(out, "  // {}", step.origin.join(", "));
            if step.flops > 0 {
                let _ = write!(out, " [{} flops]", step.flops);
            }
        }
        out.push('\n');
        if repeat.is_some_and(|repeat| repeat.range().end == i + 1) {
            out.push_str("  }\n");
            repeat = None;
        }
    }
    out.push_str("}\n");
    for kernel in &program.kernels {
        out.push('\n');
        out.push_str(&print_kernel(kernel));
    }
    out
}

/// Where an argument that moves is in a round, in bytes.
fn moved(moving: &Move) -> String {
    let round = match moving.period {
        0 => "round".to_string(),
        period => format!("round % {period}"),
    };
    format!("[{} + {round} * {}]", moving.start, moving.stride)
}
