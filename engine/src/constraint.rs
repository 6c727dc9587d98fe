//! Structured output: a grammar becomes the set of tokens that may come next, by llguidance.
use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

use crate::tokenizer::Tokenizer;

/// Most bytes of a grammar: compiling takes time that grows with the square of its rules, here at most seconds.
const LARGEST: usize = 128 << 10;

/// Why a grammar cannot be used, one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The model's vocabulary names no token that ends a text.
    #[error("this model has no end-of-sequence token, so structured output could never end")]
    NoEnd,
    /// The grammar itself is wrong, empty or too large.
    #[error("the grammar does not compile: {0}")]
    Grammar(String),
    /// The grammar became too ambiguous for one step, or allows nothing more.
    #[error("the grammar could not be followed: {0}")]
    Step(String),
}

/// What the text of an answer must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// A JSON value that this schema accepts; references must be local (`#/…`).
    JsonSchema(Value),
    /// A text that matches this regular expression from begin to end; Rust's syntax without look-around.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's variant of Lark. Added tokens that are not special, such as `<tool_call>`, are
    /// written as text: `"<tool_call>"`.
    Lark(String),
}

impl Grammar {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::JsonSchema(json!({"type": "object"}))
    }

    /// Bytes of its source.
    fn size(&self) -> usize {
        match self {
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(|text| text.len() + 1).sum(),
        }
    }

    fn into_top_level(self) -> TopLevelGrammar {
        match self {
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema),
            Self::Regex(regex) => TopLevelGrammar::from_regex(&regex),
            Self::Choice(texts) => {
                // JSON's quoting is Lark's.
                let texts: Vec<_> = texts.into_iter().map(|text| json!(text).to_string()).collect();
                // One terminal, so one state machine however many texts there are.
                TopLevelGrammar::from_lark(format!("start: CHOICE\nCHOICE: {}", texts.join(" | ")))
            }
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar),
        }
    }
}

/// Compiles grammars for one model's vocabulary; clones share what was prepared.
#[derive(Clone)]
pub struct Grammars {
    tokenizer: Tokenizer,
    eos: Vec<u32>,
    /// Made by the first request that needs it: it takes a second and tens of MB for a large vocabulary.
    factory: Arc<OnceLock<Result<ParserFactory, ConstraintError>>>,
}

impl Grammars {
    /// `eos` are the tokens of which one ends a text that is complete.
    pub fn new(tokenizer: Tokenizer, eos: Vec<u32>) -> Self {
        Self {
            tokenizer,
            eos,
            factory: Arc::default(),
        }
    }

    /// Compiles a grammar; takes milliseconds, so not for threads that serve others.
    ///
    /// # Errors
    /// When the grammar is malformed or too large, in words for its author.
    pub fn compile(&self, grammar: Grammar) -> Result<Constraint, ConstraintError> {
        let size = grammar.size();
        if size > LARGEST {
            let text = format!("it has {size} bytes and may have {LARGEST}");
            return Err(ConstraintError::Grammar(text));
        }
        let factory = self
            .factory
            .get_or_init(|| factory(&self.tokenizer, &self.eos))
            .as_ref()
            .map_err(Clone::clone)?;
        let mut matcher = Matcher::new(factory.create_parser(grammar.into_top_level()));
        // A grammar that is empty or too ambiguous shows at its first step.
        match matcher.compute_mask_or_eos() {
            Ok(_) => Ok(Constraint { matcher, begin: None }),
            Err(error) => Err(ConstraintError::Grammar(brief(&error))),
        }
    }
}

fn factory(tokenizer: &Tokenizer, eos: &[u32]) -> Result<ParserFactory, ConstraintError> {
    let size = tokenizer.size() as u32;
    let eos: Vec<u32> = eos.iter().copied().filter(|token| *token < size).collect();
    let first = *eos.first().ok_or(ConstraintError::NoEnd)?;
    let words: Vec<Vec<u8>> = (0..size)
        .map(|token| {
            let bytes = tokenizer.bytes(token);
            match tokenizer.is_special(token) {
                // No text may ever spell a special token.
                true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
                false => bytes.to_vec(),
            }
        })
        .collect();
    let trie = TokTrie::from(&TokRxInfo::new(size, first), &words).with_eos_tokens(&eos);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
        .map_err(|error| ConstraintError::Grammar(brief(&error)))?;
    factory.quiet().limits_mut().verbose_errors = false;
    Ok(factory)
}

