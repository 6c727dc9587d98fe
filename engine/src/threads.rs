//! How many threads compute: what the cgroup grants, not what the node has.
use std::num::NonZero;

/// What candle and rayon read when they start their pools.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Cores this process may use: affinity and the cgroup's CPU quota (v1 and v2), at least 1.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Makes candle and rayon use `available()` threads, unless the user has set RAYON_NUM_THREADS. Without it they
/// start a thread per core of the node, and a pod of 2 CPUs on 64 cores spends its quota on waiting.
///
/// # Safety
/// Call it first in `main`, while the process has a single thread.
#[allow(unsafe_code)]
pub unsafe fn limit() {
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: the caller promises that no other thread can read the environment now. candle has no other
        // way to be told: it reads the variable at each use.
        unsafe { std::env::set_var(VARIABLE, available().to_string()) };
    }
}
