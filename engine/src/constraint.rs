//! Structured output: a grammar becomes the set of tokens that may come next, by llguidance.
mod closed;

use std::sync::{Arc, OnceLock};

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

pub(crate) use closed::close;

use crate::tokenizer::Tokenizer;

/// Most bytes of a grammar: compiling takes time that grows with the square of its rules, here at most seconds.
const LARGEST: usize = 128 << 10;

/// Most entries of one object in a schema. Each optional key takes four items of every row that the parser writes, and
/// a row beyond its limit would end an answer halfway.
const WIDEST: usize = 4000;
/// Items that the parser may write at a time: room for the widest object.
const LONGEST_ROW: usize = 5 * WIDEST;
/// Stack of a thread that compiles: llguidance recurses over keys and chains of references, thousands of which fit
/// into a grammar. Only what is used takes memory.
const STACK: usize = 256 << 20;

/// What may stand between two words of JSON: a line break and an indentation. Any white space could go on for ever, and
/// small models let it.
const WHITE_SPACE: &str = r"\r?\n[ \t]{0,32}|[ \t]{1,32}";

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
    /// A JSON value that this schema accepts, objects without keys that it does not describe unless it says otherwise;
    /// references must be local (`#/…`).
    JsonSchema(Value),
    /// A text that matches this regular expression from begin to end; Rust's syntax without look-around.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's variant of Lark. Added tokens that are not special, such as `<tool_call>`, are
    /// written as text: `"<tool_call>"`.
    Lark(String),
    /// The same, which refers to another grammar as `@text`.
    With(String, Box<Grammar>),
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
            Self::With(text, other) => text.len() + other.size(),
        }
    }

    /// Entries of the largest object in its schema.
    fn widest(&self) -> usize {
        fn of(value: &Value) -> usize {
            match value {
                Value::Object(map) => map.values().map(of).fold(map.len(), usize::max),
                Value::Array(list) => list.iter().map(of).max().unwrap_or(0),
                _ => 0,
            }
        }
        match self {
            Self::JsonSchema(schema) => of(schema),
            Self::With(_, other) => other.widest(),
            _ => 0,
        }
    }

    fn into_top_level(self) -> TopLevelGrammar {
        let Self::With(lark, other) = self else {
            return TopLevelGrammar::from_grammar(self.alone());
        };
        let mut grammar = TopLevelGrammar::from_lark(lark);
        let mut other = other.alone();
        other.name = Some("text".to_owned());
        grammar.grammars.push(other);
        grammar
    }

    /// As one of llguidance's grammars; what it refers to is not in it.
    fn alone(self) -> GrammarWithLexer {
        match self {
            Self::JsonSchema(mut schema) => {
                close(&mut schema);
                if let Value::Object(schema) = &mut schema {
                    schema
                        .entry("x-guidance")
                        .or_insert(json!({"whitespace_pattern": WHITE_SPACE}));
                }
                GrammarWithLexer::from_json_schema(schema)
            }
            Self::Regex(regex) => GrammarWithLexer::from_regex(&regex),
            Self::Choice(texts) => {
                // JSON's quoting is Lark's.
                let texts: Vec<_> = texts.into_iter().map(|text| json!(text).to_string()).collect();
                // One terminal, so one state machine however many texts there are.
                GrammarWithLexer::from_lark(format!("start: CHOICE\nCHOICE: {}", texts.join(" | ")))
            }
            Self::Lark(grammar) | Self::With(grammar, _) => GrammarWithLexer::from_lark(grammar),
        }
    }
}

/// Compiles grammars for one model's vocabulary; clones share what was prepared.
#[derive(Clone)]
pub struct Grammars {
    tokenizer: Tokenizer,
    eos: Arc<[u32]>,
    /// Made by the first request that needs it: it takes a second and tens of MB for a large vocabulary.
    factory: Arc<OnceLock<Result<ParserFactory, ConstraintError>>>,
}

impl Grammars {
    /// `eos` are the tokens of which one ends a text that is complete.
    pub fn new(tokenizer: Tokenizer, eos: Vec<u32>) -> Self {
        Self {
            tokenizer,
            eos: eos.into(),
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
        let widest = grammar.widest();
        if widest > WIDEST {
            let text = format!("an object in it has {widest} entries and may have {WIDEST}");
            return Err(ConstraintError::Grammar(text));
        }
        let is_ebnf = matches!(&grammar, Grammar::Lark(text) if text.contains("::="));
        let compile = move || {
            let mut matcher = Matcher::new(factory.create_parser(grammar.into_top_level()));
            // A grammar that is empty or too ambiguous shows at its first step.
            matcher.compute_mask_or_eos().map(|_| matcher)
        };
        let compiled = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK);
            let thread = thread.spawn_scoped(scope, compile);
            thread.map(std::thread::ScopedJoinHandle::join)
        });
        match compiled {
            Ok(Ok(Ok(matcher))) => Ok(Constraint {
                matcher,
                phase: Phase::Held,
                thought: None,
                calls: None,
                eos: self.eos.clone(),
            }),
            Ok(Ok(Err(_))) if is_ebnf => {
                let text = "it looks like EBNF (`::=`), and this server reads Lark, for example `start: \"yes\" | \"no\"`";
                Err(ConstraintError::Grammar(text.to_owned()))
            }
            Ok(Ok(Err(error))) => Err(ConstraintError::Grammar(brief(&error))),
            Ok(Err(_)) => Err(ConstraintError::Grammar(
                "the compiler failed on it, a bug".to_owned(),
            )),
            Err(error) => Err(ConstraintError::Grammar(format!(
                "no thread can be started for it: {error}"
            ))),
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
    let limits = factory.quiet().limits_mut();
    limits.verbose_errors = false;
    limits.max_items_in_row = LONGEST_ROW;
    limits.step_max_items = 10 * LONGEST_ROW;
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

/// The tokens around a model's thought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thought {
    /// What opens it; `None` where the prompt has done so.
    pub open: Option<u32>,
    /// What closes it.
    pub close: u32,
    /// Newlines that may follow it.
    pub gap: Option<u32>,
}

