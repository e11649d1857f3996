//! How functions are left through their callers: the tables that debuggers, profilers and exceptions walk the stack by.
//!
//! Cranelift says it of what it compiles; the encoder of x86-64 of what it encodes. Objects carry it in the ELF section
//! `.eh_frame`; other formats have none.

use cranelift_codegen::CompiledCode;
use cranelift_codegen::gimli::constants::{DW_EH_PE_pcrel, DW_EH_PE_sdata4};
use cranelift_codegen::gimli::write::{
    Address, CallFrameInstruction, EhFrame, EndianVec, FrameDescriptionEntry, FrameTable, RelocateWriter,
    Relocation, RelocationTarget,
};
use cranelift_codegen::gimli::{DwEhPe, RunTimeEndian};
use cranelift_codegen::isa::TargetIsa;
use cranelift_codegen::isa::unwind::{UnwindInfo, systemv};
use cranelift_module::FuncId;
use cranelift_object::ObjectProduct;
use cranelift_object::object::write::{Object, Relocation as ObjectRelocation, StandardSection, SymbolId};
use cranelift_object::object::{RelocationEncoding, RelocationFlags, RelocationKind};

/// The rules that hold from an offset of the code on, beside those that hold at the start of every function.
pub(crate) type Rules = Vec<(u32, CallFrameInstruction)>;

/// How one function is left.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    /// By Cranelift's rules, which leave out epilogues.
    Cranelift(systemv::UnwindInfo),
    /// By these rules, which hold at every instruction.
    Rules(Rules),
    /// Unknown, as the target has another way to say it.
    Unknown,
}

impl Frame {
    /// That of what Cranelift compiled.
    pub fn new(compiled: &CompiledCode, isa: &dyn TargetIsa) -> Result<Frame, String> {
        match compiled.create_unwind_info(isa).map_err(|e| e.to_string())? {
            Some(UnwindInfo::SystemV(info)) => Ok(Frame::Cranelift(info)),
            _ => Ok(Frame::Unknown),
        }
    }
}

/// The functions of an object and their frames.
#[derive(Default)]
pub(crate) struct Frames(Vec<(FuncId, u32, Frame)>);

impl Frames {
    /// Adds a function, with how many bytes its code has.
    pub fn add(&mut self, function: FuncId, bytes: usize, frame: Frame) {
        self.0.push((function, bytes as u32, frame));
    }

    /// Writes the section.
    pub fn write(self, product: &mut ObjectProduct, isa: &dyn TargetIsa) -> Result<(), String> {
        let Some(mut common) = isa.create_systemv_cie() else { return Ok(()) };
        // Distances, so that the section needs no relocation where the code is loaded.
        common.fde_address_encoding = DwEhPe(DW_EH_PE_pcrel.0 | DW_EH_PE_sdata4.0);
        let mut table = FrameTable::default();
        let common = table.add_cie(common);
        let mut symbols = Vec::with_capacity(self.0.len());
        for (function, bytes, frame) in self.0 {
            let address = Address::Symbol { symbol: symbols.len(), addend: 0 };
            let entry = match frame {
                Frame::Cranelift(info) => info.to_fde(address),
                Frame::Rules(rules) => {
                    let mut entry = FrameDescriptionEntry::new(address, bytes);
                    rules.into_iter().for_each(|(offset, rule)| entry.add_instruction(offset, rule));
                    entry
                }
                Frame::Unknown => continue,
            };
            table.add_fde(common, entry);
            symbols.push(product.function_symbol(function));
        }
        let endian = match isa.endianness() {
            cranelift_codegen::ir::Endianness::Little => RunTimeEndian::Little,
            cranelift_codegen::ir::Endianness::Big => RunTimeEndian::Big,
        };
        let mut section = EhFrame(Section { writer: EndianVec::new(endian), relocations: Vec::new() });
        table.write_eh_frame(&mut section).map_err(|e| e.to_string())?;
        let EhFrame(Section { writer, relocations }) = section;
        let id = product.object.section_id(StandardSection::EhFrame);
        product.object.append_section_data(id, writer.slice(), 8);
        for relocation in relocations {
            let relocation = place(&mut product.object, relocation, &symbols)?;
            product.object.add_relocation(id, relocation).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

/// The distance to a function, counted from its section: others may put a function of theirs in the place of one that is
/// exported, but the frame stays with the code.
fn place(
    object: &mut Object<'_>,
    relocation: Relocation,
    symbols: &[SymbolId],
) -> Result<ObjectRelocation, String> {
    let Relocation { offset, size: 4, target: RelocationTarget::Symbol(symbol), addend: 0, .. } = relocation
    else {
        return Err(format!("{relocation:?} is not the distance to a function"));
    };
    let function = object.symbol(symbols[symbol]);
    let (Some(section), addend) = (function.section.id(), function.value as i64) else {
        return Err("a function has no code".to_string());
    };
    let (kind, encoding) = (RelocationKind::Relative, RelocationEncoding::Generic);
    let flags = RelocationFlags::Generic { kind, encoding, size: 32 };
    Ok(ObjectRelocation { offset: offset as u64, symbol: object.section_symbol(section), addend, flags })
}

/// A section in the making.
struct Section {
    writer: EndianVec<RunTimeEndian>,
    relocations: Vec<Relocation>,
}

impl RelocateWriter for Section {
    type Writer = EndianVec<RunTimeEndian>;

    fn writer(&self) -> &Self::Writer {
        &self.writer
    }

    fn writer_mut(&mut self) -> &mut Self::Writer {
        &mut self.writer
    }

    fn relocate(&mut self, relocation: Relocation) {
        self.relocations.push(relocation);
    }
}
