//! Functions as text, for dumps and golden files.

use std::fmt;

use super::{End, Function, Op, Target, Value};

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "function {{")?;
        for (slot, bytes) in &self.slots {
            writeln!(f, "    {slot} = {bytes} bytes")?;
        }
        for &block in &self.order {
            let data = &self.blocks[block];
            let params: Vec<String> = data.params.iter().map(|&p| format!("{p}: {}", self.ty(p))).collect();
            writeln!(f, "{block}({}):", params.join(", "))?;
            for &inst in &data.insts {
                let inst = &self.insts[inst];
                write!(f, "    ")?;
                if let Some(result) = inst.result {
                    write!(f, "{result}: {} = ", self.ty(result))?;
                }
                write!(f, "{}", inst.op)?;
                if !inst.args.is_empty() {
                    write!(f, " {}", list(&inst.args))?;
                }
                writeln!(f)?;
            }
            match &data.end {
                End::Open => writeln!(f, "    ...")?,
                End::Jump(target) => writeln!(f, "    jump {target}")?,
                End::Branch(condition, [then, otherwise]) => {
                    writeln!(f, "    branch {condition}, {then}, {otherwise}")?
                }
                End::Return => writeln!(f, "    return")?,
            }
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.block, list(&self.args))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Const(bits) => write!(f, "const {bits:#x}"),
            Op::Iota { step, group: 1 } => write!(f, "iota {step}"),
            Op::Iota { step, group } => write!(f, "iota {step} of groups of {group}"),
            Op::StackAddress(slot) => write!(f, "address {slot}"),
            Op::Load { offset, bytes } => write!(f, "load {bytes} bytes at {offset:+}"),
            Op::LoadWhere { offset } => write!(f, "load where at {offset:+}"),
            Op::Store { offset, bytes } => write!(f, "store {bytes} bytes at {offset:+}"),
            Op::Prefetch { offset } => write!(f, "prefetch at {offset:+}"),
            other => {
                // The name in lower case: `DivUnsigned` is `div_unsigned`.
                let mut inside = false;
                for c in format!("{other:?}").chars() {
                    if c.is_ascii_uppercase() && inside {
                        f.write_str("_")?;
                    }
                    inside = c.is_ascii_alphanumeric();
                    match c {
                        '(' => f.write_str(" ")?,
                        ')' => {}
                        c => write!(f, "{}", c.to_ascii_lowercase())?,
                    }
                }
                Ok(())
            }
        }
    }
}

fn list(values: &[Value]) -> String {
    values.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")
}
