//! Downloads against a local stand-in of the hubs' HTTP interfaces: whole, cut and resumed, wrong, refused, over TLS.
// Helpers of tests fail loudly, too; clippy knows only the tests themselves.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "hub/buckets.rs"]
mod buckets;
#[path = "hub/cache.rs"]
mod cache;
#[path = "hub/downloads.rs"]
mod downloads;
#[path = "hub/process.rs"]
mod process;
#[path = "hub/refusals.rs"]
mod refusals;
#[path = "hub/setup.rs"]
mod setup;
#[path = "hub/stand_in.rs"]
mod stand_in;
