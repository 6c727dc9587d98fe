//! What single steps hold: the bound on a step beside a long prompt, and the rows of scored prompts.
#![allow(clippy::unwrap_used, clippy::panic)]
use std::collections::HashMap;

use qwen_engine::model::Chunk;
use qwen_engine::scheduler::{EngineConfig, Scheduler};

/// Pairs of a token and one that it attends to.
fn pairs(chunk: &Chunk) -> usize {
    (chunk.start..chunk.start + chunk.tokens.len())
        .map(|position| position + 1)
        .sum()
}

/// As for Qwen3-4B: 2,048 tokens a step, and attention that costs as much as all else at a context of 12,300.
#[test]
fn a_near_limit_prompt_costs_a_decoding_neighbour_one_bounded_step_a_token() {
    const TOKENS: usize = 2048;
    const BALANCE: usize = 12_300;
    const PROMPT: usize = 262_000;
    let mut scheduler = Scheduler::new(EngineConfig {
        max_num_batched_tokens: TOKENS,
        max_step_attention: TOKENS * BALANCE,
        max_model_len: 262_144,
        num_blocks: 20_000,
        ..EngineConfig::default()
    });
    scheduler.add(0, vec![1; 100]);
    let first = scheduler.schedule();
    scheduler.complete(&first.plan, &HashMap::from([(0, 5)]));
    scheduler.add(1, (0..PROMPT as u32).collect());
    let (mut done, mut steps, mut dearest) = (0, 0, 0.0_f64);
    while done < PROMPT {
        // Now and then somebody asks something short.
        let short = (steps % 100 == 50).then_some(2 + steps as u64);
        if let Some(id) = short {
            scheduler.add(id, vec![7; 200]);
        }
        let step = scheduler.schedule();
        assert_eq!(
            step.plan.chunks[0].sequence, 0,
            "a step without the decoding sequence's token"
        );
        assert!(step.plan.tokens() <= TOKENS);
        let cost: f64 = step
            .plan
            .chunks
            .iter()
            .map(|chunk| chunk.tokens.len() as f64 + pairs(chunk) as f64 / BALANCE as f64)
            .sum();
        dearest = dearest.max(cost);
        done += step
            .plan
            .chunks
            .iter()
            .find(|chunk| chunk.sequence == 1)
            .map_or(0, |chunk| chunk.tokens.len());
        steps += 1;
        scheduler.complete(&step.plan, &HashMap::from([(0, 5)]));
        if let Some(id) = short {
            let answered = step
                .plan
                .chunks
                .iter()
                .any(|chunk| chunk.sequence == id && chunk.sample);
            assert!(answered, "the short prompt waits for the long one");
            scheduler.remove(id);
        }
    }
    println!("{steps} steps, the dearest costs {dearest:.0} tokens at the begin of a context");
    // All tokens and all attention that a step may have; unbounded, the last one would cost 45,000.
    assert!(dearest <= 2.0 * TOKENS as f64 + 2.0, "{dearest}");
    assert!(steps < 1500, "{steps} steps");
}

/// However the cache and the budget lie, each row of the prompt but the last is asked for once, in order.
#[test]
fn a_scored_prompt_is_computed_whole() {
    let mut scheduler = Scheduler::new(EngineConfig {
        max_num_seqs: 2,
        max_num_batched_tokens: 7,
        max_model_len: 64,
        max_queued_requests: 8,
        block_size: 4,
        num_blocks: 16,
        enable_prefix_caching: true,
        ..EngineConfig::default()
    });
    let prompt: Vec<u32> = (0..20).collect();
    for (id, scored) in [(0, false), (1, true), (2, false)] {
        match scored {
            true => scheduler.add_scored(id, prompt.clone()),
            false => scheduler.add(id, prompt.clone()),
        }
        let (mut rows, mut queries, mut hits) = (Vec::new(), 0, 0);
        for _ in 0..5 {
            let step = scheduler.schedule();
            queries += step.prefix_queries;
            hits += step.prefix_hits;
            for chunk in &step.plan.chunks {
                rows.extend(chunk.start..chunk.start + chunk.prompt_rows);
            }
            let wanted = step.plan.chunks.iter().filter(|chunk| chunk.sample);
            let sampled = wanted.map(|chunk| (chunk.sequence, 1)).collect();
            scheduler.complete(&step.plan, &sampled);
        }
        scheduler.remove(id);
        let expected: Vec<usize> = if scored { (0..19).collect() } else { Vec::new() };
        assert_eq!(rows, expected, "{id}");
        assert_eq!((queries, hits), [(20, 0), (0, 0), (20, 16)][id as usize]);
    }
}
