//! The body of /v1/embeddings and its answer.
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use super::{ApiError, Fields, Prompt, params};
use crate::{
    request::Terms,
    tokenizer::{Side, Truncation},
};

/// OpenAI's limit.
const MOST_INPUTS: usize = 2048;

/// How the numbers of an embedding are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingForm {
    /// A JSON array.
    #[default]
    Float,
    /// Base64 of F32, little-endian.
    Base64,
}

/// A checked request.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingsRequest {
    /// The model asked for; `None` takes the served one.
    pub model: Option<String>,
    /// At least one text.
    pub inputs: Vec<Prompt>,
    /// Whether the tokenizer adds its own special tokens.
    pub special: bool,
    /// Form of the numbers.
    pub form: EmbeddingForm,
    /// Numbers wanted, 1 to the model's.
    pub dimensions: usize,
    /// What of a longer text is kept.
    pub truncation: Option<Truncation>,
    /// How urgent it is and with whom it shares; the client is not told by the body.
    pub terms: Terms,
}

impl EmbeddingsRequest {
    /// Reads and checks a body for a model whose embeddings have `width` numbers. Errors name the field.
    pub fn parse(mut fields: Fields, width: usize) -> Result<Self, ApiError> {
        let range = format!("1 to {width}");
        let dimensions = fields.number("dimensions", |count: &usize| (1..=width).contains(count), &range)?;
        let request = Self {
            model: fields.text("model")?,
            inputs: Prompt::take(&mut fields, "input", MOST_INPUTS)?,
            special: fields.flag("add_special_tokens", true)?,
            form: fields
                .number("encoding_format", |_| true, "\"float\" or \"base64\"")?
                .unwrap_or_default(),
            dimensions: dimensions.unwrap_or(width),
            truncation: params::truncation(&mut fields, Side::Right)?,
            terms: params::terms(&mut fields)?,
        };
        fields.finish()?;
        Ok(request)
    }
}

/// The answer, as OpenAI and vLLM write it.
#[derive(Debug, Serialize)]
pub struct EmbeddingsReply {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    data: Vec<Embedding>,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
}

/// The embedding of one input.
#[derive(Debug, Serialize)]
pub struct Embedding {
    index: usize,
    object: &'static str,
    embedding: Numbers,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Numbers {
    Float(Vec<f32>),
    Base64(String),
}

impl Embedding {
    /// Cuts the hidden state of input `index` to `dimensions` numbers, which Matryoshka training allows, and scales
    /// them to length 1.
    pub fn new(index: usize, mut hidden: Vec<f32>, dimensions: usize, form: EmbeddingForm) -> Self {
        hidden.truncate(dimensions);
        let length = hidden
            .iter()
            .map(|value| f64::from(*value).powi(2))
            .sum::<f64>()
            .sqrt();
        // transformers' smallest divisor: a vector of zeros stays one.
        let scale = length.max(1e-12).recip();
        let numbers = hidden.into_iter().map(|value| (f64::from(value) * scale) as f32);
        let embedding = match form {
            EmbeddingForm::Float => Numbers::Float(numbers.collect()),
            EmbeddingForm::Base64 => {
                let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
                Numbers::Base64(BASE64_STANDARD.encode(bytes))
            }
        };
        Self {
            index,
            object: "embedding",
            embedding,
        }
    }
}

impl EmbeddingsReply {
    /// The answer to request `id` at `created`, in seconds since 1970.
    pub fn new(id: &str, created: u64, model: &str, data: Vec<Embedding>, prompt_tokens: usize) -> Self {
        Self {
            id: format!("embd-{id}"),
            object: "list",
            created,
            model: model.to_owned(),
            data,
            usage: Usage {
                prompt_tokens,
                total_tokens: prompt_tokens,
                completion_tokens: 0,
            },
        }
    }
}
