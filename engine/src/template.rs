//! The model's chat template, rendered as Hugging Face transformers renders it.
use std::{io, sync::Arc};

use minijinja::{
    Environment, Error, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::{Map, ser};

use crate::wire::{Ending, Message};

const NAME: &str = "chat";
/// Marks where a message is left open, as transformers does; its last space tells whether the template trims.
const OPEN: &str = "<the message goes on here> ";
/// Many times what conversations of the model's full length take; ends a template that loops without end. An
/// instruction costs one, and so do 64 bytes that it makes, which bounds the memory to 640 MB.
const FUEL: u64 = 10_000_000;

/// Why a template cannot be used or refused a conversation.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// Not Jinja.
    #[error("the chat template has an error: {0}")]
    Syntax(String),
    /// The template raised an error, or could not be evaluated on these messages.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
}

/// A parsed chat template; clones share it.
#[derive(Clone)]
pub struct ChatTemplate(Arc<Environment<'static>>);

impl ChatTemplate {
    /// Parses a template. Errors: not Jinja.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(
            syntax
                .build()
                .map_err(|error| TemplateError::Syntax(error.to_string()))?,
        );
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| TemplateError::Syntax(error.to_string()))?;
        Ok(Self(Arc::new(environment)))
    }

    /// The prompt for the assistant's next message. `variables` are the request's `chat_template_kwargs`.
    pub fn render(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        variables: &Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        self.render_with(messages, tools, variables, Ending::Reply)
    }

    /// The same with another ending.
    pub fn render_with(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        variables: &Map<String, serde_json::Value>,
        ending: Ending,
    ) -> Result<String, TemplateError> {
        let refused = |error: Error| {
            TemplateError::Refused(error.detail().map_or_else(|| error.to_string(), str::to_owned))
        };
        let template = self.0.get_template(NAME).map_err(refused)?;
        let mut messages = std::borrow::Cow::Borrowed(messages);
        if ending == Ending::Open
            && let Some(serde_json::Value::String(content)) = messages
                .to_mut()
                .last_mut()
                .and_then(|message| message.get_mut("content"))
        {
            content.push_str(OPEN);
        }
        // Python's None, which is what templates of transformers get.
        let tools = (!tools.is_empty()).then_some(Serde(tools));
        // Names before `..` win: a request cannot replace its own messages.
        let context = context! { messages => Serde(&*messages), tools, add_generation_prompt => ending == Ending::Reply, ..Serde(variables) };
        let text = template.render(context).map_err(refused)?;
        match ending {
            Ending::Reply | Ending::Closed => Ok(text),
            Ending::Open => cut(text),
        }
    }
}

