//! The memory plan: weights, activations and KV blocks must fit the cgroup's limit before anything is loaded.
mod limit;

use std::fmt;

pub use limit::{MemoryLimit, system_limit};

/// What the process takes beside tensors: code, tokenizer, HTTP buffers, stacks.
const PROCESS: u64 = 48 << 20;

/// Has the allocator keep what a step frees for the next one: given back, each large tensor would be taken from the
/// system page by page again, which was half of a long prompt's system calls and page faults. The memory plan counts
/// what is kept. One arena: those of threads give their memory back whatever they are told.
#[allow(unsafe_code)]
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (option, value) in [
        (libc::M_ARENA_MAX, 1),
        // The most there is; above it, as the KV cache, memory comes from the system zeroed and untouched.
        (libc::M_MMAP_THRESHOLD, 32 << 20),
        (libc::M_TRIM_THRESHOLD, 256 << 20),
    ] {
        // SAFETY: it may be called at any time; if it refuses, only speed is lost.
        unsafe { libc::mallopt(option, value) };
    }
}

/// Has the allocator keep freed buffers of any size: a GPU's logits come to hundreds of megabytes a step, and the system
/// would hand out and zero their pages each time.
#[allow(unsafe_code)]
pub fn keep_freed_of_any_size() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (option, value) in [(libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, i32::MAX)] {
        // SAFETY: as above.
        unsafe { libc::mallopt(option, value) };
    }
}

/// Gives freed memory back to the system: what loading leaves behind in the allocator is more than a step takes.
#[allow(unsafe_code)]
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Asks the system for large pages below numbers that are not written yet: with small ones a processor spends much of
/// its time looking up where each is.
#[allow(unsafe_code)]
pub(crate) fn large_pages<T>(mut numbers: Vec<T>) -> Vec<T> {
    #[cfg(target_os = "linux")]
    {
        const LARGE: usize = 2 << 20;
        let (begin, len) = (numbers.as_mut_ptr() as usize, numbers.len() * size_of::<T>());
        let whole = begin.next_multiple_of(LARGE)..(begin + len) / LARGE * LARGE;
        if !whole.is_empty() {
            // SAFETY: the range lies in the vector; it is a hint that changes no number.
            unsafe { libc::madvise(whole.start as *mut _, whole.len(), libc::MADV_HUGEPAGE) };
        }
    }
    numbers
}

/// What a model and its limits need.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryNeeds {
    /// Bytes of all weights.
    pub weights: u64,
    /// Bytes of the largest step's tensors.
    pub activations: u64,
    /// Bytes of keys and values of one token.
    pub kv_per_token: u64,
    /// Tokens in a KV block.
    pub block_size: usize,
    /// `--max-model-len`.
    pub max_model_len: usize,
    /// Whether that is lowered to what fits.
    pub fit_length: bool,
    /// `--max-num-seqs`.
    pub max_num_seqs: usize,
    /// Share of the limit that may be used, `--gpu-memory-utilization`.
    pub utilization: f64,
    /// `--num-gpu-blocks-override`.
    pub num_blocks: Option<usize>,
    /// Bytes of host memory for swapped KV blocks, `--swap-space`.
    pub swap: u64,
    /// Whether the host's memory is the limited one: on a CPU.
    pub swap_in_limit: bool,
}

/// How memory is shared out. Displays as the line that is printed at start.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryPlan {
    /// What there is.
    pub limit: MemoryLimit,
    /// What was asked for.
    pub needs: MemoryNeeds,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Blocks of the swap space.
    pub num_host_blocks: usize,
}

/// The model does not fit.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Too little is left for one request of full length.
    #[error(
        "the model does not fit: {source_name} {limit} × {utilization} leaves {left} for KV after weights {weights}, activations {activations}, swap space {swap} and the process {process}, and one request of --max-model-len {max_model_len} needs {needed}; {hint}"
    )]
    DoesNotFit {
        /// Where the limit comes from.
        source_name: &'static str,
        /// The limit.
        limit: Size,
        /// The share that may be used.
        utilization: f64,
        /// What is left for KV.
        left: Size,
        /// Weights.
        weights: Size,
        /// Activations.
        activations: Size,
        /// `--swap-space`, where it is taken from the same memory.
        swap: Size,
        /// Everything else.
        process: Size,
        /// `--max-model-len`.
        max_model_len: usize,
        /// KV of one request of that length.
        needed: Size,
        /// What to change.
        hint: String,
    },
}

/// Shares out the limit.
///
/// # Errors
/// When not even one request of full length has room.
pub fn plan(mut needs: MemoryNeeds, limit: MemoryLimit) -> Result<MemoryPlan, MemoryError> {
    let block = needs.kv_per_token.saturating_mul(needs.block_size as u64);
    let usable = (limit.bytes as f64 * needs.utilization) as u64;
    let swap = if needs.swap_in_limit { needs.swap } else { 0 };
    let left = usable.saturating_sub(needs.weights + needs.activations + PROCESS + swap);
    let room = (left / block.max(1)) as usize;
    if needs.fit_length && room > 0 {
        let blocks = needs.num_blocks.map_or(room, |asked| asked.min(room));
        needs.max_model_len = needs.max_model_len.min(blocks * needs.block_size);
    }
    let one_request = needs.max_model_len.div_ceil(needs.block_size);
    // More than all sequences at full length could never be used.
    let most = one_request * needs.max_num_seqs;
    let num_blocks = needs.num_blocks.unwrap_or(room.min(most));
    if num_blocks < one_request || num_blocks > room {
        let longest = room * needs.block_size;
        let hint = match (needs.num_blocks, longest) {
            (Some(asked), _) if room >= one_request => {
                format!("give --num-gpu-blocks-override between {one_request} and {room} instead of {asked}")
            }
            (_, 0) => "raise the memory limit or --gpu-memory-utilization, or choose a smaller model or --quantization".into(),
            (_, longest) => format!(
                "raise the memory limit or --gpu-memory-utilization, or lower --max-model-len to {longest}"
            ),
        };
        return Err(MemoryError::DoesNotFit {
            source_name: limit.source,
            limit: Size(limit.bytes),
            utilization: needs.utilization,
            left: Size(left),
            weights: Size(needs.weights),
            activations: Size(needs.activations),
            swap: Size(swap),
            process: Size(PROCESS),
            max_model_len: needs.max_model_len,
            needed: Size(one_request as u64 * block),
            hint,
        });
    }
    Ok(MemoryPlan {
        limit,
        needs,
        num_blocks,
        num_host_blocks: usize::try_from(needs.swap / block.max(1)).unwrap_or(usize::MAX),
    })
}