/// llguidance's words in one line. A panic that it caught brings its backtrace along, which is for nobody here.
fn brief(error: &impl ToString) -> String {
    const LONGEST: usize = 300;
    let text = error.to_string();
    let text = text.split("<backtrace>").next().unwrap_or_default();
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(LONGEST).collect()
}

/// A grammar on its way through one answer.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    /// Everything is allowed up to and including this token.
    begin: Option<u32>,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Constraint")
    }
}

impl Constraint {
    /// The same, from behind the first `token` on: a model that reasons first does so freely.
    pub fn after(self, token: u32) -> Self {
        Self {
            begin: Some(token),
            ..self
        }
    }

    /// Sets the logits of all tokens that may not come next to minus infinity; only end tokens are left when the
    /// text is complete and can only stop.
    ///
    /// # Errors
    /// When the step would take too much work.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        if self.begin.is_some() {
            return Ok(());
        }
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| step(&error))?;
        let mut words = allowed.as_slice().iter();
        // Logits beyond the vocabulary belong to no token.
        for logits in logits.chunks_mut(32) {
            match words.next().copied().unwrap_or(0) {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                word => {
                    let bits = (0..32).map(|bit| word >> bit & 1 == 1);
                    for (logit, _) in logits.iter_mut().zip(bits).filter(|(_, allowed)| !allowed) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// When the grammar does not allow it.
    pub fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        if let Some(begin) = self.begin {
            self.begin = (token != begin).then_some(begin);
            return Ok(());
        }
        if self.is_complete() {
            // The end token: the grammar has nothing to learn from it.
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|error| step(&error))
    }

    /// Whether the text is complete and can only stop.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

fn step(error: &impl ToString) -> ConstraintError {
    ConstraintError::Step(brief(error))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const END: u32 = 257;
    const SIZE: usize = 300;

    fn grammars() -> Grammars {
        Grammars::new(Tokenizer::of_bytes().unwrap(), vec![END])
    }

    /// The tokens allowed next.
    fn allowed(constraint: &mut Constraint) -> Vec<u32> {
        let mut logits = [0.0; SIZE];
        constraint.mask(&mut logits).unwrap();
        (0..SIZE as u32)
            .filter(|token| logits[*token as usize] == 0.0)
            .collect()
    }

    /// The first byte of `text` that the grammar refuses, or whether the text may end there.
    fn follow(grammar: Grammar, text: &str) -> Result<bool, usize> {
        let mut constraint = grammars().compile(grammar).unwrap();
        for (at, byte) in text.bytes().enumerate() {
            if !allowed(&mut constraint).contains(&u32::from(byte)) {
                return Err(at);
            }
            constraint.accept(u32::from(byte)).unwrap();
        }
        Ok(allowed(&mut constraint).contains(&END))
    }

    #[test]
    fn only_what_the_grammar_allows_is_left() {
        let schema = json!({"type": "object", "properties": {"age": {"$ref": "#/$defs/n"}}, "required": ["age"],
            "additionalProperties": false, "$defs": {"n": {"type": "integer"}}});
        let schema = Grammar::JsonSchema(schema);
        assert_eq!(follow(schema.clone(), r#"{"age": 12}"#), Ok(true));
        assert_eq!(follow(schema.clone(), r#"{"age": 12"#), Ok(false));
        assert_eq!(follow(schema.clone(), r#"{"age": "x"}"#), Err(8));
        assert_eq!(follow(schema, r#"{"name""#), Err(2));
        assert_eq!(follow(Grammar::json_object(), r#"{"a": [1, "é"]}"#), Ok(true));
        assert_eq!(follow(Grammar::json_object(), "[1]"), Err(0));
        assert_eq!(follow(Grammar::Regex("[0-9]{2}/a+".into()), "12/aa"), Ok(true));
        assert_eq!(follow(Grammar::Regex("[0-9]{2}/a+".into()), "123"), Err(2));
        let choice = Grammar::Choice(vec!["yes".into(), "no\"\n".into()]);
        assert_eq!(follow(choice.clone(), "no\"\n"), Ok(true));
        assert_eq!(follow(choice, "ye!"), Err(2));
        let prefixes = Grammar::Choice(vec!["a".into(), "ab".into()]);
        assert_eq!(follow(prefixes.clone(), "a"), Ok(true));
        assert_eq!(follow(prefixes, "ab"), Ok(true));
        let lark = Grammar::Lark("start: \"<tool_call>\" WORD\nWORD: /[a-z]+/".into());
        assert_eq!(follow(lark, "<tool_call>ab"), Ok(true));
    }

    #[test]
    fn a_complete_text_can_only_end() {
        let mut constraint = grammars().compile(Grammar::Regex("ab".into())).unwrap();
        assert_eq!(allowed(&mut constraint), [u32::from(b'a')]);
        constraint.accept(u32::from(b'a')).unwrap();
        assert!(!constraint.is_complete());
        constraint.accept(u32::from(b'b')).unwrap();
        assert!(constraint.is_complete());
        assert_eq!(allowed(&mut constraint), [END]);
    }

    #[test]
    fn a_constraint_may_begin_behind_a_token() {
        let constraint = grammars().compile(Grammar::Regex("a".into())).unwrap();
        let mut constraint = constraint.after(u32::from(b'>'));
        for byte in b"b</t>" {
            assert_eq!(allowed(&mut constraint).len(), SIZE);
            constraint.accept(u32::from(*byte)).unwrap();
        }
        assert_eq!(allowed(&mut constraint), [u32::from(b'a')]);
    }

    #[test]
    fn clones_go_their_own_ways() {
        let mut one = grammars().compile(Grammar::Regex("ab|cd".into())).unwrap();
        let mut other = one.clone();
        one.accept(u32::from(b'a')).unwrap();
        other.accept(u32::from(b'c')).unwrap();
        assert_eq!(allowed(&mut one), [u32::from(b'b')]);
        assert_eq!(allowed(&mut other), [u32::from(b'd')]);
    }

    #[test]
    fn grammars_that_do_not_compile_say_why() {
        for (grammar, word) in [
            (Grammar::Regex("(".into()), "unclosed"),
            (Grammar::Lark("start: missing".into()), "missing"),
            (Grammar::Lark(String::new()), "start"),
            (Grammar::JsonSchema(json!({"type": "nonsense"})), "nonsense"),
            (Grammar::JsonSchema(json!({"$ref": "http://a.b/c"})), "http"),
            (Grammar::JsonSchema(json!(false)), "false"),
            (
                Grammar::Choice((0..30_000).map(|n| n.to_string()).collect()),
                "168890 bytes",
            ),
        ] {
            let error = grammars().compile(grammar).unwrap_err();
            assert!(matches!(error, ConstraintError::Grammar(_)), "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
        let none = Grammars::new(Tokenizer::of_bytes().unwrap(), Vec::new());
        assert_eq!(
            none.compile(Grammar::json_object()).unwrap_err(),
            ConstraintError::NoEnd
        );
    }

    proptest! {
        /// Whatever is chosen among the allowed tokens is a JSON object in the end.
        #[test]
        fn any_walk_through_the_grammar_is_json(choices in prop::collection::vec(any::<u16>(), 400)) {
            let mut constraint = grammars().compile(Grammar::json_object()).unwrap();
            let mut text = Vec::new();
            for choice in choices {
                let tokens = allowed(&mut constraint);
                if tokens.contains(&END) {
                    // Read without its values: an exponent may be larger than any float.
                    let read = serde_json::from_slice::<serde::de::IgnoredAny>(&text);
                    prop_assert!(read.is_ok() && text.first() == Some(&b'{'), "{:?}", text);
                    break;
                }
                let token = tokens[choice as usize % tokens.len()];
                text.push(token as u8);
                constraint.accept(token).unwrap();
            }
        }
    }
}
