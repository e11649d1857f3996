//! An object file in the making: its functions, with how each is left, and its data.

use cranelift_codegen::Context;
use cranelift_codegen::ir::{Function, Signature};
use cranelift_codegen::isa::CallConv;
use cranelift_module::{
    DataDescription, DataId, FuncId, Linkage, Module, ModuleError, default_libcall_names,
};
use cranelift_object::{ObjectBuilder, ObjectModule};
use target_lexicon::BinaryFormat;
use windlass_ir::loops::Program;

use crate::error::Error;
use crate::frames::{Frame, Frames};
use crate::isa::SharedIsa;

/// An object file to which functions and data are added.
pub(super) struct Unit {
    pub module: ObjectModule,
    isa: SharedIsa,
    frames: Frames,
}

impl Unit {
    pub fn new(isa: SharedIsa, name: &str) -> Result<Unit, Error> {
        let builder = ObjectBuilder::new(isa.clone(), name, default_libcall_names()).map_err(fail)?;
        Ok(Unit { module: ObjectModule::new(builder), isa, frames: Frames::default() })
    }

    pub fn call_conv(&self) -> CallConv {
        self.isa.default_call_conv()
    }

    /// Names a function.
    pub fn declare(
        &mut self,
        symbol: &str,
        linkage: Linkage,
        signature: &Signature,
    ) -> Result<FuncId, Error> {
        self.module.declare_function(symbol, linkage, signature).map_err(fail)
    }

    /// Compiles a function that was declared.
    pub fn define(&mut self, id: FuncId, function: Function, symbol: &str) -> Result<(), Error> {
        let refuse = |message| Error::Compile { kernel: symbol.to_string(), message };
        let mut context = Context::for_function(function);
        self.module.define_function(id, &mut context).map_err(|e| refuse(e.to_string()))?;
        if let Some(compiled) = context.compiled_code() {
            let frame = Frame::new(compiled, &*self.isa).map_err(refuse)?;
            self.frames.add(id, compiled.code_buffer().len(), frame);
        }
        Ok(())
    }

    /// Adds a function of this object alone, of bytes that refer to nothing.
    pub fn define_code(
        &mut self,
        symbol: &str,
        signature: &Signature,
        alignment: u64,
        bytes: &[u8],
        frame: Frame,
    ) -> Result<FuncId, Error> {
        let id = self.declare(symbol, Linkage::Local, signature)?;
        self.module.define_function_bytes(id, alignment, bytes, &[]).map_err(fail)?;
        self.frames.add(id, bytes.len(), frame);
        Ok(id)
    }

    /// Adds bytes that are only read.
    pub fn define_data(&mut self, symbol: &str, linkage: Linkage, bytes: Vec<u8>) -> Result<DataId, Error> {
        let id = self.module.declare_data(symbol, linkage, false, false).map_err(fail)?;
        let mut data = DataDescription::new();
        data.set_align(Program::ALIGN);
        data.define(bytes.into_boxed_slice());
        self.module.define_data(id, &data).map_err(fail)?;
        Ok(id)
    }

    /// Adds a word of 4 bytes that is written to, and 0 at first.
    pub fn define_word(&mut self, symbol: &str) -> Result<DataId, Error> {
        let id = self.module.declare_data(symbol, Linkage::Local, true, false).map_err(fail)?;
        let mut word = DataDescription::new();
        word.set_align(4);
        word.define_zeroinit(4);
        self.module.define_data(id, &word).map_err(fail)?;
        Ok(id)
    }

    /// The file.
    pub fn finish(self) -> Result<Vec<u8>, Error> {
        let mut product = self.module.finish();
        if self.isa.triple().binary_format == BinaryFormat::Elf {
            self.frames.write(&mut product, &*self.isa).map_err(Error::Module)?;
        }
        product.emit().map_err(|e| Error::Module(e.to_string()))
    }
}

fn fail(e: ModuleError) -> Error {
    Error::Module(e.to_string())
}
