//! Frames in object files: every function says at every instruction where its caller's frame is, and exceptions of
//! C++ pass through compiled models.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use common::program;
use cranelift_codegen::gimli::{
    self, BaseAddresses, CfaRule, EhFrame, EndianSlice, FrameDescriptionEntry, Register, RegisterRule,
    RunTimeEndian, UnwindContext, UnwindSection, X86_64,
};
use cranelift_object::object::{
    self, Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind, elf, read::File,
};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind};
use windlass_codegen::{ObjectOptions, Options, Target, Variant, object, object_of_variants, shared_library};
use windlass_ir::loops::{Program, parse_kernel};

/// A kernel with more on its stack than a page, whose iterations may be run by other threads.
const KERNEL: &str = "
    kernel large(x: f32[512] in, y: f32[512] out) {
      local t: f32[2048] stack
      parallel for i0 in 0..8 {
        vector for i1 in 0..64 {
          v0 = load x[64*i0 + i1]
          v1 = tanh v0
          t[32*i1] = v1
        }
        for i2 in 0..4 {
          vector for i3 in 0..16 {
            v2 = load t[512*i2 + 32*i3]
            v3 = load x[64*i0 + 16*i2 + i3] if i0 - 2 in 0..5
            v4 = add v2 v3
            y[64*i0 + 16*i2 + i3] = v4
          }
        }
      }
    }";

fn model() -> Program {
    program(parse_kernel(KERNEL).unwrap())
}

/// A function's place in the text, and its bytes.
struct Function {
    start: u64,
    bytes: Vec<u8>,
}

/// Where the text is as if it were loaded, the frames being at 0.
const TEXT: u64 = 0x10_0000;

type Reader<'a> = EndianSlice<'a, RunTimeEndian>;

/// An object file's functions, and its frames as if it were loaded.
struct Loaded {
    functions: BTreeMap<String, Function>,
    frames: Vec<u8>,
    endian: RunTimeEndian,
}

impl Loaded {
    fn new(bytes: &[u8]) -> Loaded {
        let file = File::parse(bytes).unwrap();
        let endian = if file.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
        let text = file.section_by_name(".text").unwrap().data().unwrap();
        let functions = file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text).map(|symbol| {
            let (at, size) = (symbol.address(), symbol.size());
            let bytes = text[at as usize..(at + size) as usize].to_vec();
            (symbol.name().unwrap().to_string(), Function { start: TEXT + at, bytes })
        });
        let functions = functions.collect();
        let section = file.section_by_name(".eh_frame").expect("there are frames");
        assert!(matches!(
            section.flags(),
            object::SectionFlags::Elf { sh_flags, .. } if sh_flags == u64::from(elf::SHF_ALLOC)
        ));
        let mut frames = section.data().unwrap().to_vec();
        for (at, relocation) in section.relocations() {
            let distance = matches!(
                relocation.flags(),
                object::RelocationFlags::Elf {
                    r_type: elf::R_X86_64_PC32
                        | elf::R_AARCH64_PREL32
                        | elf::R_RISCV_32_PCREL
                        | elf::R_390_PC32
                }
            );
            assert!(distance, "{relocation:?}");
            let RelocationTarget::Symbol(symbol) = relocation.target() else { panic!("{relocation:?}") };
            let symbol = file.symbol_by_index(symbol).unwrap();
            let distance = (TEXT + symbol.address()) as i64 + relocation.addend() - at as i64;
            let distance = match endian {
                RunTimeEndian::Little => (distance as i32).to_le_bytes(),
                RunTimeEndian::Big => (distance as i32).to_be_bytes(),
            };
            frames[at as usize..][..4].copy_from_slice(&distance);
        }
        Loaded { functions, frames, endian }
    }

    fn section(&self) -> EhFrame<Reader<'_>> {
        let mut section = EhFrame::new(&self.frames, self.endian);
        section.set_address_size(8);
        section
    }

    /// How many functions have a frame, of which each is that of a function.
    fn entries(&self) -> usize {
        let (section, bases) = (self.section(), bases());
        let mut entries = section.entries(&bases);
        let mut count = 0;
        while let Some(entry) = entries.next().unwrap() {
            if let gimli::CieOrFde::Fde(entry) = entry {
                let entry = entry.parse(EhFrame::cie_from_offset).unwrap();
                let found =
                    self.functions.values().find(|function| function.start == entry.initial_address());
                assert_eq!(found.map(|function| function.bytes.len() as u64), Some(entry.len()));
                count += 1;
            }
        }
        count
    }

    fn frame(&self, function: &Function) -> FrameDescriptionEntry<Reader<'_>> {
        let section = self.section();
        section.fde_for_address(&bases(), function.start, EhFrame::cie_from_offset).unwrap()
    }

    /// The caller's frame as a register and what is added to it, and where registers are saved from there, at an
    /// instruction.
    fn at(&self, function: &Function, offset: u64) -> (Register, i64, BTreeMap<u16, RegisterRule<usize>>) {
        let (section, frame, mut context) = (self.section(), self.frame(function), UnwindContext::new());
        let row = frame.unwind_info_for_address(&section, &bases(), &mut context, function.start + offset);
        let row = row.unwrap();
        let CfaRule::RegisterAndOffset { register, offset } = *row.cfa() else { panic!("{:?}", row.cfa()) };
        (register, offset, row.registers().map(|(register, rule)| (register.0, rule.clone())).collect())
    }
}

