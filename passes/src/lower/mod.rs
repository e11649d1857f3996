//! From a graph to a program.
//!
//! Every node becomes a unit over buffers ([`units`]), formulas are merged into their users
//! ([`mod@fuse`]), factors of integer products are stored in few bits (`narrow`) and multiplied several to a word
//! ([`mod@pairs`]), sums are told at which steps they would only add zeros (`borders`), right operands of contractions are
//! packed ([`pack`]) or kept in few bits (`compact`), what depends on constants alone is set apart ([`mod@prepare`]),
//! neighbours that are put together in words are read as such (`words`), what kernels store is what is made of it element by
//! element (`stores`), and results that are padded are written with their margins ([`margins`]). Formulas that hand windows of
//! rows (`window`) or whole rows (`chain`) to each other become one kernel, and so do kernels with a formula between them
//! (`bands`); large operands that every run makes are made and read in pieces (`pieces`). Parts that are alike are joined once
//! (`parts`). Other formulas become loops ([`mod@schedule`]), kernels that run in rounds become a repeat, and buffers get their
//! places in memory ([`mod@place`]), outputs those of inputs that they replace (`in_place`). The bodies of scans go the same way
//! (`bodies`), and run in rounds.

mod bands;
mod bodies;
mod borders;
mod chain;
mod compact;
pub mod formula;
pub mod fuse;
mod in_place;
pub mod margins;
mod narrow;
pub mod pack;
pub mod pairs;
mod parallel;
mod parts;
mod pieces;
pub mod place;
pub mod prepare;
pub mod schedule;
mod sliced;
mod stores;
pub mod units;
mod window;
mod words;

use std::sync::Arc;

use cranelift_entity::SecondaryMap;
use rustc_hash::FxHashMap;
use windlass_ir::loops::{Kernel, Nest, NestBuilder, Place, Program, Rounds, Step, Work};
use windlass_ir::{Error, Graph, Op, Tensor};

use crate::lower::formula::{as_identity, reads_own_places};
use crate::lower::margins::Margins;
use crate::lower::place::{Lifetime, check, place};
use crate::lower::prepare::known_bufs;
use crate::lower::schedule::{Machine, normalize, schedule, top_reductions};
use crate::lower::units::{Buf, BufData, Unit, UnitWork, Units};
use crate::lower::words::as_words;

/// What to do between graph and program. No choice here changes what a graph means, only its speed
/// and, within the bounds of the number rules, its rounding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowerOptions {
    /// Whether units are merged.
    pub fuse: bool,
    /// What schedules may assume.
    pub machine: Machine,
    /// Inputs in whose memory outputs of the same type stand, by their names. Those that a graph has not count for
    /// nothing: it may be a part of another.
    pub in_place: Vec<(String, String)>,
}

impl Default for LowerOptions {
    fn default() -> LowerOptions {
        LowerOptions { fuse: true, machine: Machine::default(), in_place: Vec::new() }
    }
}

/// Lowers a graph, as it is, to a program. Every dimension must be fixed.
pub fn lower(graph: &Graph, options: &LowerOptions) -> Result<Program, Error> {
    lower_observed(graph, options, &mut |_| {})
}

