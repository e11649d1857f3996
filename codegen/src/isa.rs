//! Instruction sets: what code is made for, and with which of Cranelift's settings.

use std::sync::Arc;

use cranelift_codegen::isa::{self, CallConv, OwnedTargetIsa, TargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use target_lexicon::{Architecture, Endianness, Triple};

use crate::error::Error;

/// What an object file is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Processor, operating system and object format.
    pub triple: Triple,
    /// The processor's level: `native`, or a name that Cranelift knows such as `x86-64-v3`. `None` is
    /// the least that generated code needs.
    pub cpu: Option<String>,
}

impl Target {
    /// This machine.
    pub fn host() -> Target {
        Target { triple: Triple::host(), cpu: Some("native".to_string()) }
    }

    /// The least processor of a triple that generated code runs on, `x86_64-unknown-linux-gnu` and such.
    pub fn parse(triple: &str) -> Result<Target, Error> {
        let unsupported = |reason: String| Error::Target { target: triple.to_string(), reason };
        let parsed: Triple = triple.parse().map_err(|e| unsupported(format!("{e}")))?;
        Ok(Target { triple: parsed, cpu: None })
    }

    /// Fails if no code is made for it.
    pub fn check(&self) -> Result<(), Error> {
        build(self, false, false).map(drop)
    }

    /// Whether it stores the low half of a word first.
    pub fn is_little_endian(&self) -> bool {
        self.triple.endianness() != Ok(Endianness::Big)
    }

    /// Whether its widest vectors have an instruction for products of bytes, four to a word.
    pub fn has_byte_products(&self) -> Result<bool, Error> {
        Ok(has_byte_products(&*build(self, false, false)?))
    }

    /// The bits of the widest vectors that code for it has.
    pub fn vector_bits(&self) -> Result<usize, Error> {
        Ok(vector_bits(&*build(self, false, false)?))
    }

    /// The bits of vectors that code for it may be asked to have, the fewest first.
    pub fn vector_widths(&self) -> Result<Vec<usize>, Error> {
        let widest = self.vector_bits()?;
        Ok([128, 256, 512].into_iter().filter(|&bits| bits <= widest).collect())
    }

    /// The triples that objects are made for, as examples of their kind.
    pub const TRIPLES: [&str; 5] = [
        "x86_64-unknown-linux-gnu",
        "aarch64-unknown-linux-gnu",
        "aarch64-apple-darwin",
        "riscv64gc-unknown-linux-gnu",
        "s390x-unknown-linux-gnu",
    ];
}

/// The least level of x86-64 that has a name and what generated code needs.
pub(crate) const LEAST_X86_64: &str = "x86-64-v3";

/// The settings that kernels are compiled with.
fn flags(verify: bool, position_independent: bool) -> Result<settings::Flags, Error> {
    let mut builder = settings::builder();
    let settings = [
        // Addresses, constants and loads are placed by the emitter. The optimiser would sink splats and
        // multiplications into register tiles and spill the accumulators.
        ("opt_level", "none"),
        ("enable_verifier", if verify { "true" } else { "false" }),
        ("is_pic", if position_independent { "true" } else { "false" }),
        ("unwind_info", "true"),
        ("enable_probestack", "true"),
        ("probestack_strategy", "inline"),
        ("enable_llvm_abi_extensions", "false"),
    ];
    for (name, value) in settings {
        builder.set(name, value).map_err(|e| Error::Module(format!("setting {name}: {e}")))?;
    }
    Ok(settings::Flags::new(builder))
}

/// The instruction set of this machine.
pub(crate) fn host(verify: bool) -> Result<OwnedTargetIsa, Error> {
    build(&Target::host(), verify, false)
}

/// The instruction set of a target, once it is known to have what generated code needs.
pub(crate) fn build(
    target: &Target,
    verify: bool,
    position_independent: bool,
) -> Result<OwnedTargetIsa, Error> {
    let isa = unchecked(target, verify, position_independent)?;
    check(&*isa)?;
    Ok(isa)
}

/// The instruction set that every processor of a triple has.
pub(crate) fn least(triple: &Triple, verify: bool) -> Result<OwnedTargetIsa, Error> {
    let cpu = match triple.architecture {
        Architecture::X86_64 => Some("x86-64".to_string()),
        _ => None,
    };
    unchecked(&Target { triple: triple.clone(), cpu }, verify, true)
}

