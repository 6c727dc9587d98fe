//! Tokens to text, piece by piece: never a broken character, never a part of a stop string.
use super::Tokenizer;

/// What one token made ready.
#[derive(Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Text that is final; may be empty.
    pub text: String,
    /// A stop string was completed: nothing more will come.
    pub stopped: bool,
}

/// The text side of one choice.
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    stops: Vec<String>,
    include_stop: bool,
    /// The first bytes of a character whose rest has not come.
    partial: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

impl Detokenizer {
    /// `stops` must not hold empty strings.
    pub fn new(tokenizer: Tokenizer, skip_special: bool, stops: Vec<String>, include_stop: bool) -> Self {
        Self {
            tokenizer,
            skip_special,
            stops,
            include_stop,
            partial: Vec::new(),
            held: String::new(),
        }
    }

    /// Takes the next token; `watch` says whether stop strings count yet.
    pub fn push(&mut self, token: u32, watch: bool) -> Emitted {
        if !(self.skip_special && self.tokenizer.is_special(token)) {
            self.partial.extend_from_slice(self.tokenizer.bytes(token));
            let whole = whole_characters(&self.partial);
            self.held
                .push_str(&String::from_utf8_lossy(&self.partial[..whole]));
            self.partial.drain(..whole);
        }
        if watch {
            self.release()
        } else {
            Emitted {
                text: std::mem::take(&mut self.held),
                stopped: false,
            }
        }
    }

    /// What is left when no more tokens come. A part of a character is no text, as in vLLM.
    pub fn finish(&mut self) -> String {
        self.partial.clear();
        std::mem::take(&mut self.held)
    }

    fn release(&mut self) -> Emitted {
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop).map(|at| (at, stop.len())))
            .min();
        if let Some((at, length)) = found {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(if self.include_stop { at + length } else { at });
            return Emitted { text, stopped: true };
        }
        let keep = self
            .held
            .char_indices()
            .map(|(at, _)| at)
            .find(|at| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..])));
        let rest = self.held.split_off(keep.unwrap_or(self.held.len()));
        Emitted {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }
}

/// How many of the bytes can be turned into text now: all but a character that may still be completed.
fn whole_characters(bytes: &[u8]) -> usize {
    let mut done = 0;
    loop {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(_) => return bytes.len(),
            Err(error) => match error.error_len() {
                Some(wrong) => done += error.valid_up_to() + wrong,
                None => return done + error.valid_up_to(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(bytes: &[u8], stops: &[&str], include_stop: bool) -> Vec<String> {
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut text = Detokenizer::new(Tokenizer::of_bytes().unwrap(), true, stops, include_stop);
        let mut pieces = Vec::new();
        for byte in bytes {
            let emitted = text.push(u32::from(*byte), true);
            pieces.push(emitted.text);
            if emitted.stopped {
                return pieces;
            }
        }
        pieces.push(text.finish());
        pieces
    }

    #[test]
    fn a_character_comes_whole() {
        assert_eq!(
            pieces("é🙂".as_bytes(), &[], false),
            ["", "é", "", "", "", "🙂", ""]
        );
        assert_eq!(pieces(&[b'a', 0xf0, 0x9f], &[], false), ["a", "", "", ""]);
        assert_eq!(
            pieces(&[0x80, 0x80, b'b'], &[], false),
            ["\u{fffd}", "\u{fffd}", "b", ""]
        );
    }

    #[test]
    fn special_tokens_are_left_out_unless_asked_for() {
        for (skip, expected) in [(true, ""), (false, "<|im_end|>")] {
            let mut text = Detokenizer::new(Tokenizer::of_bytes().unwrap(), skip, Vec::new(), false);
            assert_eq!(text.push(257, true).text, expected);
        }
    }

    #[test]
    fn a_stop_string_is_held_back_until_it_is_sure() {
        assert_eq!(pieces(b"a</b", &["</a>"], false), ["a", "", "", "</b", ""]);
        assert_eq!(pieces(b"xENDy", &["END"], false), ["x", "", "", ""]);
        assert_eq!(pieces(b"xENDy", &["END"], true), ["x", "", "", "END"]);
        assert_eq!(pieces(b"aab!", &["ab!"], false).concat(), "a");
        assert_eq!(pieces(b"xEN", &["END"], false).concat(), "xEN");
    }

    proptest! {
        #[test]
        fn pieces_add_up_to_the_lossy_text_of_whole_characters(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let whole = &bytes[..whole_characters(&bytes)];
            prop_assert_eq!(pieces(&bytes, &[], false).concat(), String::from_utf8_lossy(whole));
        }

        #[test]
        fn a_stop_ends_the_text_where_a_search_finds_it(text in "[ab]{0,24}", stop in "[ab]{1,4}") {
            let expected = text.find(&stop).map_or(text.as_str(), |at| &text[..at]);
            prop_assert_eq!(pieces(text.as_bytes(), &[&stop], false).concat(), expected);
        }
    }
}
