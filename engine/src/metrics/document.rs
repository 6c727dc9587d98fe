//! The tables of docs/metrics.md, from the table of families.
use std::fmt::Write;

use super::families::{GROUPS, LEFT_OUT, LEGACY};

/// Every family under its heading, then those of vLLM that are left out.
pub fn tables() -> String {
    let mut text = String::new();
    for (heading, families) in GROUPS {
        section(&mut text, heading, "name | type | meaning");
        for family in *families {
            row(&mut text, &[family.name, family.kind.name(), family.meaning]);
        }
        text.push('\n');
    }
    section(
        &mut text,
        "With --legacy-metrics, the same once more",
        "name | is | read by",
    );
    for (old, family, reader) in LEGACY {
        row(&mut text, &[old, family.name, reader]);
    }
    text.push('\n');
    section(
        &mut text,
        "What vLLM has and this engine leaves out",
        "name | why",
    );
    for (name, why) in LEFT_OUT {
        row(&mut text, &[name, why]);
    }
    text
}

fn section(text: &mut String, heading: &str, columns: &str) {
    let rule = "---|".repeat(columns.split('|').count());
    // Writing to a String cannot fail.
    let _ = writeln!(text, "### {heading}\n\n| {columns} |\n|{rule}");
}

fn row(text: &mut String, cells: &[&str]) {
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}
