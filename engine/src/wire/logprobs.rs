//! Log probabilities as OpenAI and vLLM write them: for chats, for text completions, and for prompts.
use serde_json::{Map, Value, json};

use super::Endpoint;
use crate::request::TokenLogprobs;
use crate::tokenizer::Tokenizer;

/// JSON has no minus infinity; this is vLLM's number for it.
const LEAST: f32 = -9999.0;

/// Writes the log probabilities of one choice, part by part.
pub struct LogprobsWriter {
    endpoint: Endpoint,
    tokenizer: Tokenizer,
    skip_special: bool,
    count: usize,
    /// Characters of the text before the next token; only completions tell it.
    offset: usize,
}

impl LogprobsWriter {
    /// `count` alternatives are written for each token; `skip_special` says whether special tokens have no text.
    pub fn new(endpoint: Endpoint, tokenizer: Tokenizer, skip_special: bool, count: usize) -> Self {
        Self {
            endpoint,
            tokenizer,
            skip_special,
            count,
            offset: 0,
        }
    }

    /// The field `logprobs` for tokens of the answer.
    pub fn answer(&mut self, tokens: &[TokenLogprobs]) -> Value {
        match self.endpoint {
            Endpoint::Chat => {
                let content: Vec<Value> = tokens.iter().map(|token| self.chat_token(token)).collect();
                json!({"content": content, "refusal": null})
            }
            Endpoint::Completion => {
                let skip = self.skip_special;
                self.completion(tokens.iter().map(|token| (token.token, Some(token))), skip)
            }
        }
    }

    /// The field `logprobs` for a prompt that is echoed; nothing predicts its `first` token.
    pub fn echo(&mut self, first: u32, rest: &[TokenLogprobs]) -> Value {
        let rest = rest.iter().map(|token| (token.token, Some(token)));
        self.completion(std::iter::once((first, None)).chain(rest), false)
    }

    fn chat_token(&self, token: &TokenLogprobs) -> Value {
        let entry = |(token, logprob): (u32, f32)| json!({"token": self.text(token), "logprob": logprob.max(LEAST), "bytes": self.tokenizer.bytes(token)});
        let mut own = entry((token.token, token.logprob));
        own["top_logprobs"] = token.top.iter().take(self.count).copied().map(entry).collect();
        own
    }

    fn completion<'a>(
        &mut self,
        tokens: impl Iterator<Item = (u32, Option<&'a TokenLogprobs>)>,
        skip_special: bool,
    ) -> Value {
        let (mut texts, mut own, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (token, logprobs) in tokens {
            texts.push(self.text(token));
            own.push(logprobs.map(|token| token.logprob.max(LEAST)));
            tops.push(logprobs.map(|token| self.top(token)));
            offsets.push(self.offset);
            if !(skip_special && self.tokenizer.is_special(token)) {
                // A character counts where its first byte is.
                let begins = |byte: &&u8| **byte & 0xc0 != 0x80;
                self.offset += self.tokenizer.bytes(token).iter().filter(begins).count();
            }
        }
        json!({"tokens": texts, "token_logprobs": own, "top_logprobs": tops, "text_offset": offsets})
    }

    /// The likeliest tokens by their text, and the chosen one whatever its place.
    fn top(&self, token: &TokenLogprobs) -> Map<String, Value> {
        let mut top = Map::new();
        let own = (token.token, token.logprob);
        for (token, logprob) in token.top.iter().take(self.count).copied().chain([own]) {
            // Broken characters look alike: the likelier one is told.
            top.entry(self.text(token)).or_insert(json!(logprob.max(LEAST)));
        }
        top
    }

    fn text(&self, token: u32) -> String {
        String::from_utf8_lossy(self.tokenizer.bytes(token)).into_owned()
    }
}

/// vLLM's field `prompt_logprobs`: for each token of the prompt its and the likeliest tokens' entries by number.
pub fn prompt_logprobs(tokenizer: &Tokenizer, tokens: &[TokenLogprobs], count: usize) -> Value {
    let entry = |rank: usize, (token, logprob): (u32, f32)| {
        let text = String::from_utf8_lossy(tokenizer.bytes(token));
        let entry = json!({"logprob": logprob.max(LEAST), "rank": rank, "decoded_token": text});
        (token.to_string(), entry)
    };
    let one = |token: &TokenLogprobs| {
        let own = entry(token.rank, (token.token, token.logprob));
        let top = (1..).zip(token.top.iter().take(count).copied());
        let top = top.map(|(rank, token)| entry(rank, token));
        Value::Object(std::iter::once(own).chain(top).collect())
    };
    std::iter::once(Value::Null)
        .chain(tokens.iter().map(one))
        .collect()
}

/// Appends the later part of a choice's `logprobs` to the earlier one.
pub fn append(all: &mut Value, part: Value) {
    match (all, part) {
        (Value::Object(all), Value::Object(part)) => {
            for (name, part) in part {
                append(all.entry(name).or_insert(Value::Null), part);
            }
        }
        (Value::Array(all), Value::Array(part)) => all.extend(part),
        (all @ Value::Null, part) => *all = part,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(token: u32, logprob: f32, top: &[(u32, f32)]) -> TokenLogprobs {
        let top = top.to_vec();
        TokenLogprobs {
            token,
            logprob,
            rank: 3,
            top,
        }
    }

    fn writer(endpoint: Endpoint, count: usize) -> LogprobsWriter {
        LogprobsWriter::new(endpoint, Tokenizer::of_bytes().unwrap(), true, count)
    }

    #[test]
    fn a_chat_has_one_entry_for_each_token() {
        let value = writer(Endpoint::Chat, 1).answer(&[token(97, -1.5, &[(0xc3, -0.5), (98, -1.0)])]);
        let top = json!({"token": "\u{fffd}", "logprob": -0.5, "bytes": [0xc3]});
        let own = json!({"token": "a", "logprob": -1.5, "bytes": [97], "top_logprobs": [top]});
        assert_eq!(value, json!({"content": [own], "refusal": null}));
    }

    #[test]
    fn completions_have_columns_that_go_on_from_part_to_part() {
        let mut writer = writer(Endpoint::Completion, 1);
        let mut all = writer.echo(97, &[token(0xc3, -1.0, &[]), token(0xa9, -2.0, &[(97, -0.5)])]);
        append(
            &mut all,
            writer.answer(&[token(257, -3.0, &[]), token(98, f32::NEG_INFINITY, &[(98, -0.5)])]),
        );
        assert_eq!(
            all["tokens"],
            json!(["a", "\u{fffd}", "\u{fffd}", "<|im_end|>", "b"])
        );
        assert_eq!(all["token_logprobs"], json!([null, -1.0, -2.0, -3.0, -9999.0]));
        assert_eq!(all["text_offset"], json!([0, 1, 2, 2, 2]));
        assert_eq!(all["top_logprobs"][0], Value::Null);
        assert_eq!(all["top_logprobs"][2], json!({"a": -0.5, "\u{fffd}": -2.0}));
    }

    #[test]
    fn prompts_are_keyed_by_token_numbers() {
        let tokenizer = Tokenizer::of_bytes().unwrap();
        let value = prompt_logprobs(&tokenizer, &[token(97, -2.0, &[(98, -0.5), (99, -1.0)])], 1);
        let own = json!({"logprob": -2.0, "rank": 3, "decoded_token": "a"});
        let top = json!({"logprob": -0.5, "rank": 1, "decoded_token": "b"});
        assert_eq!(value, json!([null, {"97": own, "98": top}]));
    }
}
