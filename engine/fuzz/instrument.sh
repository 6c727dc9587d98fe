#!/bin/sh
# What cargo calls instead of rustc for the crates of this workspace alone; dependencies stay as they are:
# coverage counters for libFuzzer, and checks that release builds leave out.
exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions=on -Coverflow-checks=on