/// Like [`lower`], telling `observe` which units were merged and why others were not.
pub fn lower_observed(
    graph: &Graph,
    options: &LowerOptions,
    observe: &mut dyn FnMut(fuse::Decision<'_>),
) -> Result<Program, Error> {
    lower_units(graph, options, observe, &mut |_| options.machine)
}

/// Like [`lower`], asking `choose` what the schedule of each formula of a run may assume of the machine. Answers may
/// differ from the options' machine in what [`schedule::knobs`] has.
pub fn lower_choosing(
    graph: &Graph,
    options: &LowerOptions,
    choose: &mut dyn FnMut(&Nest) -> Machine,
) -> Result<Program, Error> {
    lower_units(graph, options, &mut |_| {}, choose)
}

fn lower_units(
    graph: &Graph,
    options: &LowerOptions,
    observe: &mut dyn FnMut(fuse::Decision<'_>),
    choose: &mut dyn FnMut(&Nest) -> Machine,
) -> Result<Program, Error> {
    let made = lower_as(graph, options, observe, choose, false);
    match made {
        // Loops that the check does not see through make their outputs elsewhere.
        Err(Error::Verify { invariant: "P1", .. }) if !options.in_place.is_empty() => {
            lower_as(graph, options, &mut |_| {}, choose, true)
        }
        made => made,
    }
}

/// Lowers a graph; with `late` what stands in the memory of an input is copied there at the end.
fn lower_as(
    graph: &Graph,
    options: &LowerOptions,
    observe: &mut dyn FnMut(fuse::Decision<'_>),
    choose: &mut dyn FnMut(&Nest) -> Machine,
    late: bool,
) -> Result<Program, Error> {
    let mut units = Units::lower(graph, &options.machine)?;
    units.keep_in_place(&options.in_place)?;
    bodies::shape(&mut units, options, observe);
    merge(&mut units, options, observe);
    borders::mark(&mut units);
    pack::pack(&mut units, &options.machine);
    let known = known_bufs(&units);
    give_outputs_buffers(&mut units, &known, &options.machine);
    let prepare = prepare::split(&mut units).and_then(|mut prepare| {
        if options.fuse {
            // Packing has added readers of what scales and transposes weights.
            fuse::fuse(&mut prepare, observe);
        }
        prepare::give_back(&mut prepare, &mut units);
        if options.fuse {
            words::see(&mut prepare, &options.machine);
        }
        give_outputs_buffers(&mut prepare, &SecondaryMap::new(), &options.machine);
        (!prepare.outputs.is_empty()).then_some(prepare)
    });
    let are_many = prepare.as_ref().is_some_and(|prepare| prepare.units.len() >= parallel::ITEMS_A_THREAD);
    let machine = &options.machine;
    let (prepare, mut program) = parallel::join(
        are_many,
        || prepare.map(|prepare| plan(prepare, machine, &mut |_| *machine)),
        || {
            join(&mut units, options);
            in_place::settle(&mut units, machine, late);
            plan(units, machine, choose)
        },
    );
    program.prepare = prepare.map(Box::new);
    program.prepare.iter().try_for_each(|prepare| check(prepare))?;
    check(&program)?;
    Ok(program)
}

/// Merges formulas, and stores factors of products in few bits.
fn merge(units: &mut Units, options: &LowerOptions, observe: &mut dyn FnMut(fuse::Decision<'_>)) {
    if options.fuse {
        fuse::fuse(units, observe);
        let known = known_bufs(units);
        narrow::narrow(units, &known, &options.machine);
        pairs::pair(units, &known, &options.machine);
    }
}

/// Lets formulas hand results to each other within a kernel.
fn join(units: &mut Units, options: &LowerOptions) {
    if options.fuse {
        words::see(units, &options.machine);
        stores::merge(units);
        margins::absorb(units);
        window::join(units, &options.machine);
        chain::chain(units, &options.machine);
        bands::join(units, &options.machine);
        pieces::cut(units, &options.machine);
    }
}

/// Adds a copy for every output whose buffer is an input, known before the run, or another output too. An output in the
/// memory of the input that it is needs none.
fn give_outputs_buffers(units: &mut Units, known: &SecondaryMap<Buf, bool>, machine: &Machine) {
    let aliases = aliases(units, machine);
    let mut written: SecondaryMap<Buf, bool> = SecondaryMap::new();
    units.units.iter().flat_map(|u| &u.outs).for_each(|&b| written[b] = true);
    let mut taken: SecondaryMap<Buf, bool> = SecondaryMap::new();
    for i in 0..units.outputs.len() {
        let buf = units.outputs[i].1;
        let root = aliases[buf].unwrap_or(buf);
        let is_own = |&(input, output): &(usize, usize)| output == i && units.inputs[input].1 == root;
        if written[root] && aliases[root].is_none() && !taken[root] && !known[root]
            || units.in_place.iter().any(is_own)
        {
            taken[root] = true;
            continue;
        }
        let copy = copy_of(units, i);
        units.outputs[i].1 = copy;
        taken[copy] = true;
    }
}

/// A copy of an output, made after everything else.
fn copy_of(units: &mut Units, output: usize) -> Buf {
    let (name, buf) = &units.outputs[output];
    let (origin, buf) = (vec![format!("output `{name}`").into()], *buf);
    let data = units.bufs[buf].clone();
    let mut n = NestBuilder::new(&data.shape);
    let operand = n.operand(data.dtype, &data.shape);
    let element = n.load(operand, &n.domain());
    let copy = units.bufs.push(BufData { constant: None, ..data });
    let work = UnitWork::Copy(Box::new(n.finish(&[element])));
    units.units.push(Unit { work, ins: vec![buf], outs: vec![copy], origin, flops: 0 });
    copy
}

/// For each buffer that has the bytes of another, that one: of an identity nest, or of words seen in pairs.
fn aliases(units: &Units, machine: &Machine) -> SecondaryMap<Buf, Option<Buf>> {
    let mut aliases: SecondaryMap<Buf, Option<Buf>> = SecondaryMap::new();
    for unit in &units.units {
        if let UnitWork::Nest(nest) = &unit.work
            && let Some(operand) =
                as_identity(nest).or_else(|| as_words(nest).filter(|_| machine.little_endian))
        {
            let from = unit.ins[operand as usize];
            aliases[unit.outs[0]] = Some(aliases[from].unwrap_or(from));
        }
    }
    aliases
}

/// Schedules every unit and gives every buffer a place.
fn plan(mut units: Units, machine: &Machine, choose: &mut dyn FnMut(&Nest) -> Machine) -> Program {
    bodies::plan(&mut units, machine, choose);
    let aliases = aliases(&units, machine);
    let root = |buf: Buf| aliases[buf].unwrap_or(buf);
    let mut program = Program::default();
    let ports = |list: &[(String, Buf)]| list.iter().map(|(n, b)| (n.clone(), units.bufs[*b].ty())).collect();
    program.inputs = ports(&units.inputs);
    program.outputs = ports(&units.outputs);
    program.in_place = units.in_place.iter().map(|&(input, output)| (input as u32, output as u32)).collect();

    let mut places: SecondaryMap<Buf, Option<Place>> = SecondaryMap::new();
    for (i, (_, buf)) in units.inputs.iter().enumerate() {
        places[*buf] = Some(Place::Input(i as u32));
    }
    for (i, (_, buf)) in units.outputs.iter().enumerate() {
        places[root(*buf)] = Some(Place::Output(i as u32));
    }
    let work: Vec<Unit> = units.units.into_iter().filter(|u| aliases[u.outs[0]].is_none()).collect();

    let mut constants: Vec<Tensor> = Vec::new();
    let mut lifetimes: Vec<Lifetime> = Vec::new();
    // The lifetime of the first of each unit's own buffers.
    let mut scratch: Vec<usize> = Vec::new();
    let mut life_of: SecondaryMap<Buf, Option<usize>> = SecondaryMap::new();
    let mut last_reader: SecondaryMap<Buf, usize> = SecondaryMap::new();
    for (number, unit) in work.iter().enumerate() {
        unit.ins.iter().for_each(|&buf| last_reader[root(buf)] = number);
    }
    for (number, unit) in work.iter().enumerate() {
        for &buf in &unit.ins {
            let buf = root(buf);
            if let Some(life) = life_of[buf] {
                lifetimes[life].last = number;
            } else if places[buf].is_none()
                && let Some(tensor) = &units.bufs[buf].constant
            {
                places[buf] = Some(Place::Constant(constants.len() as u32));
                constants.push(tensor.clone());
            }
        }
        for &buf in &unit.outs {
            if places[buf].is_none() {
                // In place of an operand that nothing reads afterwards.
                let replaced = overwritable(unit)
                    .map(|operand| root(unit.ins[operand]))
                    .filter(|&from| unit.ins.iter().filter(|&&b| root(b) == from).count() == 1)
                    .filter(|&from| last_reader[from] == number && units.bufs[from].is_like(&units.bufs[buf]))
                    .and_then(|from| life_of[from]);
                if let Some(life) = replaced {
                    life_of[buf] = Some(life);
                    continue;
                }
                life_of[buf] = Some(lifetimes.len());
                let bytes = (units.bufs[buf].elements() * units.bufs[buf].dtype.size()) as u64;
                lifetimes.push(Lifetime { bytes, first: number, last: number });
            }
        }
        // All rounds of a unit are one point of time to those around it.
        scratch.push(lifetimes.len());
        if let UnitWork::Rounds(rounds) = &unit.work {
            let own = rounds.scratch.iter().map(|(dtype, len)| (dtype.size() * len) as u64);
            lifetimes.extend(own.map(|bytes| Lifetime { bytes, first: number, last: number }));
        }
    }
    for (i, &buf) in units.prepared.iter().enumerate() {
        places[buf] = Some(Place::Constant((constants.len() + i) as u32));
    }
    let (offsets, arena_bytes) = place(&lifetimes);
    program.arena_bytes = arena_bytes;
    program.constants = constants;

    let (kernels, runs) = kernels(&work, choose);
    program.kernels = kernels;
    for ((unit, run), scratch) in work.iter().zip(runs).zip(scratch) {
        let args = unit.ins.iter().chain(&unit.outs).map(|&buf| {
            let buf = root(buf);
            match (places[buf], life_of[buf]) {
                (Some(place), _) => place,
                (None, Some(life)) => Place::Arena(offsets[life]),
                (None, None) => unreachable!("a buffer is read that nothing writes"),
            }
        });
        let mut args: Vec<Place> = args.collect();
        let types = |bufs: &[Buf]| bufs.iter().map(|&b| units.bufs[b].ty()).collect::<Vec<_>>();
        let work = match run {
            Run::Kernel(kernel) => Work::Kernel(kernel),
            Run::Interpret(op) => {
                Work::Interpret { op: Box::new(op.clone()), ins: types(&unit.ins), outs: types(&unit.outs) }
            }
            Run::Rounds(rounds, kernels) => {
                let own = &offsets[scratch..scratch + rounds.scratch.len()];
                args.extend(own.iter().map(|&offset| Place::Arena(offset)));
                rounds.add_to(&mut program, &kernels, &args, &unit.origin);
                continue;
            }
        };
        program.steps.push(Step { work, args, origin: unit.origin.clone(), flops: unit.flops });
    }
    program
}

/// What a unit runs.
enum Run<'u> {
    Kernel(u32),
    Rounds(&'u Rounds, Vec<u32>),
    Interpret(&'u Op),
}

/// What a kernel is made from.
enum Source<'u> {
    Formula(&'u Nest, Option<&'u Margins>, Machine),
    Written(&'u Kernel),
}

/// The kernels of units, and what each unit runs. Formulas of one normal form have one kernel.
fn kernels<'u>(work: &'u [Unit], choose: &mut dyn FnMut(&Nest) -> Machine) -> (Vec<Kernel>, Vec<Run<'u>>) {
    let formula = |unit: &'u Unit| match &unit.work {
        UnitWork::Nest(nest) | UnitWork::Copy(nest) | UnitWork::Padded(nest, _) => Some(&**nest),
        UnitWork::Kernel(_) | UnitWork::Rounds(_) | UnitWork::Body(_) | UnitWork::Interpret(_) => None,
    };
    let (normal, numbers) = parallel::map_distinct(work.iter().map(formula), normalize);
    let normal = numbers.into_iter().map(|number| number.map(|number| &normal[number]));
    let mut known: FxHashMap<(&Nest, Option<&Margins>), u32> = FxHashMap::default();
    let mut sources: Vec<(String, Source<'_>)> = Vec::new();
    let mut runs = Vec::with_capacity(work.len());
    for (unit, nest) in work.iter().zip(normal) {
        let mut add_from = |origin: &[Arc<str>], source| {
            let number = sources.len();
            sources.push((kernel_name(number, origin), source));
            number as u32
        };
        let mut add = |source| add_from(&unit.origin, source);
        runs.push(match (&unit.work, nest) {
            (work, Some(nest)) => {
                let margins = if let UnitWork::Padded(_, margins) = work { Some(margins) } else { None };
                let make = || add(Source::Formula(nest, margins, choose(nest)));
                Run::Kernel(*known.entry((nest, margins)).or_insert_with(make))
            }
            (UnitWork::Kernel(kernel), None) => Run::Kernel(add(Source::Written(kernel))),
            (UnitWork::Rounds(rounds), None) => {
                let own = |kernel: usize| match rounds.origin(kernel) {
                    [] => &unit.origin,
                    origin => origin,
                };
                let kernels = rounds.kernels.iter().enumerate();
                let added = kernels.map(|(i, kernel)| add_from(own(i), Source::Written(kernel)));
                Run::Rounds(rounds, added.collect())
            }
            (UnitWork::Interpret(op), None) => Run::Interpret(op),
            (UnitWork::Nest(_) | UnitWork::Copy(_) | UnitWork::Padded(..) | UnitWork::Body(_), None) => {
                unreachable!("every formula has a normal form, and bodies are planned before")
            }
        });
    }
    let kernels = parallel::map(&sources, |(name, source)| match source {
        Source::Formula(nest, margins, machine) => schedule(nest, *margins, name, machine),
        Source::Written(kernel) => Kernel { name: name.clone(), ..Kernel::clone(kernel) },
    });
    (kernels, runs)
}

/// An operand of as many elements that each element of the only result reads at its own place alone.
fn overwritable(unit: &Unit) -> Option<usize> {
    let UnitWork::Nest(nest) = &unit.work else { return None };
    if unit.outs.len() != 1 || !top_reductions(nest).is_empty() {
        return None;
    }
    let len: usize = nest.shape().iter().product();
    (0..nest.operands.len()).find(|&position| {
        nest.operands[position].shape.iter().product::<usize>() == len
            && reads_own_places(nest, |operand| operand as usize == position)
    })
}

/// An identifier: the kernel's number and the ops it came from.
fn kernel_name(number: usize, origin: &[Arc<str>]) -> String {
    let mut name = format!("k{number}");
    for part in origin.iter().take(4) {
        // Of a node in a body, its own name.
        let own = part.rsplit(": ").next().unwrap_or_default();
        let op = own.split(' ').next().unwrap_or_default();
        name.push('_');
        name.extend(op.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
    }
    name
}

#[cfg(test)]
mod tests {
    use windlass_ir::loops::interpret::run_program;
    use windlass_ir::{Builder, DType, ScalarFn, TensorType, interpret};

    use super::*;

    /// The states `w`, from which a product is subtracted, and `v`, which stays.
    #[test]
    fn states_can_be_copied_at_the_end() {
        let mut b = Builder::new("states");
        let ty = TensorType::fixed(DType::F32, &[3, 3]);
        let [w, v] = ["w", "v"].map(|name| b.input(name, ty.clone()));
        let product = b.push1(windlass_ir::ops::MatMul::default(), &[v, v]).unwrap();
        let next = b.map(ScalarFn::Sub, &[w, product]).unwrap();
        b.output("next.w", next);
        b.output("next.v", v);
        let graph = b.finish().unwrap();
        let in_place = ["w", "v"].map(|name| (name.to_string(), format!("next.{name}"))).to_vec();
        let options = LowerOptions { in_place, ..LowerOptions::default() };
        let inputs = [1.5f32, -0.25].map(|step| Tensor::from_fn::<f32>(&[3, 3], |i| i as f32 * step - 2.0));
        let expected = interpret(&graph, &inputs).unwrap();
        for late in [false, true] {
            let program = lower_as(&graph, &options, &mut |_| {}, &mut |_| options.machine, late).unwrap();
            assert_eq!(program.in_place, [(0, 0), (1, 1)]);
            assert_eq!(run_program(&program, &inputs).unwrap(), expected);
            // What writes `next.w` copies it, or has read `w` and the product.
            let writer = program.steps.iter().find(|step| step.args.contains(&Place::Output(0))).unwrap();
            assert_eq!(writer.args.contains(&Place::Input(0)), !late);
        }
    }
}
