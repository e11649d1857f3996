//! The variants of an object: what they may be, and which is better.

use std::cmp::Reverse;

use target_lexicon::Architecture;
use windlass_ir::loops::Program;

use super::needs::Needs;
use crate::error::Error;
use crate::isa::{self, SharedIsa, Target};

/// A model as it is laid out for one processor.
#[derive(Clone, Copy, Debug)]
pub struct Variant<'a> {
    /// Its loops.
    pub program: &'a Program,
    /// What they are compiled for.
    pub target: &'a Target,
}

/// Fails if there can be no object file of variants for these targets.
pub fn check_variants(targets: &[Target]) -> Result<(), Error> {
    let program = Program::default();
    let variants: Vec<_> = targets.iter().map(|target| Variant { program: &program, target }).collect();
    sorted(&variants, false).map(drop)
}

/// A variant that code is made for.
pub(super) struct Chosen<'a> {
    pub program: &'a Program,
    pub isa: SharedIsa,
    /// The processor's name, as users know it.
    pub cpu: String,
    /// What processors must have, if there are others to choose from.
    pub needs: Needs,
}

/// The variants, the best first.
pub(super) fn sorted<'a>(variants: &[Variant<'a>], verify: bool) -> Result<Vec<Chosen<'a>>, Error> {
    let Some(first) = variants.first() else {
        return Err(Error::Variants("an object needs at least one variant".to_string()));
    };
    let several = variants.len() > 1;
    let triple = &first.target.triple;
    if several && triple.architecture != Architecture::X86_64 {
        let message = format!("{triple}: a variant can be chosen on x86-64 only");
        return Err(Error::Variants(message));
    }
    let mut found: Vec<Chosen<'a>> = Vec::new();
    let mut ranks = Vec::new();
    for Variant { program, target } in variants {
        if target.triple != *triple {
            let message = format!("{triple} and {} are no variants of one object", target.triple);
            return Err(Error::Variants(message));
        }
        if (&program.inputs, &program.outputs) != (&first.program.inputs, &first.program.outputs) {
            return Err(Error::Variants("the variants have other inputs or outputs".to_string()));
        }
        let isa = isa::build(target, verify, true)?;
        let cpu = target.cpu.clone().unwrap_or_else(|| isa::LEAST_X86_64.to_string());
        if several && found.iter().any(|other| symbol(&other.cpu) == symbol(&cpu)) {
            return Err(Error::Variants(format!("`{cpu}` is given twice")));
        }
        let needs = if several { Needs::new(&*isa)? } else { Needs::default() };
        ranks.push(needs.rank(&*isa));
        found.push(Chosen { program, isa, cpu, needs });
    }
    let mut ranked: Vec<_> = ranks.into_iter().zip(found).collect();
    ranked.sort_by_key(|(rank, _)| Reverse(*rank));
    Ok(ranked.into_iter().map(|(_, variant)| variant).collect())
}

/// A processor's name as a part of a function's.
pub(super) fn symbol(cpu: &str) -> String {
    cpu.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(targets: &[Target]) -> String {
        check_variants(targets).unwrap_err().to_string()
    }

    fn target(triple: &str, cpu: &str) -> Target {
        Target { cpu: Some(cpu.to_string()), ..Target::parse(triple).unwrap() }
    }

    const LINUX: &str = "x86_64-unknown-linux-gnu";

    #[test]
    fn the_best_variant_comes_first() {
        let program = Program::default();
        let cpus = ["x86-64-v3", "cascadelake", "haswell", "x86-64-v4", "icelake-server"];
        let targets = cpus.map(|cpu| target(LINUX, cpu));
        let variants = targets.each_ref().map(|target| Variant { program: &program, target });
        let order: Vec<_> = sorted(&variants, false).unwrap().into_iter().map(|found| found.cpu).collect();
        assert_eq!(order, ["icelake-server", "cascadelake", "x86-64-v4", "x86-64-v3", "haswell"]);
    }

    #[test]
    fn variants_that_do_not_go_together_are_refused() {
        assert_eq!(refuse(&[]), "an object needs at least one variant");
        let arm = Target::parse("aarch64-unknown-linux-gnu").unwrap();
        assert_eq!(
            refuse(&[arm.clone(), arm.clone()]),
            "aarch64-unknown-linux-gnu: a variant can be chosen on x86-64 only"
        );
        let [v2, v3, v4] = ["x86-64-v2", "x86-64-v3", "x86-64-v4"].map(|cpu| target(LINUX, cpu));
        assert_eq!(refuse(&[v3.clone(), v4, v3.clone()]), "`x86-64-v3` is given twice");
        assert_eq!(
            refuse(&[v3.clone(), target("x86_64-pc-windows-msvc", "haswell")]),
            format!("{LINUX} and x86_64-pc-windows-msvc are no variants of one object")
        );
        assert!(refuse(&[v3, v2]).starts_with("the processor lacks FMA, AVX"));
    }
}
