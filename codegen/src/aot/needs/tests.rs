//! Code uses no instruction that its variant does not ask the processor for.

use std::sync::Arc;

use cranelift_object::object::{Object, ObjectSection, ObjectSymbol, SymbolKind, read::File};
use iced_x86::{CpuidFeature, Decoder, DecoderOptions};
use target_lexicon::Triple;
use windlass_ir::loops::{Kernel, KernelBuilder, LoopKind, Place, Program, Role, Step, Work};
use windlass_ir::{DType, ScalarFn, TensorType};

use super::*;
use crate::aot::{ObjectOptions, Variant, object_of_variants};
use crate::compile::{Backend, Memory};
use crate::emit::emit_with_lines;
use crate::isa::{SharedIsa, Target};

const LINUX: &str = "x86_64-unknown-linux-gnu";

fn target(cpu: &str) -> Target {
    Target { cpu: Some(cpu.to_string()), ..Target::parse(LINUX).unwrap() }
}

fn isa(cpu: &str) -> SharedIsa {
    isa::build(&target(cpu), false, true).unwrap()
}

#[test]
fn every_instruction_set_has_its_bit() {
    let triple: Triple = LINUX.parse().unwrap();
    let isa = isa::least(&triple, false).unwrap();
    assert_eq!(Needs::new(&*isa).unwrap(), Needs::default());
    let known: Vec<&str> = isa.isa_flags().iter().map(|flag| flag.name).collect();
    for name in &known {
        assert!(BITS.iter().any(|(known, _, _)| known == name), "{name}");
    }
    assert_eq!(known.len(), BITS.len());
}

#[test]
fn levels_need_what_their_names_say() {
    let needs = |cpu: &str| Needs::new(&*isa(cpu)).unwrap().0;
    // SSE3, SSSE3, FMA, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT, AVX, F16C; BMI1, AVX2, BMI2; LZCNT; ymm.
    let v3 = [0x3098_3201, 0x128, 0, 0, 0x20, 0x06];
    assert_eq!(needs("x86-64-v3"), v3);
    // And AVX-512 F, DQ, BW, VL; zmm.
    let v4 = [v3[0], 0xc003_0128, 0, 0, 0x20, 0xe6];
    assert_eq!(needs("x86-64-v4"), v4);
    // And VNNI.
    assert_eq!(needs("cascadelake"), [v4[0], v4[1], 0x800, 0, 0x20, 0xe6]);
}

/// Where the bit of an instruction set is; none for those that every processor has.
fn bit(feature: CpuidFeature) -> Option<(usize, u32)> {
    let found = match feature {
        CpuidFeature::INTEL8086
        | CpuidFeature::INTEL186
        | CpuidFeature::INTEL286
        | CpuidFeature::INTEL386
        | CpuidFeature::INTEL486
        | CpuidFeature::X64
        | CpuidFeature::CMOV
        | CpuidFeature::SSE
        | CpuidFeature::SSE2
        | CpuidFeature::MULTIBYTENOP => return None,
        CpuidFeature::SSE3 => (BASIC, 0),
        CpuidFeature::SSSE3 => (BASIC, 9),
        CpuidFeature::FMA => (BASIC, 12),
        CpuidFeature::SSE4_1 => (BASIC, 19),
        CpuidFeature::SSE4_2 => (BASIC, 20),
        CpuidFeature::POPCNT => (BASIC, 23),
        CpuidFeature::AVX => (BASIC, 28),
        CpuidFeature::F16C => (BASIC, 29),
        CpuidFeature::BMI1 => (EXTENDED_B, 3),
        CpuidFeature::AVX2 => (EXTENDED_B, 5),
        CpuidFeature::BMI2 => (EXTENDED_B, 8),
        CpuidFeature::AVX512F => (EXTENDED_B, 16),
        CpuidFeature::AVX512DQ => (EXTENDED_B, 17),
        CpuidFeature::AVX512BW => (EXTENDED_B, 30),
        CpuidFeature::AVX512VL => (EXTENDED_B, 31),
        CpuidFeature::AVX512_VNNI => (EXTENDED_C, 11),
        CpuidFeature::LZCNT => (AMD, 5),
        other => panic!("no variant asks for {other:?}"),
    };
    Some(found)
}

/// Fails if code has an instruction that is not asked for. How many it has of AVX and later.
fn check(what: &str, code: &[u8], needs: &Needs) -> usize {
    let mut count = 0;
    for instruction in Decoder::new(64, code, DecoderOptions::NONE).iter() {
        assert!(!instruction.is_invalid(), "{what}");
        for (word, bit) in instruction.cpuid_features().iter().copied().filter_map(bit) {
            assert!(needs.0[word] >> bit & 1 == 1, "{what}: {:?} is not asked for", instruction.code());
            count += 1;
        }
    }
    count
}

