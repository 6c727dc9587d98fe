//! How many sequences may run: fixed, or following the KV cache up to a cap (`--max-num-seqs auto`).
//!
//! Additive increase, multiplicative decrease: a preemption costs a quarter of the bound, since work was lost; while
//! all places are taken, others wait and the cache has room, each step adds a place.

/// Where `auto` begins: enough to use the weights well, few enough that none is preempted at once.
const FIRST: usize = 16;
/// Below this share of blocks in use the bound may grow.
const ROOM: f64 = 0.8;
/// Above this share nobody joins: those who run need the rest to grow.
const FULL: f64 = 0.95;

/// The bound in force.
#[derive(Debug, Clone)]
pub struct RunningLimit {
    cap: usize,
    bound: usize,
    auto: bool,
}

/// What a step showed.
#[derive(Debug, Clone, Copy)]
pub struct Observed {
    /// Sequences in execution.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Sequences that lost their blocks in this step.
    pub preempted: usize,
    /// Share of KV blocks in use.
    pub kv_usage: f64,
}

impl RunningLimit {
    /// A bound that stays at `cap`, or with `auto` one that never exceeds it. `cap` is at least 1.
    pub fn new(cap: usize, auto: bool) -> Self {
        let bound = if auto { cap.min(FIRST) } else { cap };
        Self { cap, bound, auto }
    }

    /// Most sequences that may run now; at least 1, at most the cap.
    pub fn bound(&self) -> usize {
        self.bound
    }

    /// Learns from a step.
    pub fn observe(&mut self, step: Observed) {
        if !self.auto {
            return;
        }
        if step.preempted > 0 {
            let had = self.bound.min(step.running + step.preempted);
            self.bound = (had * 3 / 4).max(1);
        } else if step.kv_usage > FULL {
            self.bound = self.bound.min(step.running).max(1);
        } else if step.kv_usage < ROOM && step.waiting > 0 && step.running >= self.bound {
            self.bound = (self.bound + 1).min(self.cap);
        }
    }
}
