//! The C header of an object.

use std::fmt::Write;

use windlass_ir::{DType, TensorType};

use super::ObjectOptions;
use crate::emit::STACK_LIMIT;

/// The stack of a thread that runs a model: a kernel's arrays, its registers, and what calls it.
const STACK_BYTES: usize = STACK_LIMIT + (64 << 10);

/// What the caller of an object has to know.
pub(super) struct Interface<'a> {
    /// What a training step keeps, if it is one.
    pub state: Option<&'a [(String, TensorType)]>,
    pub inputs: &'a [(String, TensorType)],
    pub outputs: &'a [(String, TensorType)],
    pub arena_bytes: u64,
    pub weight_bytes: usize,
    /// The names of the processors that there are variants for, the best first, if there are several.
    pub variants: &'a [String],
}

/// The header's text, for C99 and C++.
pub(super) fn header(interface: &Interface<'_>, options: &ObjectOptions) -> String {
    let name = &options.name;
    let upper = name.to_ascii_uppercase();
    let mut text = String::new();
    let mut line = |s: String| {
        text.push_str(&s);
        text.push('\n');
    };
    line(format!(
        "/* Made by Windlass. All buffers are row-major. Any thread with {} KiB of stack may run the model;",
        STACK_BYTES >> 10
    ));
    line("   concurrent runs need an arena each. */".into());
    line(format!("#ifndef {upper}_H\n#define {upper}_H\n"));
    line("#include <stdint.h>\n".into());
    line("#ifdef __cplusplus\nextern \"C\" {\n#endif\n".into());
    let state = interface.state.map(|state| ("state", state));
    for (what, ports) in state.into_iter().chain([("input", interface.inputs), ("output", interface.outputs)])
    {
        line(format!("#define {upper}_{}S {}", what.to_ascii_uppercase(), ports.len()));
        for (i, (port, ty)) in ports.iter().enumerate() {
            let bytes = ty.as_len().unwrap_or(0) * ty.dtype.size();
            let macro_name = format!("{upper}_{}_{i}_BYTES", what.to_ascii_uppercase());
            line(format!("/* {what} {i}, `{}`: {} */", comment(port), c_type(ty)));
            line(format!("#define {macro_name} {bytes}"));
        }
        line(String::new());
    }
    line("/* The size of the arena, which must be aligned to 64 bytes. */".into());
    line(format!("#define {upper}_ARENA_BYTES {}", interface.arena_bytes));
    line(format!("extern const uint64_t {name}_arena_bytes;\n"));
    let entry = if interface.state.is_some() { "step" } else { "run" };
    let action = if interface.state.is_some() { "Does a training step" } else { "Runs the model" };
    if interface.state.is_some() {
        let state = interface.state.unwrap_or_default();
        let sizes: Vec<String> =
            state.iter().map(|(_, ty)| (ty.as_len().unwrap_or(0) * ty.dtype.size()).to_string()).collect();
        let names: Vec<String> = state.iter().map(|(name, _)| quoted(name)).collect();
        line("/* The sizes and the names of the state's tensors, to initialize arrays. */".into());
        line(format!("#define {upper}_STATE_BYTES {{{}}}", sizes.join(", ")));
        line(format!("#define {upper}_STATE_NAMES {{{}}}\n", names.join(", ")));
        line("/* Sets the state to that before the first step. */".into());
        line(format!("void {name}_init(void *const *state);\n"));
        line("/* A training step reads the state and leaves that after the step in the same buffers: the variables, what".into());
        line(
            "   the optimizer keeps of each, and the number of steps. Where it fails the state stays. */\n"
                .into(),
        );
    }
    let mut params = "const void *const *inputs, void *const *outputs, void *arena".to_string();
    if interface.state.is_some() {
        params.insert_str(0, "void *const *state, ");
    }
    if options.separate_weights {
        line("/* The size of the weights, to be mapped from their file; aligned to 64 bytes. */".into());
        line(format!("#define {upper}_WEIGHTS_BYTES {}\n", interface.weight_bytes));
        params.push_str(", const void *weights");
    }
    match interface.variants {
        [] => {
            line(format!("/* {action}. Returns 0, or 1 if the arena is missing or not aligned. */"));
        }
        variants => {
            line("/* There are variants of the code for these levels of processors, the best first:".into());
            line(format!("   {}.", comment(&variants.join(", "))));
            line("   The first call of a function chooses the best that the processor runs, for all threads. */".into());
            line(String::new());
            line("/* The name of the variant chosen; NULL if the processor runs none. */".into());
            line(format!("const char *{name}_variant(void);\n"));
            line(format!(
                "/* {action}. Returns 0, or 1 if the arena is missing or not aligned, or 2 if the processor runs"
            ));
            line("   no variant. */".into());
        }
    }
    line(format!("int {name}_{entry}({params});\n"));
    if options.parallel {
        line(
            "/* Runs `task(table, begin, end)` for parts that together cover 0..extent, on any threads, and"
                .into(),
        );
        line("   returns when all are done. Parts smaller than `grain` are not worth a thread. */".into());
        line(format!("typedef void (*{name}_task)(void *const *table, int64_t begin, int64_t end);"));
        line(format!(
            "typedef void (*{name}_parallel_for)(void *context, {name}_task task, void *const *table,\n\
             {:>pad$}int64_t extent, int64_t grain);\n",
            "",
            pad = "typedef void (*_parallel_for)(".len() + name.len()
        ));
        line(format!("/* {action} on the caller's threads. The result has the same bits. */"));
        line(format!(
            "int {name}_{entry}_parallel({params},\n    {name}_parallel_for parallel_for, void *context);\n"
        ));
    }
    line("#ifdef __cplusplus\n}\n#endif\n".into());
    line(format!("#endif /* {upper}_H */"));
    text
}

/// A name that cannot end a comment or a line.
fn comment(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        match c {
            '*' | '/' | '\\' | '?' => text.push('_'),
            c if c.is_control() => text.push('_'),
            c => text.push(c),
        }
    }
    text
}

/// A name as a string of C: what is not plain by its bytes, in octal.
fn quoted(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b" _-.:/[](){}<>=+,;#$@!%&|~^".contains(&byte);
    let byte = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("\\{byte:03o}") };
    format!("\"{}\"", name.bytes().map(byte).collect::<String>())
}

/// The type in C's words.
fn c_type(ty: &TensorType) -> String {
    let element = match ty.dtype {
        DType::Bool => "uint8_t (0 or 1)",
        DType::I8 => "int8_t",
        DType::I16 => "int16_t",
        DType::I32 => "int32_t",
        DType::I64 => "int64_t",
        DType::U8 => "uint8_t",
        DType::U16 => "uint16_t",
        DType::U32 => "uint32_t",
        DType::U64 => "uint64_t",
        DType::F16 => "uint16_t (binary16)",
        DType::BF16 => "uint16_t (bfloat16)",
        DType::F32 => "float",
        DType::F64 => "double",
    };
    let mut text = element.to_string();
    for dim in &ty.dims {
        // Writing to a string does not fail.
        let _ = write!(text, "[{dim}]");
    }
    text
}
