//! The documents name what exists: files, metrics, condition reasons, alerts.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"))
}

/// Texts between two markers, everywhere in a text.
fn between<'a>(text: &'a str, open: &str, close: char) -> BTreeSet<&'a str> {
    text.split(open)
        .skip(1)
        .filter_map(|rest| rest.split_once(close))
        .map(|(inside, _)| inside)
        .collect()
}

/// Every name that `source` defines must stand in `document`.
fn all_told(names: &BTreeSet<&str>, document: &str) -> Result<()> {
    let text = read(document)?;
    let missing: Vec<_> = names.iter().filter(|name| !text.contains(**name)).collect();
    ensure!(missing.is_empty(), "{document} does not tell of {missing:?}");
    Ok(())
}

#[test]
fn every_metric_of_engine_and_operator_is_told() -> Result<()> {
    let engine = read("engine/src/metrics/families.rs")?;
    let operator = read("operator/src/metrics.rs")?;
    let prefixes = ["vllm:", "qwen:", "http_"];
    let name = |text: &&str| prefixes.iter().any(|prefix| text.starts_with(prefix)) && !text.contains(' ');
    let mut names: BTreeSet<_> = engine.split('"').filter(name).collect();
    ensure!(
        names.len() > 30,
        "only {} families were found: has their table another form?",
        names.len()
    );
    let own: BTreeSet<_> = operator
        .split('"')
        .filter(|text| text.starts_with("qwen_operator_") && !text.contains('{'))
        .collect();
    ensure!(
        own.len() > 5,
        "only {} metrics of the operator were found",
        own.len()
    );
    names.extend(own);
    all_told(&names, "docs/metrics.md")
}

#[test]
fn every_condition_reason_is_told() -> Result<()> {
    let source = read("operator/src/api/conditions.rs")?;
    let names = between(&source, ": &str = \"", '"');
    ensure!(
        names.len() > 20,
        "only {} conditions and reasons were found",
        names.len()
    );
    all_told(&names, "docs/conditions.md")
}

#[test]
fn every_alert_is_told_in_both_languages() -> Result<()> {
    let source = read("operator/src/plan/alerts.rs")?;
    let names = between(&source, "name: \"", '"');
    ensure!(names.len() > 10, "only {} alerts were found", names.len());
    all_told(&names, "README.md")?;
    all_told(&names, "README.zh-CN.md")
}

#[test]
fn every_alert_has_a_runbook_in_both_languages() -> Result<()> {
    let sources = [
        read("operator/src/plan/alerts.rs")?,
        read("operator/src/own_alerts.rs")?,
    ];
    let names: BTreeSet<_> = sources
        .iter()
        .flat_map(|source| between(source, "name: \"", '"'))
        .collect();
    ensure!(names.len() > 20, "only {} alerts were found", names.len());
    let index = read("docs/runbooks/README.md")?;
    for name in names {
        let path = format!("docs/runbooks/{name}.md");
        let page = read(&path)?;
        ensure!(
            page.starts_with(&format!("# {name}\n")),
            "{path} does not begin with # {name}"
        );
        ensure!(page.contains("\n## 中文\n"), "{path} has no part ## 中文");
        ensure!(
            index.contains(&format!("]({name}.md)")),
            "docs/runbooks/README.md does not lead to {name}.md"
        );
        for link in between(&page, "](", ')') {
            ensure!(
                root().join("docs/runbooks").join(link).exists(),
                "{path} names {link}, which does not exist"
            );
        }
    }
    Ok(())
}

#[test]
fn files_that_the_documents_name_exist() -> Result<()> {
    let folders = [
        "operator/",
        "engine/",
        "charts/",
        "crds/",
        "examples/",
        "tests/",
        "xtask/",
        "docs/",
        "./",
    ];
    let mut named = 0;
    for document in [
        "README.md",
        "README.zh-CN.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/troubleshooting.md",
    ] {
        let text = read(document)?;
        let here = root().join(document);
        let here = here.parent().context("a document outside of any folder")?;
        let linked = between(&text, "](", ')')
            .into_iter()
            .filter(|link| !link.contains("://"))
            .map(|link| here.join(link));
        let quoted = text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|code| folders.iter().any(|folder| code.starts_with(folder)))
            .filter(|code| !code.contains(['*', ' ', '{', '<']))
            .map(|code| root().join(code));
        for path in linked.chain(quoted) {
            named += 1;
            ensure!(
                path.exists(),
                "{document} names {}, which does not exist",
                path.display()
            );
        }
    }
    ensure!(named > 30, "only {named} names of files were found");
    Ok(())
}

#[test]
fn tests_that_the_documents_name_exist() -> Result<()> {
    let mut code = String::new();
    for folder in ["operator", "engine", "tests", "xtask"] {
        append_code(&root().join(folder), &mut code)?;
    }
    let text = read("ARCHITECTURE.md")?;
    let named = between(&text, "test `", '`');
    ensure!(named.len() > 20, "only {} names of tests were found", named.len());
    let missing: Vec<_> = named
        .iter()
        .filter(|name| !code.contains(&format!("fn {name}(")))
        .collect();
    ensure!(
        missing.is_empty(),
        "ARCHITECTURE.md names tests that do not exist: {missing:?}"
    );
    Ok(())
}

fn append_code(folder: &Path, code: &mut String) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            append_code(&path, code)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            code.push_str(&std::fs::read_to_string(path)?);
        }
    }
    Ok(())
}
