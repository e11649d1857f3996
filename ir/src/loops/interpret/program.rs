//! Whole programs: the steps in order, each over its part of inputs, outputs, constants and the arena.

use super::{Argument, Order, POISON, Prepared, Region};
use crate::error::Error;
use crate::interpret::eval_op;
use crate::loops::{Place, Program, Work};
use crate::tensor::Tensor;
use crate::types::TensorType;

/// Runs a program on inputs of the types it declares.
pub fn run_program(program: &Program, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    if inputs.len() != program.inputs.len() {
        return Err(Error::InputCount { expected: program.inputs.len(), found: inputs.len() });
    }
    for ((name, expected), tensor) in program.inputs.iter().zip(inputs) {
        if *expected != tensor.ty() {
            let (expected, found) = (expected.clone(), tensor.ty());
            return Err(Error::InputType { name: name.clone(), expected, found });
        }
    }
    let constants = program.all_constants(|prepare| run_program(prepare, &[]))?;
    let mut outputs: Vec<Tensor> =
        program.outputs.iter().map(|(_, ty)| Tensor::zeros(ty.dtype, &ty.shape())).collect();
    for &(input, output) in &program.in_place {
        outputs[output as usize] = inputs[input as usize].clone();
    }
    let mut arena = vec![POISON; program.arena_bytes as usize];
    let (outputs_at, constants_at) = (inputs.len(), inputs.len() + outputs.len());
    let arena_at = constants_at + constants.len();
    let argument = |place: &Place| match *place {
        Place::Input(i) => Argument { region: i as usize, offset: 0 },
        Place::Output(i) => Argument { region: outputs_at + i as usize, offset: 0 },
        Place::Constant(i) => Argument { region: constants_at + i as usize, offset: 0 },
        Place::Arena(offset) => Argument { region: arena_at, offset: offset as usize },
    };
    let mut regions: Vec<Region<'_>> = inputs.iter().map(|t| Region::Read(t.raw_bytes())).collect();
    regions.extend(outputs.iter_mut().map(|t| Region::Write(t.bytes_mut())));
    regions.extend(constants.iter().map(|t| Region::Read(t.raw_bytes())));
    regions.push(Region::Write(&mut arena));

    let prepared: Vec<Prepared> = program.kernels.iter().map(Prepared::new).collect::<Result<_, _>>()?;
    for (number, round) in program.order() {
        let step = &program.steps[number];
        let mut args: Vec<Argument> = step.args.iter().map(argument).collect();
        for (arg, start) in args.iter_mut().zip(program.starts(number, round)) {
            // Where that is outside its memory, running says so.
            arg.offset = arg.offset.checked_add_signed(start as isize).unwrap_or(usize::MAX / 2);
        }
        match &step.work {
            Work::Kernel(k) => prepared[*k as usize].run(&mut regions, &args, Order::Forward)?,
            Work::Interpret { op, ins, outs } => {
                let fail = |message: String| Error::Eval { node: step.origin.join(", "), message };
                let (from, to) = args.split_at(ins.len());
                let operands: Vec<Tensor> = ins
                    .iter()
                    .zip(from)
                    .map(|(ty, arg)| read_tensor(&regions, ty, *arg).map_err(fail))
                    .collect::<Result<_, _>>()?;
                let results = eval_op(op, &operands).map_err(fail)?;
                for ((tensor, ty), arg) in results.iter().zip(outs).zip(to) {
                    if tensor.ty() != *ty {
                        return Err(fail(format!("{op:?} gives {}, expected {ty}", tensor.ty())));
                    }
                    write_tensor(&mut regions, tensor, *arg).map_err(fail)?;
                }
            }
        }
    }
    drop(regions);
    Ok(outputs)
}

fn read_tensor(regions: &[Region<'_>], ty: &TensorType, arg: Argument) -> Result<Tensor, String> {
    let shape = ty.shape();
    let len = shape.iter().product::<usize>() * ty.dtype.size();
    let bytes = regions[arg.region].bytes().get(arg.offset..arg.offset + len);
    let bytes = bytes.ok_or_else(|| format!("{ty} at byte {} is outside its memory", arg.offset))?;
    Ok(Tensor::from_bytes(ty.dtype, &shape, bytes).expect("as many bytes as the type takes"))
}

fn write_tensor(regions: &mut [Region<'_>], tensor: &Tensor, arg: Argument) -> Result<(), String> {
    let Region::Write(bytes) = &mut regions[arg.region] else {
        return Err("a result is written to memory that is only read".to_string());
    };
    let to = bytes.get_mut(arg.offset..arg.offset + tensor.bytes().len());
    to.ok_or_else(|| format!("{} at byte {} is outside its memory", tensor.ty(), arg.offset))?
        .copy_from_slice(tensor.bytes());
    Ok(())
}