/// Calls that the model begins by itself, in free text.
#[derive(Clone)]
struct Calls {
    /// Where the grammar begins to hold.
    open: u32,
    /// The grammar's beginning, for the next call; `None` where one is all.
    again: Option<Matcher>,
}

/// Where an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before its first token, which may open a thought.
    Start,
    /// In a thought.
    Thought,
    /// Right behind it.
    Gap,
    /// In text that is free until a call begins.
    Free,
    /// Where the grammar holds.
    Held,
}

/// A grammar on its way through one answer.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    phase: Phase,
    thought: Option<Thought>,
    calls: Option<Calls>,
    eos: Arc<[u32]>,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Constraint")
    }
}

impl Constraint {
    /// The same, in force only from each token `open` to the end of the grammar; nothing may follow the first end
    /// unless `again`.
    pub fn from_each(mut self, open: u32, again: bool) -> Self {
        let again = again.then(|| self.matcher.clone());
        self.calls = Some(Calls { open, again });
        self.phase = Phase::Free;
        self
    }

    /// The same behind a thought: a model that reasons first does so freely.
    pub fn behind(mut self, thought: Thought) -> Self {
        self.phase = match thought.open {
            Some(_) => Phase::Start,
            None => Phase::Thought,
        };
        self.thought = Some(thought);
        self
    }

    /// Sets the logits of all tokens that may not come next to minus infinity; only end tokens are left when the
    /// text is complete and can only stop.
    ///
    /// # Errors
    /// When the step would take too much work.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        let beside = match self.phase {
            Phase::Held => None,
            _ if self.calls.is_some() => return Ok(()),
            Phase::Thought | Phase::Free => {
                // The answer is still owed: it cannot end in a thought.
                for token in self.eos.iter() {
                    if let Some(logit) = logits.get_mut(*token as usize) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
                return Ok(());
            }
            // A model that would not begin so by itself is not led into it by what the grammar forbids.
            Phase::Start => self
                .thought
                .and_then(|thought| thought.open)
                .filter(|open| is_best(logits, *open)),
            Phase::Gap => self.thought.and_then(|thought| thought.gap),
        };
        let beside = beside.and_then(|token| Some((token as usize, *logits.get(token as usize)?)));
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
        if let Some((token, logit)) = beside {
            logits[token] = logit;
        }
        Ok(())
    }

    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// When the grammar does not allow it.
    pub fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        let thought = self.thought;
        match self.phase {
            Phase::Start if thought.is_some_and(|thought| thought.open == Some(token)) => {
                self.phase = Phase::Thought;
                return Ok(());
            }
            Phase::Thought => {
                if thought.is_some_and(|thought| thought.close == token) {
                    self.phase = Phase::Gap;
                }
                return Ok(());
            }
            Phase::Gap if thought.is_some_and(|thought| thought.gap == Some(token)) => {
                self.phase = self.resting();
                return Ok(());
            }
            Phase::Start | Phase::Gap => self.phase = self.resting(),
            Phase::Free | Phase::Held => {}
        }
        if self.phase == Phase::Free {
            if self.calls.as_ref().is_some_and(|calls| calls.open == token) {
                self.phase = Phase::Held;
            }
            return Ok(());
        }
        if self.is_complete() {
            // The end token: the grammar has nothing to learn from it.
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|error| step(&error))?;
        if self.is_complete()
            && let Some(again) = self.calls.as_ref().and_then(|calls| calls.again.as_ref())
        {
            self.matcher = again.clone();
            self.phase = Phase::Free;
        }
        Ok(())
    }

    /// What comes when no thought does.
    fn resting(&self) -> Phase {
        match self.calls {
            Some(_) => Phase::Free,
            None => Phase::Held,
        }
    }

    /// Whether the text is complete and can only stop.
    pub fn is_complete(&self) -> bool {
        self.phase == Phase::Held && self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

/// Whether no token is likelier.
fn is_best(logits: &[f32], token: u32) -> bool {
    let own = logits.get(token as usize);
    own.is_some_and(|own| !logits.iter().any(|other| other > own))
}

fn step(error: &impl ToString) -> ConstraintError {
    ConstraintError::Step(brief(error))
}

#[cfg(test)]
#[path = "constraint_tests.rs"]
mod tests;
