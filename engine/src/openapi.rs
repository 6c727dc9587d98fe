//! The API document (OpenAPI 3.1): routes from the router's table, fields that are accepted without effect from the
//! parser's, schemas of the rest from `openapi/`.
mod answers;
mod requests;

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::{
    http::{Guard, ROUTES, Route},
    wire::{INERT, NEUTRAL},
};

/// The document as it is served and committed.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", document()));
    &TEXT
}

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        // axum's mark of the rest of a path is not OpenAPI's.
        paths.insert(
            route.path.replace("{*", "{"),
            json!({route.method: operation(route)}),
        );
    }
    let mut schemas = answers::schemas();
    schemas.extend(
        requests::schemas()
            .into_iter()
            .map(|(name, schema)| (name, with_accepted(schema))),
    );
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "qwen-engine",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Qwen3 models over OpenAI's API, with vLLM's further fields. A field that is not listed is refused with 400.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "A key of --api-key or --api-key-file; without any the server is open."},
                "metricsToken": {"type": "http", "scheme": "bearer", "description": "A token of --metrics-token-file; without the flag /metrics is open."},
            },
        },
    })
}

/// A reference to a schema.
fn of(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn operation(route: &Route) -> Value {
    let (name, summary) = route.about;
    let content: Map<String, Value> = route
        .answers
        .iter()
        .map(|(kind, schema)| ((*kind).to_owned(), json!({"schema": of(schema)})))
        .collect();
    let error =
        |text: &str| json!({"description": text, "content": {"application/json": {"schema": of("Error")}}});
    let mut parameters = vec![header(
        "X-Request-Id",
        "string",
        "An id for logs and for the answer's id; comes back as a header.",
    )];
    if let Some((_, name)) = route.path.split_once("{*") {
        let name = name.trim_end_matches('}');
        parameters.push(json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}));
    }
    if route.guard == Guard::ApiKey && route.body.is_some() {
        let text = "Seconds within which the request must be answered; may only shorten --request-timeout.";
        parameters.push(header("X-Request-Timeout", "number", text));
    }
    let mut operation = json!({
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "responses": {"200": {"description": "The answer.", "content": content}},
    });
    if route.path.contains('{') {
        operation["responses"]["404"] = error("There is no such thing here.");
    }
    if let Some(body) = route.body {
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": of(body)}}});
        operation["responses"]["4XX"] = error(
            "The request cannot be honoured; the message says why and what would work. 429 and 503 say in Retry-After when to come back.",
        );
        operation["responses"]["5XX"] = error("The server failed, loads its model or shuts down.");
    }
    match route.path {
        "/health" | "/ready" => {
            operation["responses"]["503"] =
                json!({"description": "Not so; the body says why.", "content": content})
        }
        _ => {}
    }
    match route.guard {
        Guard::Open => {}
        Guard::ApiKey => operation["security"] = json!([{"apiKey": []}, {}]),
        Guard::MetricsToken => operation["security"] = json!([{"metricsToken": []}, {}]),
    }
    if route.guard != Guard::Open {
        operation["responses"]["401"] = error("The key is missing or wrong.");
    }
    operation
}

fn header(name: &str, kind: &str, text: &str) -> Value {
    json!({"name": name, "in": "header", "required": false, "description": text, "schema": {"type": kind}})
}

/// Adds the fields that every request may carry without effect.
fn with_accepted(mut schema: Value) -> Value {
    let inert = INERT
        .iter()
        .map(|name| (*name, json!({"description": "Accepted; changes nothing here."})));
    let neutral = NEUTRAL.iter().map(|(name, values)| {
        let values: Vec<Value> = values.iter().filter_map(|text| serde_json::from_str(text).ok()).chain([Value::Null]).collect();
        (*name, json!({"enum": values, "description": "Not supported; only values that ask for nothing are accepted."}))
    });
    if let Some(properties) = schema["properties"].as_object_mut() {
        for (name, accepted) in inert.chain(neutral) {
            properties.entry(name).or_insert(accepted);
        }
    }
    schema
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::wire::{
        ApiError, ChatRequest, CompletionRequest, Defaults, DetokenizeRequest, EmbeddingsRequest, Fields,
        TokenizeRequest, asked,
    };

    /// What a parser asks for, over all these bodies.
    fn asked_for<T>(parse: impl Fn(Fields) -> Result<T, ApiError>, bodies: &[&str]) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for body in bodies {
            assert!(parse(Fields::parse(body.as_bytes()).unwrap()).is_ok(), "{body}");
            names.extend(asked());
        }
        names
    }

    #[test]
    fn the_document_has_every_field_that_the_parsers_take() {
        let defaults = Defaults::default();
        let chat = r#"{"messages": [{"role": "user", "content": "Hi"}]}"#;
        let taken = [
            (
                "ChatCompletionRequest",
                asked_for(|fields| ChatRequest::parse(fields, &defaults), &[chat]),
            ),
            (
                "CompletionRequest",
                asked_for(
                    |fields| CompletionRequest::parse(fields, &defaults),
                    &[r#"{"prompt": "a"}"#],
                ),
            ),
            (
                "EmbeddingRequest",
                asked_for(
                    |fields| EmbeddingsRequest::parse(fields, 4),
                    &[r#"{"input": "a"}"#],
                ),
            ),
            (
                "TokenizeRequest",
                asked_for(
                    |fields| TokenizeRequest::parse(fields, &defaults),
                    &[chat, r#"{"prompt": "a"}"#],
                ),
            ),
            (
                "DetokenizeRequest",
                asked_for(DetokenizeRequest::parse, &[r#"{"tokens": []}"#]),
            ),
        ];
        let told = requests::schemas();
        assert_eq!(told.len(), taken.len());
        for (name, taken) in taken {
            let properties = told[name]["properties"].as_object().unwrap();
            let told: BTreeSet<String> = properties.keys().cloned().collect();
            assert_eq!(taken, told, "{name}");
        }
    }

    #[test]
    fn every_reference_leads_to_a_schema_and_every_schema_is_used() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let there = schemas.keys().map(|name| format!("#/components/schemas/{name}"));
        assert_eq!(found, there.collect());
    }
}