impl MemoryPlan {
    /// Its parts by the names of `qwen:memory_plan_bytes`, and their bytes.
    pub fn parts(&self) -> [(&'static str, u64); 5] {
        [
            ("limit", (self.limit.bytes as f64 * self.needs.utilization) as u64),
            ("weights", self.needs.weights),
            ("activations", self.needs.activations),
            ("kv_cache", self.kv_bytes()),
            ("swap_space", self.needs.swap),
        ]
    }

    /// Bytes of the KV cache.
    pub fn kv_bytes(&self) -> u64 {
        self.num_blocks as u64 * self.needs.block_size as u64 * self.needs.kv_per_token
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            limit,
            needs,
            num_blocks,
            num_host_blocks,
        } = self;
        let (weights, activations, kv) = (
            Size(needs.weights),
            Size(needs.activations),
            Size(self.kv_bytes()),
        );
        write!(
            f,
            "memory: {} {} × {}: ",
            limit.source,
            Size(limit.bytes),
            needs.utilization
        )?;
        write!(
            f,
            "weights {weights}, activations {activations}, KV cache {kv} ({num_blocks} blocks of {} tokens)",
            needs.block_size
        )?;
        match num_host_blocks {
            0 => Ok(()),
            count => write!(f, ", swap space {} ({count} blocks)", Size(needs.swap)),
        }
    }
}

/// Bytes, shown in MiB or GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.0 as f64 / (1 << 20) as f64;
        match mib {
            _ if mib >= 1024.0 => write!(f, "{:.1} GiB", mib / 1024.0),
            _ => write!(f, "{mib:.0} MiB"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn needs() -> MemoryNeeds {
        MemoryNeeds {
            weights: 100 * MIB,
            activations: 52 * MIB,
            kv_per_token: MIB / 16,
            block_size: 16,
            max_model_len: 512,
            fit_length: false,
            max_num_seqs: 4,
            utilization: 0.5,
            num_blocks: None,
            swap: 0,
            swap_in_limit: true,
        }
    }

    fn limit(mib: u64) -> MemoryLimit {
        MemoryLimit {
            bytes: mib * MIB,
            source: "cgroup limit",
        }
    }

    #[test]
    fn the_rest_becomes_kv_blocks() {
        let plan = plan(needs(), limit(500)).unwrap();
        assert_eq!(plan.num_blocks, 50);
        let line = "memory: cgroup limit 500 MiB × 0.5: weights 100 MiB, activations 52 MiB, KV cache 50 MiB (50 blocks of 16 tokens)";
        assert_eq!(plan.to_string(), line);
    }

    #[test]
    fn swap_space_is_planned_where_it_is_taken_from() {
        let with_swap = |swap_in_limit| MemoryNeeds {
            swap: 10 * MIB,
            swap_in_limit,
            ..needs()
        };
        let cpu = plan(with_swap(true), limit(500)).unwrap();
        assert_eq!((cpu.num_blocks, cpu.num_host_blocks), (40, 10));
        assert!(
            cpu.to_string().ends_with(", swap space 10 MiB (10 blocks)"),
            "{cpu}"
        );
        let gpu = plan(with_swap(false), limit(500)).unwrap();
        assert_eq!((gpu.num_blocks, gpu.num_host_blocks), (50, 10));
    }

    #[test]
    fn no_more_blocks_than_all_sequences_can_use() {
        assert_eq!(plan(needs(), limit(100_000)).unwrap().num_blocks, 4 * 32);
    }

    #[test]
    fn a_length_that_may_follow_memory_is_the_longest_that_fits() {
        let length = |mib, num_blocks| {
            let needs = MemoryNeeds {
                fit_length: true,
                num_blocks,
                ..needs()
            };
            plan(needs, limit(mib)).map(|plan| plan.needs.max_model_len)
        };
        assert_eq!(length(440, None).unwrap(), 320);
        assert_eq!(length(440, Some(3)).unwrap(), 48);
        assert_eq!(length(500, None).unwrap(), 512, "never more than the model's");
        assert!(length(100, None).is_err());
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_numbers() {
        let error = plan(needs(), limit(440)).unwrap_err().to_string();
        assert!(
            error.contains("leaves 20 MiB") && error.contains("needs 32 MiB"),
            "{error}"
        );
        assert!(error.ends_with("lower --max-model-len to 320"), "{error}");
        let error = plan(
            MemoryNeeds {
                num_blocks: Some(60),
                ..needs()
            },
            limit(500),
        )
        .unwrap_err()
        .to_string();
        assert!(error.ends_with("between 32 and 50 instead of 60"), "{error}");
        let nothing = MemoryNeeds {
            num_blocks: Some(60),
            ..needs()
        };
        let error = plan(nothing, limit(100)).unwrap_err().to_string();
        assert!(
            error.contains("raise the memory limit") && !error.contains("override"),
            "{error}"
        );
    }
}
