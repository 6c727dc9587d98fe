//! Text to tokens by the model's tokenizer.json, and back as a stream.
mod detokenizer;
mod truncation;

use std::sync::Arc;

use tokenizers::DecoderWrapper;

pub use detokenizer::{Detokenizer, Emitted};
pub use truncation::{Side, Truncation};

/// Why a tokenizer.json cannot be used, or a text not be tokenized.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Not a tokenizer.json.
    #[error("cannot read tokenizer.json: {0}; use the file that came with the model")]
    Malformed(String),
    /// Some other family's decoder.
    #[error("tokenizer.json has no ByteLevel decoder; this engine reads Qwen3's byte-level tokenizers")]
    NotByteLevel,
    /// The tokenizer failed on a text.
    #[error("the text cannot be tokenized: {0}")]
    Text(String),
}

/// A model's tokenizer; clones share it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    /// The bytes of all tokens, one after the other; token t is `bytes[ends[t - 1]..ends[t]]`.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    special: Vec<bool>,
    /// Bytes of the longest token.
    longest: usize,
}

impl Tokenizer {
    /// Reads a tokenizer.json. Errors: malformed, or not byte-level.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        let tokenizer = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|error| TokenizerError::Malformed(error.to_string()))?;
        let byte_level = match tokenizer.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => true,
            Some(DecoderWrapper::Sequence(sequence)) => sequence
                .get_decoders()
                .iter()
                .any(|one| matches!(one, DecoderWrapper::ByteLevel(_))),
            _ => false,
        };
        if !byte_level {
            return Err(TokenizerError::NotByteLevel);
        }
        let added = tokenizer.get_added_tokens_decoder();
        let size = added
            .keys()
            .map(|id| *id as usize + 1)
            .max()
            .unwrap_or(0)
            .max(tokenizer.get_vocab_size(true));
        let (mut bytes, mut ends, mut special) = (Vec::new(), Vec::with_capacity(size), vec![false; size]);
        let mut longest = 0;
        for id in 0..size as u32 {
            if let Some(token) = added.get(&id) {
                bytes.extend_from_slice(token.content.as_bytes());
                special[id as usize] = token.special;
            } else if let Some(token) = tokenizer.id_to_token(id) {
                extend_with_bytes(&mut bytes, &token);
            }
            longest = longest.max(bytes.len() - ends.last().map_or(0, |end| *end as usize));
            ends.push(bytes.len() as u32);
        }
        Ok(Self(Arc::new(Inner {
            tokenizer,
            bytes,
            ends,
            special,
            longest,
        })))
    }

    /// Tokens of a text. `special` adds what the post-processor adds (nothing, for Qwen3).
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_within(text, special, None)
    }

    /// The same with a longer text cut; what the post-processor adds stays whole and counts.
    pub fn encode_within(
        &self,
        text: &str,
        special: bool,
        truncation: Option<Truncation>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .0
            .tokenizer
            .encode_fast(text, special)
            .map_err(|error| TokenizerError::Text(error.to_string()))?;
        let mut tokens = encoding.get_ids().to_vec();
        if let Some(truncation) = truncation {
            let added = encoding.get_special_tokens_mask();
            let first = added.iter().position(|added| *added == 0);
            let last = added.iter().rposition(|added| *added == 0);
            let text = first.zip(last).map_or(0..0, |(first, last)| first..last + 1);
            truncation.cut(&mut tokens, text);
        }
        Ok(tokens)
    }

    /// The fewest tokens that `bytes` bytes of text can be: a text can be refused by its length alone, before the
    /// tokenizer spends a hundred bytes of memory on each of its own.
    pub fn at_least(&self, bytes: usize) -> usize {
        bytes / self.0.longest.max(1)
    }

    /// The number of a token, by its text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.0.tokenizer.token_to_id(token)
    }

    /// How the vocabulary writes a token: its bytes in byte-level BPE's characters.
    pub fn token(&self, token: u32) -> Option<String> {
        self.0.tokenizer.id_to_token(token)
    }

    /// The text of tokens, special ones included; bytes that are no characters become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|token| self.bytes(*token))
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Numbers up to this one (excluded) may be tokens.
    pub fn size(&self) -> usize {
        self.0.ends.len()
    }

    /// The bytes a token stands for; empty for numbers that are no token.
    pub fn bytes(&self, token: u32) -> &[u8] {
        let at = token as usize;
        let Some(end) = self.0.ends.get(at) else {
            return &[];
        };
        let start = if at == 0 { 0 } else { self.0.ends[at - 1] };
        &self.0.bytes[start as usize..*end as usize]
    }

    /// Whether a token is left out of the text by default.
    pub fn is_special(&self, token: u32) -> bool {
        self.0.special.get(token as usize).copied().unwrap_or(false)
    }

    /// A tokenizer of the 256 bytes and Qwen3's two end tokens (256 and 257), for use with the fake model.
    pub fn of_bytes() -> Result<Self, TokenizerError> {
        Self::from_bytes(Self::of_bytes_json().as_bytes())
    }

    /// The tokenizer.json of `of_bytes`.
    pub fn of_bytes_json() -> String {
        let vocab: serde_json::Map<String, serde_json::Value> = (0..=255)
            .map(|byte| (char_of(byte).to_string(), byte.into()))
            .collect();
        let special = |id: u32, text: &str| serde_json::json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
        serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [special(256, "<|endoftext|>"), special(257, "<|im_end|>")],
            "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        })
        .to_string()
    }
}