/// Cuts the text off where the last message is open.
fn cut(mut text: String) -> Result<String, TemplateError> {
    let Some(at) = text.rfind(OPEN.trim_end()) else {
        let reason = "it leaves the last message out, which continue_final_message is to continue";
        return Err(TemplateError::Refused(reason.to_owned()));
    };
    let trimmed = !text[at..].starts_with(OPEN);
    text.truncate(at);
    if trimmed {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// Python's `json.dumps(value, ensure_ascii=False)`; minijinja's own filter escapes for HTML.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Vec::new();
    let done = match indent {
        Some(width) => value.serialize(&mut ser::Serializer::with_formatter(
            &mut out,
            ser::PrettyFormatter::with_indent(" ".repeat(width.min(16)).as_bytes()),
        )),
        None => value.serialize(&mut ser::Serializer::with_formatter(&mut out, Spaced)),
    };
    done.map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?;
    String::from_utf8(out).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// Python's separators: a space after comma and colon.
struct Spaced;

impl ser::Formatter for Spaced {
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Uses what Qwen3's template uses: reversed slices, namespaces, Python's string methods, `is defined`, tojson.
    const LIKE_QWEN3: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, search=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.search and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.search = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system") %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- else %}
        {{- raise_exception('no such role: ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;

    fn render(messages: serde_json::Value, variables: serde_json::Value) -> Result<String, TemplateError> {
        render_with(messages, &[], variables)
    }

    fn render_with(
        messages: serde_json::Value,
        tools: &[serde_json::Value],
        variables: serde_json::Value,
    ) -> Result<String, TemplateError> {
        let messages: Vec<Message> = serde_json::from_value(messages).unwrap();
        let template = ChatTemplate::new(LIKE_QWEN3).unwrap();
        template.render(&messages, tools, variables.as_object().unwrap())
    }

    #[test]
    fn a_conversation_with_thoughts_and_tools() {
        let text = render_with(
            json!([
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "How warm?"},
                {"role": "assistant", "content": "<think>\nAsk.\n</think>\n\n", "tool_calls": [{"function": {"name": "warmth", "arguments": {"city": "Köln", "at": [1, 2]}}}]},
                {"role": "tool", "content": "20"},
                {"role": "tool", "content": "<21>"},
            ]),
            &[json!({"a": "<b>", "c": [1, 2]})],
            json!({"tools": [1]}),
        )
        .unwrap();
        let expected = "<|im_start|>system\n{\"a\": \"<b>\", \"c\": [1, 2]}<|im_end|>\n\
            <|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHow warm?<|im_end|>\n\
            <|im_start|>assistant\n<think>\nAsk.\n</think>\n\n<tool_call>\n{\"name\": \"warmth\", \"arguments\": {\"city\": \"Köln\", \"at\": [1, 2]}}\n</tool_call><|im_end|>\n\
            <|im_start|>user\n<tool_response>\n20\n</tool_response>\n<tool_response>\n<21>\n</tool_response><|im_end|>\n\
            <|im_start|>assistant\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn thinking_can_be_switched_off() {
        let ask = json!([{"role": "user", "content": "Hi"}]);
        let open = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(render(ask.clone(), json!({})).unwrap(), open);
        assert_eq!(
            render(ask.clone(), json!({"enable_thinking": true})).unwrap(),
            open
        );
        assert_eq!(
            render(ask, json!({"enable_thinking": false})).unwrap(),
            format!("{open}<think>\n\n</think>\n\n")
        );
    }

    #[test]
    fn the_last_message_can_be_left_open_or_closed() {
        let messages = |content: &str| -> Vec<Message> {
            let messages =
                json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]);
            serde_json::from_value(messages).unwrap()
        };
        let template = ChatTemplate::new(LIKE_QWEN3).unwrap();
        let render =
            |content: &str, ending| template.render_with(&messages(content), &[], &Map::new(), ending);
        let begin = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
        for (content, ending, rest) in [
            ("Hello wor", Ending::Open, "Hello wor"),
            ("Hello ", Ending::Open, "Hello "),
            ("Hello", Ending::Closed, "Hello<|im_end|>\n"),
            ("Hello", Ending::Reply, "Hello<|im_end|>\n<|im_start|>assistant\n"),
        ] {
            assert_eq!(render(content, ending).unwrap(), format!("{begin}{rest}"));
        }
        let trims =
            ChatTemplate::new("{% for message in messages %}[{{ message.content | trim }}]{% endfor %}");
        let text = trims
            .unwrap()
            .render_with(&messages("Hello "), &[], &Map::new(), Ending::Open);
        assert_eq!(text.unwrap(), "[Hi][Hello");
        let first = ChatTemplate::new("{{ messages[0].content }}").unwrap();
        assert!(
            first
                .render_with(&messages("Hello"), &[], &Map::new(), Ending::Open)
                .is_err()
        );
    }

    #[test]
    fn what_the_template_raises_reaches_the_client() {
        let error = render(json!([{"role": "judge", "content": "Hi"}]), json!({})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the model's chat template refuses these messages: no such role: judge"
        );
        assert!(matches!(
            ChatTemplate::new("{% if %}"),
            Err(TemplateError::Syntax(_))
        ));
    }

    #[test]
    fn helpers_of_transformers() {
        let render = |source: &str| {
            ChatTemplate::new(source)
                .unwrap()
                .render(&[], &[], &Map::new())
                .unwrap()
        };
        assert_eq!(
            render("{{ {'a': [1, true, none]} | tojson }}"),
            r#"{"a": [1, true, null]}"#
        );
        assert_eq!(render("{{ strftime_now('%Y')[:2] }}"), "20");
        assert_eq!(render("{% if true %}\n  x\n{% endif %}\n"), "  x\n");
    }
}
