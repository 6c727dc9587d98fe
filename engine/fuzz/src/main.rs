//! libFuzzer on the target that FUZZ_TARGET names; built and run by `make fuzz`.
#![no_main]
// The macro exports a C function.
#![allow(unsafe_code)]
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use qwen_fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    let Some((_, target)) = found else {
        let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
        eprintln!("FUZZ_TARGET is {name:?}; it must be one of {}", names.join(", "));
        std::process::exit(2);
    };
    *target
});

fuzz_target!(|data: &[u8]| TARGET(data));
