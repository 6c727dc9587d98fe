//! The readers of what outsiders send, each as a function of bytes that must not panic, hang or take memory without bound.
use std::sync::LazyLock;

use qwen_engine::{
    model::{GgufModel, config::Qwen3Config, shapes},
    parse::{Delta, Parser, Thinking},
    source::shards,
    template::ChatTemplate,
    wire::{ChatRequest, CompletionRequest, Defaults, EmbeddingsRequest, Fields},
};
use serde_json::{Map, Value};

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also the folder of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("request", request),
    ("conversation", conversation),
    ("template", template),
    ("answer", answer),
    ("checkpoint", checkpoint),
    ("config", config),
];

/// A body of one of the endpoints; the first byte says which.
fn request(data: &[u8]) {
    let Some((endpoint, body)) = data.split_first() else {
        return;
    };
    let parsed = Fields::parse(body).and_then(|fields| match endpoint % 3 {
        0 => ChatRequest::parse(fields, &Defaults::default()).map(drop),
        1 => CompletionRequest::parse(fields, &Defaults::default()).map(drop),
        _ => EmbeddingsRequest::parse(fields, 1024).map(drop),
    });
    if let Err(error) = parsed {
        assert!(!error.to_string().is_empty());
    }
}

static QWEN3: LazyLock<Option<ChatTemplate>> = LazyLock::new(|| {
    let config = include_str!("../../../examples/nano/model/tokenizer_config.json");
    let config: Value = serde_json::from_str(config).ok()?;
    ChatTemplate::new(config["chat_template"].as_str()?).ok()
});

/// A chat's body, rendered by Qwen3's template.
fn conversation(data: &[u8]) {
    let parsed = Fields::parse(data).and_then(|fields| ChatRequest::parse(fields, &Defaults::default()));
    assert!(QWEN3.is_some(), "the demo model has a chat template");
    let (Ok(chat), Some(template)) = (parsed, &*QWEN3) else {
        return;
    };
    let _ = template.render(&chat.messages, &chat.tools.shown, &chat.template_kwargs);
}

/// A template, and after a zero byte the body of a chat.
fn template(data: &[u8]) {
    let (text, body) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &br#"{"messages": [{"role": "user", "content": "Hi"}]}"#[..]),
    };
    let Ok(template) = ChatTemplate::new(&String::from_utf8_lossy(text)) else {
        return;
    };
    let parsed = Fields::parse(body).and_then(|fields| ChatRequest::parse(fields, &Defaults::default()));
    let (messages, variables) = parsed.map_or((Vec::new(), Map::new()), |chat| {
        (chat.messages, chat.template_kwargs)
    });
    let _ = template.render(&messages, &[], &variables);
}

/// What a model wrote, in pieces; what comes out must not depend on them. The first byte says what is looked for, the
/// second how long the pieces are.
fn answer(data: &[u8]) {
    let [options, cuts, text @ ..] = data else { return };
    let text = String::from_utf8_lossy(text);
    let thinking = match options % 3 {
        0 => Thinking::Never,
        1 => Thinking::MayBegin,
        _ => Thinking::Begun,
    };
    let parser = Parser::new(thinking, options & 4 != 0, options & 8 != 0);
    let (mut whole, mut cut) = (parser.clone(), parser);
    let mut expected = whole.push(&text);
    expected.extend(whole.finish());
    let mut found = Vec::new();
    let mut rest = &*text;
    let mut length = usize::from(*cuts);
    while !rest.is_empty() {
        length = (length * 7 + 3) % (usize::from(*cuts) + 2) + 1;
        let end = (length..=rest.len()).find(|at| rest.is_char_boundary(*at));
        let (piece, next) = rest.split_at(end.unwrap_or(rest.len()));
        found.extend(cut.push(piece));
        rest = next;
    }
    found.extend(cut.finish());
    assert_eq!(joined(found), joined(expected));
}

/// Neighbours of one kind made one.
fn joined(deltas: Vec<Delta>) -> Vec<Delta> {
    let mut joined: Vec<Delta> = Vec::new();
    for delta in deltas {
        match (joined.last_mut(), &delta) {
            (Some(Delta::Content(last)), Delta::Content(text))
            | (Some(Delta::Reasoning(last)), Delta::Reasoning(text))
            | (Some(Delta::Arguments { text: last, .. }), Delta::Arguments { text, .. }) => {
                last.push_str(text)
            }
            _ => joined.push(delta),
        }
    }
    joined
}

/// A file of weights, safetensors or GGUF, up to what its header says.
fn checkpoint(data: &[u8]) {
    let _ = shapes(data);
    if let Ok(model) = GgufModel::parse(data) {
        config(model.config.as_bytes());
        if let Some(template) = model.chat_template {
            let _ = ChatTemplate::new(&template);
        }
    }
}

/// A config.json, or an index of safetensors.
fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = shards(&text);
    if let Ok(config) = Qwen3Config::parse(&text) {
        assert!(config.parameters() > 0);
    }
}
