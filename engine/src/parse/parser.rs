//! The state machine: pieces of text in, deltas out; how the text was cut never shows.
use super::call::{ObjectScan, Step, footer, header, whole};
use super::{CALL, CALL_END, MESSAGE, MESSAGE_END, THINK, THINK_END};

/// What an answer gained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// More of the model's thoughts.
    Reasoning(String),
    /// More text for the user.
    Content(String),
    /// A tool call begins; they are counted from 0.
    Call {
        /// Which call.
        index: usize,
        /// The function's name.
        name: String,
    },
    /// More of the arguments of the latest call, as the model wrote them.
    Arguments {
        /// Which call.
        index: usize,
        /// A piece of JSON.
        text: String,
    },
}

/// Where an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// There is no reasoning, or nobody asked to tell it apart.
    Never,
    /// The model may begin with `<think>`.
    MayBegin,
    /// The prompt has opened `<think>` already.
    Begun,
    /// It has written a part of the thought, too.
    Within,
}

impl Thinking {
    /// What a prompt leaves to the model: Qwen3's template writes an empty thought where thinking is switched off, those
    /// of the Thinking models open one, and a message that is to be continued may have either.
    pub fn after(prompt: &str) -> Self {
        let end = prompt.trim_end();
        let turn = match end.rsplit_once(MESSAGE) {
            Some((_, turn)) if turn.starts_with("assistant") && !turn.ends_with(MESSAGE_END) => turn,
            // What others say of thoughts begins none.
            Some(_) => "",
            // In prompts of other forms only the end is sure to be the assistant's.
            None => &end[boundary(end, end.len().saturating_sub(THINK_END.len()))..],
        };
        match (turn.rfind(THINK), turn.rfind(THINK_END)) {
            (None, None) => Self::MayBegin,
            (open, close) if open < close => Self::Never,
            _ if turn.ends_with(THINK) => Self::Begun,
            _ => Self::Within,
        }
    }
}

#[derive(Debug, Clone)]
enum State {
    /// Nothing but white space has come.
    Start,
    Reasoning,
    Content,
    /// After `<tool_call>`.
    Header,
    /// After a header that only the whole call can explain.
    Odd,
    Arguments(ObjectScan),
    /// After the arguments.
    Footer,
}

/// Reads one answer. Newlines around the tags belong to them; apart from these and the frame of calls, all text comes
/// out again, and what does not become a call comes out as content.
#[derive(Debug, Clone)]
pub struct Parser {
    state: State,
    tools: bool,
    /// Whether only the first call counts, as with `parallel_tool_calls`: false; later ones are left out.
    single: bool,
    calls: usize,
    /// Text that cannot be told yet.
    held: String,
    /// Newlines before a `<tool_call>` that may turn out to be none.
    lead: String,
    /// Whether the next newlines belong to the tag before them.
    trim: bool,
    /// Bytes of `held` in which the end of an odd call was looked for.
    searched: usize,
}

impl Parser {
    /// `tools` says whether calls are looked for, `single` whether one is enough.
    pub fn new(thinking: Thinking, tools: bool, single: bool) -> Self {
        Self {
            state: match thinking {
                Thinking::Never => State::Content,
                Thinking::MayBegin => State::Start,
                Thinking::Begun | Thinking::Within => State::Reasoning,
            },
            tools,
            single,
            calls: 0,
            held: String::new(),
            lead: String::new(),
            trim: thinking == Thinking::Begun,
            searched: 0,
        }
    }

