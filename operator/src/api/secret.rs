//! A reference to what is kept secret.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// A key of a Secret in the service's namespace. It is mounted as a file, so a changed value needs no restart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(transform = limits::object_name)]
    pub name: String,
    /// Key in its data.
    #[schemars(transform = limits::data_key)]
    pub key: String,
}
