//! The fields of tool calling: `tools`, `tool_choice` and `parallel_tool_calls`.
use serde_json::Value;

use super::{ApiError, Fields};
use crate::parse::Function;

/// Most characters of a function's name, as OpenAI has it.
const LONGEST_NAME: usize = 64;

/// Which functions the answer may or must call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// It calls none.
    #[default]
    None,
    /// The model decides.
    Auto,
    /// It calls at least one.
    Required,
    /// It calls the one of this name, once.
    Named(String),
}

/// What a chat may call.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tools {
    /// The tools as the model's template shows them.
    pub shown: Vec<Value>,
    /// The same as grammars need them.
    pub functions: Vec<Function>,
    /// Which of them.
    pub choice: ToolChoice,
    /// Whether more than one call may come.
    pub parallel: bool,
}

/// Most functions of a request: names are compared with each other.
const MOST_TOOLS: usize = 1024;

impl Tools {
    /// Takes the fields out. Errors name what is wrong with which tool.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        for (old, new) in [("functions", "tools"), ("function_call", "tool_choice")] {
            if fields.take::<Value>(old)?.is_some() {
                let text = format!(
                    "`{old}` is the form that OpenAI replaced in 2023 and is not supported; send `{new}`, where each function is {{\"type\": \"function\", \"function\": …}}."
                );
                return Err(ApiError::invalid(old, text));
            }
        }
        let given: Option<Vec<Value>> = fields.take("tools")?;
        let choice = fields.take::<Value>("tool_choice")?;
        if given.as_ref().is_some_and(|tools| tools.len() > MOST_TOOLS) {
            return Err(wrong(
                "tools",
                &format!("has more than {MOST_TOOLS} functions; send fewer"),
            ));
        }
        let parallel = fields.take("parallel_tool_calls")?.unwrap_or(true);
        if given.is_none() && choice.as_ref().is_some_and(|choice| choice != "none") {
            return Err(ApiError::invalid("tool_choice", "`tool_choice` needs `tools`."));
        }
        let mut tools = Self {
            parallel,
            ..Self::default()
        };
        for (at, tool) in given.into_iter().flatten().enumerate() {
            let place = format!("tools[{at}]");
            let (shown, function) = read_tool(&place, tool)?;
            if tools.functions.iter().any(|other| other.name == function.name) {
                return Err(wrong(
                    &format!("{place}.function.name"),
                    &format!(
                        "is {:?} again; give each function a name of its own",
                        function.name
                    ),
                ));
            }
            tools.shown.push(shown);
            tools.functions.push(function);
        }
        tools.choice = read_choice(choice, &tools.functions)?;
        Ok(tools)
    }

    /// The functions that the answer may call.
    pub fn callable(&self) -> Vec<&Function> {
        let fits = |function: &&Function| match &self.choice {
            ToolChoice::None => false,
            ToolChoice::Auto | ToolChoice::Required => true,
            ToolChoice::Named(name) => function.name == *name,
        };
        self.functions.iter().filter(fits).collect()
    }

    /// Whether at most one call may come.
    pub fn single(&self) -> bool {
        !self.parallel || matches!(self.choice, ToolChoice::Named(_))
    }
}

fn wrong(place: &str, what: &str) -> ApiError {
    ApiError::invalid(place, format!("`{place}` {what}."))
}

fn read_tool(place: &str, mut tool: Value) -> Result<(Value, Function), ApiError> {
    match tool["type"].as_str() {
        Some("function") => {}
        _ => {
            let what = format!("is {} and must be \"function\"", tool["type"]);
            return Err(wrong(&format!("{place}.type"), &what));
        }
    }
    let place = format!("{place}.function");
    let Some(function) = tool["function"].as_object_mut() else {
        return Err(wrong(&place, "must be an object with a name"));
    };
    let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
    // OpenAI's names, and the dots that vLLM's users have.
    let fits = |char: char| char.is_ascii_alphanumeric() || "_-.".contains(char);
    if !(1..=LONGEST_NAME).contains(&name.len()) || !name.chars().all(fits) {
        let what = format!("must be 1 to {LONGEST_NAME} letters, digits, _, - or .");
        return Err(wrong(&format!("{place}.name"), &what));
    }
    let name = name.to_owned();
    // It tells the server what to do, and the model nothing.
    let strict = match function.shift_remove("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(strict)) => strict,
        Some(_) => return Err(wrong(&format!("{place}.strict"), "must be true or false")),
    };
    if function
        .get("description")
        .is_some_and(|text| !text.is_string() && !text.is_null())
    {
        return Err(wrong(&format!("{place}.description"), "must be a string"));
    }
    let parameters = match function.get("parameters") {
        None | Some(Value::Null) => None,
        Some(schema @ Value::Object(_)) if matches!(schema["type"].as_str(), None | Some("object")) => {
            Some(schema.clone())
        }
        Some(_) => {
            let what = "must be a JSON schema of an object: {\"type\": \"object\", \"properties\": …}";
            return Err(wrong(&format!("{place}.parameters"), what));
        }
    };
    let function = Function {
        name,
        parameters,
        strict,
    };
    Ok((tool, function))
}

