//! Layers. Dimensions are in Keras's order: the batch first, channels last.
//!
//! Each has a name, given by `named` or made from its kind, which its variables begin with.

mod attention;
mod conv;
mod dense;
mod dropout;
mod encoder;
mod norm;
mod pool;
mod preprocess;
mod recurrent;

pub use attention::{MultiHeadAttention, SelfAttention};
pub use conv::{Conv, Padding};
pub use dense::{Activation, Dense, Embedding, Flatten, Reshape};
pub use dropout::Dropout;
pub(super) use dropout::scrambled;
pub use encoder::{TransformerEncoder, add, concatenate};
pub(super) use norm::batch_normalized;
pub use norm::{BatchNormalization, LayerNormalization};
pub use pool::{GlobalPooling, Pooling};
pub use preprocess::{Fill, Imputer, Normalization};
pub use recurrent::{Bidirectional, Gru, Lstm, SimpleRnn};

use windlass_ir::{Error, Value};

use super::net::Net;

/// A function of one value that may keep variables.
pub trait Layer: std::fmt::Debug {
    /// Adds the layer to a network.
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error>;
}

/// The name given, or the next one of its kind. The nodes that follow are the layer's.
fn name(given: &Option<String>, net: &mut Net, kind: &str) -> String {
    let name = match given {
        Some(name) => name.clone(),
        None => net.unique_name(kind),
    };
    net.builder().set_name(Some(name.as_str().into()));
    name
}

/// Gives a layer its setters: those of the fields named, and `named`.
macro_rules! setters {
    ($layer:ty { $($(#[$doc:meta])* $field:ident : $ty:ty),* $(,)? }) => {
        impl $layer {
            /// With a name, which its variables begin with.
            pub fn named(mut self, name: &str) -> Self {
                self.name = Some(name.to_string());
                self
            }

            $(
                $(#[$doc])*
                pub fn $field(mut self, $field: $ty) -> Self {
                    self.$field = $field;
                    self
                }
            )*
        }
    };
}
use setters;
