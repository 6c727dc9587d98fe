//! Every example, planned: what the operator would make of it, object by object.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly, its helpers too
use qwen_operator::render;

#[test]
fn examples_become_these_objects() {
    insta::glob!("../../examples", "*.yaml", |path| {
        let text = std::fs::read_to_string(path).unwrap();
        let plans = render::plans(&text, "qwen-engine:test").unwrap();
        let objects: String = plans
            .iter()
            .map(|plan| render::documents(plan).unwrap())
            .collect();
        insta::assert_snapshot!(objects);
    });
}

#[test]
fn a_document_that_is_no_service_is_named() {
    let error = render::plans("apiVersion: v1\nkind: Pod\nspec: {containers: []}\n", "image").unwrap_err();
    assert!(
        error.to_string().starts_with("document 1 is not a QwenService: "),
        "{error}"
    );
}