fn bases() -> BaseAddresses {
    BaseAddresses::default().set_eh_frame(0).set_text(TEXT)
}

fn options(bits: usize) -> ObjectOptions {
    let compile = Options { vector_bits: Some(bits), ..Options::default() };
    ObjectOptions { name: "m".to_string(), parallel: true, compile, ..ObjectOptions::default() }
}

fn level(cpu: &str) -> Target {
    Target { cpu: Some(cpu.to_string()), ..Target::parse("x86_64-unknown-linux-gnu").unwrap() }
}

#[test]
fn every_function_has_a_frame() {
    for triple in Target::TRIPLES.iter().filter(|triple| triple.contains("linux")) {
        let target = Target::parse(triple).unwrap();
        for &bits in &target.vector_widths().unwrap() {
            let loaded = Loaded::new(&object(&model(), &target, &options(bits)).unwrap().object);
            assert_eq!(loaded.functions.len(), 5, "a kernel, and two entries of one part: {triple}");
            assert_eq!(loaded.entries(), 5, "{triple}");
            // Where a function begins, the caller's frame is at the stack pointer but for the return address.
            let (stack, above) = match triple.split('-').next() {
                Some("x86_64") => (X86_64::RSP, 8),
                Some("aarch64") => (gimli::AArch64::SP, 0),
                Some("riscv64gc") => (gimli::RiscV::SP, 0),
                _ => (Register(15), 160),
            };
            for (name, function) in &loaded.functions {
                let (register, offset, _) = loaded.at(function, 0);
                assert_eq!((register, offset), (stack, above), "{triple} {name}");
                // Behind its prologue, at its last instruction, it is at the frame pointer where there is one.
                let (register, offset, saved) = loaded.at(function, function.bytes.len() as u64 - 1);
                let frame = match triple.split('-').next() {
                    Some("x86_64") => (X86_64::RBP, 16),
                    Some("aarch64") => (gimli::AArch64::X29, 16),
                    Some("riscv64gc") => (gimli::RiscV::X8, 16),
                    _ => (register, offset),
                };
                let calls = name.contains("run");
                if calls && bits == 128 {
                    assert_eq!((register, offset), frame, "{triple} {name}");
                    assert!(saved.len() > 1, "{triple} {name}: {saved:?}");
                }
            }
        }
    }
    let targets = ["x86-64-v3", "x86-64-v4"].map(level);
    let program = model();
    let variants = targets.each_ref().map(|target| Variant { program: &program, target });
    let loaded = Loaded::new(&object_of_variants(&variants, &options(512)).unwrap().object);
    // Of each variant as above; and cpuid, xgetbv, decide, choose; run, run_parallel, variant.
    assert_eq!((loaded.functions.len(), loaded.entries()), (2 * 5 + 4 + 3, 2 * 5 + 4 + 3));
}

#[test]
fn other_formats_have_no_frames() {
    for triple in ["aarch64-apple-darwin", "x86_64-pc-windows-msvc"] {
        let bytes = object(&model(), &Target::parse(triple).unwrap(), &options(128)).unwrap().object;
        let file = File::parse(&bytes[..]).unwrap();
        assert!(file.sections().all(|section| !section.name().unwrap().contains("eh_frame")), "{triple}");
    }
}