/// A kernel for every function of values of one type, and products of integers that are added up.
fn kernels() -> Vec<Kernel> {
    let mut functions: Vec<ScalarFn> = ScalarFn::PLAIN.iter().copied().filter(|f| f.is_primitive()).collect();
    functions.extend(DType::ALL.map(ScalarFn::Cast));
    functions.extend(DType::ALL.map(ScalarFn::Bitcast));
    let mut kernels = Vec::new();
    for (function, dtype) in functions.iter().flat_map(|&function| DType::ALL.map(|dtype| (function, dtype)))
    {
        let types = match function {
            ScalarFn::Select => vec![DType::Bool, dtype, dtype],
            _ => vec![dtype; function.arity()],
        };
        let Ok(result) = function.result_type(&types) else { continue };
        let mut b = KernelBuilder::new(function.name());
        let ins: Vec<_> = types.iter().map(|&ty| b.buffer(&format!("x{ty}"), ty, 70, Role::In)).collect();
        let y = b.buffer("y", result, 70, Role::Out);
        let sum = matches!(function, ScalarFn::Dot2 | ScalarFn::Dot4)
            .then(|| b.buffer("sum", result, 70, Role::In));
        b.repeat(LoopKind::Vector, 70, |b, i| {
            let args: Vec<_> = ins.iter().map(|&x| b.load(x, i.clone())).collect();
            let mut v = b.apply(function, &args);
            if let Some(sum) = sum {
                let before = b.load(sum, i.clone());
                v = b.apply(ScalarFn::Add, &[before, v]);
            }
            b.store(y, i, v);
        });
        kernels.push(b.finish());
    }
    kernels
}

#[test]
fn kernels_use_only_what_their_variant_asks_for() {
    let kernels = kernels();
    assert!(kernels.len() > 450, "{} kernels", kernels.len());
    for cpu in ["x86-64-v3", "x86-64-v4", "cascadelake", "znver3", "znver4"] {
        let isa = isa(cpu);
        let needs = Needs::new(&*isa).unwrap();
        let mut memory = Memory::new(Arc::default());
        let widest = isa::vector_bits(&*isa);
        for bits in [128, 256, 512].into_iter().filter(|&bits| bits <= widest) {
            let backend = Backend::new(&*isa, Some(bits));
            let mut count = 0;
            for kernel in &kernels {
                let ssa = emit_with_lines(kernel, backend.machine(&*isa)).unwrap();
                let code = backend.compile(&ssa, &isa, &kernel.name, &mut memory).unwrap();
                let what = format!("{} for {cpu}, {bits} bits", kernel.name);
                count += check(&what, &code.bytes[..code.end], &needs);
            }
            assert!(count > 1000, "{cpu}, {bits} bits: {count}");
        }
    }
}

#[test]
fn what_chooses_a_variant_runs_everywhere() {
    let mut b = KernelBuilder::new("copy");
    let (x, y) = (b.buffer("x", DType::F32, 70, Role::In), b.buffer("y", DType::F32, 70, Role::Out));
    b.repeat(LoopKind::Parallel, 70, |b, i| {
        let v = b.load(x, i.clone());
        b.store(y, i, v);
    });
    let ty = TensorType::fixed(DType::F32, &[70]);
    let program = Program {
        kernels: vec![b.finish()],
        steps: vec![Step {
            work: Work::Kernel(0),
            args: vec![Place::Input(0), Place::Output(0)],
            origin: vec![],
            flops: 1 << 30,
        }],
        inputs: vec![("x".to_string(), ty.clone())],
        outputs: vec![("y".to_string(), ty)],
        ..Program::default()
    };
    let targets = ["x86-64-v3", "x86-64-v4"].map(target);
    let variants = targets.each_ref().map(|target| Variant { program: &program, target });
    let options = ObjectOptions { parallel: true, ..ObjectOptions::default() };
    let made = object_of_variants(&variants, &options).unwrap();
    let file = File::parse(&made.object[..]).unwrap();
    let text = file.section_by_name(".text").unwrap().data().unwrap();
    let mut checked = Vec::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let name = symbol.name().unwrap();
        // Kernels are called once their variant is chosen. These are what asks; nothing has to be asked for them.
        if !name.contains("_k0_") && !name.ends_with("_cpuid") && !name.ends_with("_xgetbv") {
            let code = &text[symbol.address() as usize..][..symbol.size() as usize];
            // Behind the last return stand constants.
            let end = code.iter().rposition(|&byte| byte == 0xc3).unwrap() + 1;
            check(name, &code[..end], &Needs::default());
            checked.push(name.to_string());
        }
    }
    assert_eq!(checked.len(), 2 * 4 + 5, "{checked:?}");
}
