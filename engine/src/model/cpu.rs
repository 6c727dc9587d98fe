//! What the CPU's kernels share: numbers of tensors in place, and the threads that compute.
pub(super) mod lanes;
pub(super) mod rows;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use candle_core::utils::barrier_pool;
use candle_core::{Result, Storage, Tensor};
use rayon::prelude::*;

/// Tasks for each thread: threads that are held up leave some to the others.
const TASKS: usize = 4;

/// Threads that compute: always those that the matrices before and behind use, for two pools would fight for the cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// candle's, of its quantized matrices and ours: they look out for work for a while before they sleep.
    Candle,
    /// rayon's, of dense matrices.
    Rayon,
}

impl Threads {
    /// Units of work in each piece but the last, where threads share out `total` of them.
    pub(super) fn in_piece(self, total: usize) -> usize {
        let threads = match self {
            Self::Candle => barrier_pool().n_workers() + 1,
            Self::Rayon => rayon::current_num_threads(),
        };
        total.div_ceil(threads * TASKS).max(1)
    }

    /// Runs all tasks.
    pub(super) fn run_all<T: Send>(self, tasks: Vec<T>, run: impl Fn(T) + Sync) {
        match self {
            Self::Candle => run_all(tasks, run),
            Self::Rayon => tasks.into_par_iter().for_each(&run),
        }
    }
}

fn run_all<T: Send>(tasks: Vec<T>, run: impl Fn(T) + Sync) {
    let tasks: Vec<_> = tasks.into_iter().map(|task| Mutex::new(Some(task))).collect();
    let panicked = Mutex::new(None);
    barrier_pool().execute_chunked(tasks.len(), |range| {
        for task in &tasks[range] {
            let task = task.lock().unwrap_or_else(PoisonError::into_inner).take();
            // A panic that passes through candle's pool would leave its lock poisoned for good.
            if let Some(task) = task
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(task)))
            {
                *panicked.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
        }
    });
    if let Some(panic) = panicked.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

/// Reads a contiguous F32 tensor of the CPU in place.
pub(super) fn with_slice<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        candle_core::bail!("a tensor of the CPU path is on another device")
    };
    let start = layout.start_offset();
    Ok(read(
        &storage.as_slice::<f32>()?[start..start + layout.shape().elem_count()],
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_threads_usable() {
        let sum = AtomicUsize::new(0);
        let run = |task: usize| {
            assert_ne!(task, 5);
            sum.fetch_add(task, Ordering::Relaxed);
        };
        assert!(catch_unwind(AssertUnwindSafe(|| run_all((0..10).collect(), run))).is_err());
        assert_eq!(sum.load(Ordering::Relaxed), 40);
        run_all(vec![1, 1], run);
        assert_eq!(sum.load(Ordering::Relaxed), 42);
    }
}