/// Where the caller's frame is, followed instruction by instruction, counted from the registers.
#[derive(Clone, Debug, Default)]
struct Stack {
    /// The caller's frame less the stack pointer, unless that was rounded.
    rsp: Option<i64>,
    /// The caller's frame less the frame pointer, where it points to this frame.
    rbp: Option<i64>,
    /// Where registers of the caller are, less the caller's frame.
    saved: BTreeMap<u16, i64>,
}

/// The numbers that debuggers have for the general registers.
const NUMBERS: [u16; 16] = [0, 2, 1, 3, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];
const RSP: usize = 4;
const RBP: usize = 5;

fn general(instruction: &Instruction, operand: u32) -> Option<usize> {
    let register = instruction.op_register(operand);
    let is = instruction.op_kind(operand) == OpKind::Register && register >= iced_x86::Register::RAX;
    (is && register <= iced_x86::Register::R15).then(|| register as usize - iced_x86::Register::RAX as usize)
}

impl Stack {
    fn step(&mut self, instruction: &Instruction) {
        let (to, from) = (general(instruction, 0), general(instruction, 1));
        match (instruction.code(), to) {
            (Code::Push_r64, Some(register)) => {
                let below = self.rsp.unwrap() + 8;
                self.rsp = Some(below);
                if [3, RBP, 12, 13, 14, 15].contains(&register) {
                    self.saved.insert(NUMBERS[register], -below);
                }
            }
            (Code::Pop_r64, Some(register)) => {
                self.rsp = Some(self.rsp.unwrap() - 8);
                self.saved.remove(&NUMBERS[register]);
                if register == RBP {
                    self.rbp = None;
                }
            }
            (Code::Mov_r64_rm64, Some(RBP)) if from == Some(RSP) => self.rbp = self.rsp,
            (Code::Sub_rm64_imm32 | Code::Sub_rm64_imm8, Some(RSP)) => {
                self.rsp = self.rsp.map(|rsp| rsp + instruction.immediate(1) as i64);
            }
            (Code::And_rm64_imm32 | Code::And_rm64_imm8, Some(RSP)) => self.rsp = None,
            (Code::Lea_r64_m, Some(RSP)) => {
                assert_eq!(instruction.memory_base(), iced_x86::Register::RBP);
                self.rsp = Some(self.rbp.unwrap() - instruction.memory_displacement64() as i64);
            }
            (_, Some(RSP | RBP)) => assert!(
                instruction.code() == Code::Retnq || instruction.op_count() == 0,
                "{instruction} changes the frame in a way that this test does not know"
            ),
            _ => {}
        }
    }
}

#[test]
fn frames_of_the_own_encoder_hold_at_every_instruction() {
    let copy = "kernel copy(x: f32[64] in, y: f32[64] out) {
        vector for i0 in 0..64 { v0 = load x[i0] y[i0] = v0 } }";
    let mut framed = 0;
    for (kernel, cpu, bits) in
        [(KERNEL, "x86-64-v3", 256), (KERNEL, "x86-64-v4", 512), (copy, "x86-64-v3", 256)]
    {
        let made = object(&program(parse_kernel(kernel).unwrap()), &level(cpu), &options(bits)).unwrap();
        let loaded = Loaded::new(&made.object);
        let (name, function) =
            loaded.functions.iter().find(|(name, _)| name.starts_with("m_k")).expect("there is a kernel");
        let mut stack = Stack { rsp: Some(8), ..Stack::default() };
        let mut body = stack.clone();
        let mut returns = 0;
        let mut decoder = Decoder::with_ip(64, &function.bytes, 0, DecoderOptions::NONE);
        for instruction in decoder.iter() {
            // Behind the code stand its constants.
            if instruction.is_invalid() || instruction.code() == Code::Int3 {
                break;
            }
            let (register, offset, rules) = loaded.at(function, instruction.ip());
            let expected = match register {
                X86_64::RSP => stack.rsp,
                X86_64::RBP => stack.rbp,
                _ => None,
            };
            assert_eq!(Some(offset), expected, "{name} at {:#x}: {instruction}", instruction.ip());
            let mut saved: BTreeMap<u16, i64> = BTreeMap::new();
            for (register, rule) in rules {
                let RegisterRule::Offset(offset) = rule else { panic!("{register} is {rule:?}") };
                saved.insert(register, offset);
            }
            assert_eq!(saved.remove(&X86_64::RA.0), Some(-8));
            assert_eq!(saved, stack.saved, "{name} at {:#x}: {instruction}", instruction.ip());
            match instruction.code() {
                Code::VEX_Vzeroupper => body = stack.clone(),
                Code::Retnq => {
                    assert_eq!(stack.rsp, Some(8), "{name}");
                    returns += 1;
                    stack = body.clone();
                    continue;
                }
                _ => {}
            }
            stack.step(&instruction);
            framed += usize::from(stack.rbp.is_some() && stack.rsp.is_none());
        }
        assert!(returns > 0, "{name}");
    }
    assert!(framed > 100, "only {framed} instructions have a frame");
}