fn unchecked(target: &Target, verify: bool, position_independent: bool) -> Result<OwnedTargetIsa, Error> {
    let unsupported = |reason: String| Error::Target { target: target.triple.to_string(), reason };
    let host = target.triple.architecture == Triple::host().architecture;
    let start = || -> Result<isa::Builder, Error> {
        let mut builder = match target.cpu.as_deref() {
            Some("native") if host => cranelift_native::builder().map_err(|e| unsupported(e.to_string()))?,
            Some("native") => return Err(unsupported("it is not this machine's architecture".to_string())),
            _ => isa::lookup(target.triple.clone()).map_err(|e| unsupported(e.to_string()))?,
        };
        let named = match (target.cpu.as_deref(), target.triple.architecture) {
            (Some("native"), _) => None,
            (Some(cpu), _) => Some(cpu),
            (None, Architecture::X86_64) => Some(LEAST_X86_64),
            (None, _) => None,
        };
        if let Some(name) = named {
            builder.enable(name).map_err(|e| unsupported(format!("`{name}`: {e}")))?;
        }
        Ok(builder)
    };
    let flags = flags(verify, position_independent)?;
    let mut isa = start()?.finish(flags.clone()).map_err(|e| unsupported(e.to_string()))?;
    // Cranelift's names of processors leave out instruction sets that others include: AVX2 and FMA are extensions of
    // AVX, and every processor that has FMA and BMI2 has AVX2.
    let mut included = Vec::new();
    if has(&*isa, "has_fma") && has(&*isa, "has_bmi2") && !has(&*isa, "has_avx2") {
        included.push("has_avx2");
    }
    if (has(&*isa, "has_avx2") || has(&*isa, "has_fma")) && !has(&*isa, "has_avx") {
        included.push("has_avx");
    }
    if target.cpu.as_deref() != Some("native") && !included.is_empty() {
        let mut builder = start()?;
        for name in included {
            builder.enable(name).map_err(|e| unsupported(e.to_string()))?;
        }
        isa = builder.finish(flags).map_err(|e| unsupported(e.to_string()))?;
    }
    Ok(isa)
}

/// Whether an instruction set includes another.
pub(crate) fn has(isa: &dyn TargetIsa, name: &str) -> bool {
    isa.isa_flags().iter().any(|f| f.name == name && f.as_bool() == Some(true))
}

/// The bits of the widest vectors that code for an instruction set has. Wider ones than Cranelift's are for the System
/// V convention.
pub(crate) fn vector_bits(isa: &dyn TargetIsa) -> usize {
    let has = |flags: &[&str]| flags.iter().all(|flag| has(isa, flag));
    let wide = isa.triple().architecture == Architecture::X86_64
        && isa.default_call_conv() == CallConv::SystemV
        && has(&["has_avx2", "has_fma", "has_bmi2"]);
    // Both are extensions of AVX-512 F, and every processor that has them has the instructions on bytes and words,
    // which Cranelift has no name for.
    let wider = has(&["has_avx512dq", "has_avx512vl"]);
    match (wide, wider) {
        (false, _) => 128,
        (true, false) => 256,
        (true, true) => 512,
    }
}

/// Whether vectors of 512 bits have products of bytes.
pub(crate) fn has_byte_products(isa: &dyn TargetIsa) -> bool {
    vector_bits(isa) == 512 && has(isa, "has_avx512vnni")
}

fn check(isa: &dyn TargetIsa) -> Result<(), Error> {
    // Without fused multiply-add, or rounding, Cranelift would call functions of a C library.
    let needed: &[(&str, &str)] = match isa.triple().architecture {
        Architecture::X86_64 => &[("has_fma", "FMA"), ("has_avx", "AVX"), ("has_sse41", "SSE4.1")],
        Architecture::Aarch64(_) | Architecture::Riscv64(_) | Architecture::S390x => &[],
        other => {
            return Err(Error::Target {
                target: isa.triple().to_string(),
                reason: format!("no code is made for {other}"),
            });
        }
    };
    let missing: Vec<&str> =
        needed.iter().filter(|(flag, _)| !has(isa, flag)).map(|(_, name)| *name).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::Features { missing: missing.join(", ") }),
    }
}

/// An instruction set that several threads compile for.
pub(crate) type SharedIsa = Arc<dyn TargetIsa>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_by_name_have_their_widest_vectors() {
        for (cpu, bits, byte_products) in [
            (None, 256, false),
            (Some("x86-64-v3"), 256, false),
            (Some("x86-64-v4"), 512, false),
            (Some("skylake-avx512"), 512, false),
            (Some("cascadelake"), 512, true),
            (Some("alderlake"), 256, false),
            (Some("znver3"), 256, false),
            (Some("znver4"), 512, false),
        ] {
            let target = Target::parse("x86_64-unknown-linux-gnu").unwrap();
            let target = Target { cpu: cpu.map(str::to_string), ..target };
            let found = (target.vector_bits().unwrap(), target.has_byte_products().unwrap());
            assert_eq!(found, (bits, byte_products), "{cpu:?}");
        }
        let windows = Target::parse("x86_64-pc-windows-msvc").unwrap();
        assert_eq!(windows.vector_bits().unwrap(), 128);
        assert!(!Target::parse("s390x-unknown-linux-gnu").unwrap().is_little_endian());
    }
}