/// Byte-level BPE writes each byte as a printable character: Latin-1's printable ones as themselves,
/// the other 68 as U+0100 and on, in order.
fn char_of(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|earlier| !printable(*earlier)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn extend_with_bytes(bytes: &mut Vec<u8>, token: &str) {
    use std::{collections::HashMap, sync::LazyLock};
    static BYTES: LazyLock<HashMap<char, u8>> =
        LazyLock::new(|| (0..=255).map(|byte| (char_of(byte), byte)).collect());
    let start = bytes.len();
    for char in token.chars() {
        let Some(byte) = BYTES.get(&char) else {
            // Not written in byte characters: it stands for itself.
            bytes.truncate(start);
            bytes.extend_from_slice(token.as_bytes());
            return;
        };
        bytes.push(*byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_the_round_trip() {
        let tokenizer = Tokenizer::of_bytes().unwrap();
        let text = "Grüße, 世界 🙂\n<|im_end|>";
        let tokens = tokenizer.encode(text, false).unwrap();
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|token| tokenizer.bytes(*token))
            .copied()
            .collect();
        assert_eq!(bytes, text.as_bytes());
        assert_eq!(tokens.last(), Some(&257));
        assert!(tokenizer.is_special(257) && !tokenizer.is_special(65));
        for byte in 0..=255u8 {
            assert_eq!(tokenizer.bytes(u32::from(byte)), [byte]);
        }
        assert!(tokenizer.bytes(9999).is_empty());
    }

    #[test]
    fn what_the_tokenizer_adds_stays_where_a_text_is_cut() {
        let mut json: serde_json::Value = serde_json::from_str(&Tokenizer::of_bytes_json()).unwrap();
        let special = |name: &str| serde_json::json!({"SpecialToken": {"id": name, "type_id": 0}});
        let described = |name: &str, id: u32| serde_json::json!({"id": name, "ids": [id], "tokens": [name]});
        json["post_processor"] = serde_json::json!({
            "type": "TemplateProcessing",
            "single": [special("<|im_end|>"), {"Sequence": {"id": "A", "type_id": 0}}, special("<|endoftext|>")],
            "pair": [],
            "special_tokens": {"<|endoftext|>": described("<|endoftext|>", 256), "<|im_end|>": described("<|im_end|>", 257)},
        });
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
        let cut = |special, keep, side| {
            let truncation = Truncation {
                keep: Some(keep),
                side,
            };
            tokenizer
                .encode_within("<|im_end|>ab", special, Some(truncation))
                .unwrap()
        };
        assert_eq!(cut(true, 4, Side::Left), [257, 97, 98, 256]);
        assert_eq!(cut(true, 4, Side::Right), [257, 257, 97, 256]);
        assert_eq!(cut(true, 9, Side::Left), [257, 257, 97, 98, 256]);
        assert_eq!(cut(true, 1, Side::Left), [257, 256]);
        assert_eq!(cut(false, 1, Side::Left), [98]);
    }

    #[test]
    fn other_tokenizers_are_refused() {
        assert!(matches!(
            Tokenizer::from_bytes(b"{}"),
            Err(TokenizerError::Malformed(_))
        ));
        let json = r#"{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;
        assert!(matches!(
            Tokenizer::from_bytes(json.as_bytes()),
            Err(TokenizerError::NotByteLevel)
        ));
    }
}