    /// Whether the model is still thinking.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning)
    }

    /// Whether a call has come.
    pub fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        self.held.push_str(text);
        let mut deltas = Vec::new();
        while self.step(&mut deltas) {}
        joined(deltas)
    }

    /// No more text will come: what was held back.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Start | State::Content => self.content(rest, &mut deltas),
            State::Reasoning => deltas.push(Delta::Reasoning(rest)),
            State::Header | State::Odd => self.odd_call(&rest, "", &mut deltas),
            // The end of the text closes a call, too; what is held is the beginning of its end.
            State::Arguments(_) | State::Footer => {}
        }
        self.state = State::Content;
        joined(deltas)
    }

    /// One step in the held text; false when more text is needed.
    fn step(&mut self, deltas: &mut Vec<Delta>) -> bool {
        match &mut self.state {
            State::Start => self.start(),
            State::Reasoning => self.until_tag(THINK_END, deltas),
            State::Content => self.until_tag(CALL, deltas),
            State::Header => match header(&self.held) {
                Step::More => false,
                Step::Never if self.held.trim_start().starts_with('{') => self.go(State::Odd),
                // Somebody speaks of the tag.
                Step::Never => {
                    let lead = std::mem::take(&mut self.lead);
                    self.content(lead + CALL, deltas);
                    self.go(State::Content)
                }
                Step::Done(name, length) => {
                    self.held.drain(..length);
                    self.lead.clear();
                    self.calls += 1;
                    if self.counts() {
                        let index = self.calls - 1;
                        deltas.push(Delta::Call { index, name });
                    }
                    self.go(State::Arguments(ObjectScan::default()))
                }
            },
            State::Odd => {
                let from = self.searched.min(self.held.len());
                let Some(at) = self.held[from..].find(CALL_END) else {
                    self.searched = boundary(&self.held, self.held.len().saturating_sub(CALL_END.len()));
                    return false;
                };
                let rest = self.held.split_off(from + at + CALL_END.len());
                let mut inner = std::mem::replace(&mut self.held, rest);
                inner.truncate(from + at);
                self.searched = 0;
                self.odd_call(&inner, CALL_END, deltas);
                self.go(State::Content)
            }
            State::Arguments(scan) => {
                let (length, ended) = scan.push(&self.held);
                let text: String = self.held.drain(..length).collect();
                if !text.is_empty() && self.counts() {
                    let index = self.calls - 1;
                    deltas.push(Delta::Arguments { index, text });
                }
                ended && self.go(State::Footer)
            }
            State::Footer => match footer(&self.held, CALL_END) {
                Step::More => false,
                Step::Never => self.go(State::Content),
                Step::Done((), length) => {
                    self.held.drain(..length);
                    self.trim = true;
                    self.go(State::Content)
                }
            },
        }
    }

    fn go(&mut self, state: State) -> bool {
        self.state = state;
        true
    }

    /// Whether the latest call is one that is told.
    fn counts(&self) -> bool {
        !self.single || self.calls == 1
    }

    fn start(&mut self) -> bool {
        let text = self.held.trim_start();
        if let Some(rest) = text.strip_prefix(THINK) {
            self.held = rest.to_owned();
            self.trim = true;
            return self.go(State::Reasoning);
        }
        !THINK.starts_with(text) && self.go(State::Content)
    }

    /// Passes text on up to a tag, which changes the state.
    fn until_tag(&mut self, tag: &str, deltas: &mut Vec<Delta>) -> bool {
        if self.trim {
            let newlines = self.held.len() - self.held.trim_start_matches('\n').len();
            self.held.drain(..newlines);
            if self.held.is_empty() {
                return false;
            }
            self.trim = false;
        }
        let reasoning = self.is_reasoning();
        let watched = reasoning || self.tools;
        let found = watched.then(|| self.held.find(tag)).flatten();
        let end = match found {
            Some(at) => at,
            None if watched => undecided(&self.held, tag),
            None => self.held.len(),
        };
        let sure = if watched {
            self.held[..end].trim_end_matches('\n').len()
        } else {
            end
        };
        let text: String = self.held.drain(..sure).collect();
        let end = end - sure;
        if reasoning {
            if !text.is_empty() {
                deltas.push(Delta::Reasoning(text));
            }
        } else {
            self.content(text, deltas);
        }
        if found.is_none() {
            return false;
        }
        self.lead = self.held.drain(..end).collect();
        self.held.drain(..tag.len());
        self.trim = reasoning;
        self.go(if reasoning { State::Content } else { State::Header })
    }

    /// A call that is not in the usual form, or none at all: then it is content as it stands.
    fn odd_call(&mut self, inner: &str, end: &str, deltas: &mut Vec<Delta>) {
        let lead = std::mem::take(&mut self.lead);
        let Some((name, text)) = whole(inner) else {
            return self.content(format!("{lead}{CALL}{inner}{end}"), deltas);
        };
        self.calls += 1;
        self.trim = true;
        if self.counts() {
            let index = self.calls - 1;
            deltas.push(Delta::Call { index, name });
            deltas.push(Delta::Arguments { index, text });
        }
    }

    fn content(&mut self, text: String, deltas: &mut Vec<Delta>) {
        if !text.is_empty() {
            deltas.push(Delta::Content(text));
        }
    }
}

/// Where the text stops being sure: at what may be the beginning of the tag.
fn undecided(text: &str, tag: &str) -> usize {
    let first = boundary(text, text.len().saturating_sub(tag.len() - 1));
    let tail = &text[first..];
    let begins = tail.char_indices().map(|(at, _)| at);
    let mut begins = begins.filter(|at| tag.starts_with(&tail[*at..]));
    first + begins.next().unwrap_or(tail.len())
}

/// The next place at or after `at` where a character begins.
fn boundary(text: &str, at: usize) -> usize {
    (at..text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len())
}

/// Neighbours of one kind become one delta.
fn joined(deltas: Vec<Delta>) -> Vec<Delta> {
    let mut joined: Vec<Delta> = Vec::with_capacity(deltas.len());
    for delta in deltas {
        match (joined.last_mut(), delta) {
            (Some(Delta::Content(last)), Delta::Content(text))
            | (Some(Delta::Reasoning(last)), Delta::Reasoning(text)) => last.push_str(&text),
            (_, Delta::Reasoning(text) | Delta::Content(text)) if text.is_empty() => {}
            (_, delta) => joined.push(delta),
        }
    }
    joined
}

#[cfg(test)]
#[path = "parser_tests.rs"]
mod tests;