/// Throws from the callback of a model, and from a signal that one of its kernels gets: what reads the model's input
/// faults.
const MAIN: &str = r#"
#include "m.h"
#include <signal.h>
#include <sys/mman.h>
#include <cstdio>
struct Fault {};
static int destroyed = 0;
struct Guard { ~Guard() { destroyed += 1; } };
static void fault(int) { throw Fault(); }
static void stop(void *, m_task, void *const *, int64_t, int64_t) { throw 42; }
static void here(void *, m_task task, void *const *table, int64_t extent, int64_t) { task(table, 0, extent); }
static float y[M_OUTPUT_0_BYTES / 4];
int main() {
    struct sigaction action = {};
    action.sa_handler = fault;
    action.sa_flags = SA_NODEFER;
    if (sigaction(SIGSEGV, &action, nullptr)) return 2;
    void *x = mmap(nullptr, M_INPUT_0_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const void *inputs[] = {x};
    void *outputs[] = {y};
    // Kept in registers over the calls, which must have their values again.
    register long a = (long)x % 1000 + 1, b = a * 3, c = a * 5, d = a * 7, e = a * 11;
    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e));
    int caught = 0;
    for (int round = 0; round < 3; round++) {
        try {
            Guard guard;
            switch (round) {
            case 0: m_run_parallel(inputs, outputs, nullptr, stop, nullptr); break;
            case 1: m_run(inputs, outputs, nullptr); break;
            default: m_run_parallel(inputs, outputs, nullptr, here, nullptr); break;
            }
            return 3;
        } catch (int) {
            caught += round == 0;
        } catch (Fault &) {
            caught += round != 0;
        }
        if (b != a * 3 || c != a * 5 || d != a * 7 || e != a * 11) return 4;
    }
    return caught == 3 && destroyed == 3 ? 0 : 5;
}
"#;

fn run(program: &str, arguments: &[&str], folder: &Path) -> String {
    let run = Command::new(program).args(arguments).current_dir(folder).output();
    let run = run.unwrap_or_else(|error| panic!("{program} could not be run: {error}"));
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{program} {arguments:?}: {} {errors}", run.status);
    String::from_utf8_lossy(&run.stdout).into_owned()
}

#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn exceptions_pass_through_models() {
    let folder = std::env::temp_dir().join(format!("windlass-frames-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |file: &str, bytes: &[u8]| std::fs::write(folder.join(file), bytes).unwrap();
    let program = model();
    let host = Target::host();
    let [low, high] = ["x86-64-v3", "x86-64-v4"].map(level);
    let both = [&low, &high].map(|target| Variant { program: &program, target });
    let mut made = vec![("variants", object_of_variants(&both, &options(512)).unwrap())];
    for bits in host.vector_widths().unwrap() {
        made.push(("one", object(&program, &host, &options(bits)).unwrap()));
    }
    for (what, artifact) in made {
        write("m.o", &artifact.object);
        write("m.h", artifact.header.as_bytes());
        write("main.cpp", MAIN.as_bytes());
        assert_eq!(run("nm", &["-u", "m.o"], &folder).trim(), "", "{what}");
        shared_library(&folder.join("m.o"), &folder.join("libm_model.so")).unwrap();
        for linked in ["m.o", "./libm_model.so"] {
            let warnings = ["-Wall", "-Werror", "-Wno-register", "-Wl,--fatal-warnings", "-std=c++14"];
            let arguments = ["-O2", "-fnon-call-exceptions", "main.cpp", linked, "-o", "main"];
            run("c++", &[&warnings[..], &arguments[..]].concat(), &folder);
            run("./main", &[], &folder);
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