fn read_choice(choice: Option<Value>, functions: &[Function]) -> Result<ToolChoice, ApiError> {
    const FIELD: &str = "tool_choice";
    let Some(choice) = choice else {
        return Ok(match functions {
            [] => ToolChoice::None,
            _ => ToolChoice::Auto,
        });
    };
    match (choice.as_str(), choice["type"].as_str()) {
        (Some("none"), _) => Ok(ToolChoice::None),
        (Some("auto"), _) if functions.is_empty() => Ok(ToolChoice::None),
        (Some("auto"), _) => Ok(ToolChoice::Auto),
        (Some("required"), _) if functions.is_empty() => {
            Err(wrong(FIELD, "is \"required\" and `tools` is empty"))
        }
        (Some("required"), _) => Ok(ToolChoice::Required),
        (None, Some("function")) => {
            let Some(name) = choice.pointer("/function/name").and_then(Value::as_str) else {
                return Err(wrong(
                    FIELD,
                    "must name a function: {\"type\": \"function\", \"function\": {\"name\": …}}",
                ));
            };
            if functions.iter().all(|function| function.name != name) {
                return Err(wrong(FIELD, &format!("names {name:?}, which is not in `tools`")));
            }
            Ok(ToolChoice::Named(name.to_owned()))
        }
        (None, Some("allowed_tools")) => Err(wrong(
            FIELD,
            "of type \"allowed_tools\" is not supported; send only the allowed functions in `tools`",
        )),
        _ => Err(wrong(
            FIELD,
            &format!(
                "is {choice} and must be \"none\", \"auto\", \"required\" or {{\"type\": \"function\", \"function\": {{\"name\": …}}}}"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn take(body: Value) -> Result<Tools, ApiError> {
        let mut fields = Fields::from_value(body).unwrap();
        let tools = Tools::take(&mut fields)?;
        fields.finish()?;
        Ok(tools)
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object"}, "strict": true}})
    }

    #[test]
    fn every_choice_is_read() {
        let both = json!([tool("a.b"), tool("c")]);
        let named = json!({"type": "function", "function": {"name": "c"}});
        for (body, choice, callable) in [
            (json!({}), ToolChoice::None, 0),
            (json!({"tool_choice": "none"}), ToolChoice::None, 0),
            (json!({"tools": [], "tool_choice": "auto"}), ToolChoice::None, 0),
            (json!({"tools": both}), ToolChoice::Auto, 2),
            (json!({"tools": both, "tool_choice": "none"}), ToolChoice::None, 0),
            (
                json!({"tools": both, "tool_choice": "required"}),
                ToolChoice::Required,
                2,
            ),
            (
                json!({"tools": both, "tool_choice": named}),
                ToolChoice::Named("c".to_owned()),
                1,
            ),
        ] {
            let tools = take(body.clone()).unwrap();
            assert_eq!(tools.choice, choice, "{body}");
            assert_eq!(tools.callable().len(), callable, "{body}");
        }
        let tools = take(json!({"tools": both, "parallel_tool_calls": false})).unwrap();
        assert!(tools.single() && tools.functions[0].strict);
        let shown = json!({"type": "function", "function": {"name": "c", "description": "d", "parameters": {"type": "object"}}});
        assert_eq!(tools.shown[1], shown);
    }

    #[test]
    fn what_is_malformed_is_named() {
        let with = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
        let one = json!([tool("a")]);
        for (body, param, word) in [
            (json!({"tools": 1}), "tools", "malformed"),
            (
                json!({"tools": [{"type": "custom"}]}),
                "tools[0].type",
                "\"custom\"",
            ),
            (
                json!({"tools": [{"type": "function"}]}),
                "tools[0].function",
                "an object",
            ),
            (with(json!({})), "tools[0].function.name", "1 to 64"),
            (with(json!({"name": "a b"})), "tools[0].function.name", "1 to 64"),
            (
                with(json!({"name": "a".repeat(65)})),
                "tools[0].function.name",
                "1 to 64",
            ),
            (
                with(json!({"name": "a", "strict": 1})),
                "tools[0].function.strict",
                "true or false",
            ),
            (
                with(json!({"name": "a", "description": 1})),
                "tools[0].function.description",
                "a string",
            ),
            (
                with(json!({"name": "a", "parameters": []})),
                "tools[0].function.parameters",
                "JSON schema",
            ),
            (
                with(json!({"name": "a", "parameters": {"type": "array"}})),
                "tools[0].function.parameters",
                "an object",
            ),
            (
                json!({"tools": [tool("a"), tool("a")]}),
                "tools[1].function.name",
                "\"a\" again",
            ),
            (json!({"tool_choice": "auto"}), "tool_choice", "needs `tools`"),
            (
                json!({"tools": [], "tool_choice": "required"}),
                "tool_choice",
                "empty",
            ),
            (
                json!({"tools": one, "tool_choice": "any"}),
                "tool_choice",
                "\"any\"",
            ),
            (
                json!({"tools": one, "tool_choice": {"type": "function"}}),
                "tool_choice",
                "name a function",
            ),
            (
                json!({"tools": one, "tool_choice": {"type": "function", "function": {"name": "b"}}}),
                "tool_choice",
                "\"b\"",
            ),
            (
                json!({"tools": one, "tool_choice": {"type": "allowed_tools"}}),
                "tool_choice",
                "allowed functions in `tools`",
            ),
            (json!({"functions": []}), "functions", "send `tools`"),
            (
                json!({"function_call": "auto"}),
                "function_call",
                "send `tool_choice`",
            ),
        ] {
            let error = take(body.clone()).unwrap_err();
            assert!(error.to_string().contains(word), "{body}: {error}");
            assert_eq!(error.body()["error"]["param"], param, "{body}");
        }
    }
}
