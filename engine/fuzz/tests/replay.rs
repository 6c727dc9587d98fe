//! Every target on its corpus, which holds what was once found, and on a fixed number of mutations of it.
#![allow(clippy::unwrap_used, clippy::panic)]
use std::path::Path;

use qwen_fuzz::{TARGETS, Target};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// A few seconds for each target.
const MUTATIONS: usize = 5_000;
/// What readers of JSON, Jinja, tags and headers look at.
const WORDS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"{{ ",
    b" }}",
    b"{% ",
    b" %}",
    b"<think>",
    b"</think>",
    b"<tool_call>",
    b"</tool_call>",
    b"\n",
    b"null",
    b"-1",
    b"1e999",
    b"18446744073709551615",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\0",
    b"\xf0\x9f\x98\x80",
    b"\\ud800",
];

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn mutated(seeds: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let mut data = seeds[random.random_range(0..seeds.len())].clone();
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..=data.len());
        let end = random.random_range(at..=data.len().min(at + 16));
        match random.random_range(0..5) {
            0 if at < data.len() => data[at] = random.random(),
            1 => drop(data.drain(at..end)),
            2 => {
                let copy = data[at..end].to_vec();
                data.splice(at..at, copy);
            }
            3 => {
                let other = &seeds[random.random_range(0..seeds.len())];
                let from = random.random_range(0..=other.len());
                data.splice(at.., other[from..].iter().copied());
            }
            _ => drop(data.splice(
                at..end,
                WORDS[random.random_range(0..WORDS.len())].iter().copied(),
            )),
        }
    }
    data
}

fn run(name: &str, target: Target) {
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "{name} has no corpus");
    for seed in &seeds {
        target(seed);
    }
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..MUTATIONS {
        let data = mutated(&seeds, &mut random);
        // Shown only when the test fails, and then the last line tells what to add to the corpus.
        println!("{name}: {:?}", String::from_utf8_lossy(&data));
        target(&data);
    }
}

#[test]
fn nothing_that_outsiders_send_breaks_a_reader() {
    for (name, target) in TARGETS {
        run(name, *target);
    }
}
