//! How a rendered conversation ends, as transformers' chat templates know it.
use super::{ApiError, Fields};

/// How a rendered conversation ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    /// With what begins the assistant's next message.
    #[default]
    Reply,
    /// With the last message.
    Closed,
    /// Inside of the last message, which the model goes on writing.
    Open,
}

impl Ending {
    /// Takes `add_generation_prompt` and `continue_final_message` out. Errors: both ask.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let open = fields.flag("continue_final_message", false)?;
        let reply = fields.flag("add_generation_prompt", !open)?;
        match (reply, open) {
            (true, false) => Ok(Self::Reply),
            (false, false) => Ok(Self::Closed),
            (false, true) => Ok(Self::Open),
            (true, true) => Err(ApiError::invalid(
                "continue_final_message",
                "`continue_final_message` and `add_generation_prompt` exclude each other; send one of them.",
            )),
        }
    }
}
