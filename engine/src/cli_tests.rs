//! Tests of `cli`: flags as people write them.
use super::*;
use crate::{config::MaxModelLen, http::PromptLog, scheduler::SchedulingPolicy};

fn parse_words(line: &str) -> Result<(Config, Vec<String>), Fatal> {
    let (config, warnings) = parse(line.split_whitespace().map(OsString::from))?;
    Ok((config.unwrap(), warnings))
}

#[test]
fn a_vllm_command_line_carries_over() {
    let (config, warnings) = parse_words(
        "serve ./model --served-model-name qwen3 alias --max_model_len 4K --max-num-seqs=8 --tensor-parallel-size 1 \
         --enforce-eager --uvicorn-log-level=info --disable-log-requests --swap-space=4 --scheduling-policy priority --trust-remote-code \
         --enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser=qwen3",
    )
    .unwrap();
    assert_eq!(config.model, "./model");
    assert_eq!(config.served_names, ["qwen3", "alias"]);
    assert_eq!(config.max_model_len, MaxModelLen::Tokens(4096));
    assert_eq!(config.max_num_seqs, 8);
    assert_eq!(
        (config.swap_bytes, config.policy),
        (4 << 30, SchedulingPolicy::Priority)
    );
    let named: Vec<&str> = warnings
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        named,
        [
            "--tensor-parallel-size",
            "--enforce-eager",
            "--disable-log-requests",
            "--trust-remote-code",
            "--enable-auto-tool-choice",
            "--tool-call-parser",
            "--reasoning-parser"
        ]
    );
}

#[test]
fn flags_of_vllm_without_meaning_here_are_ignored_with_their_values() {
    let (config, warnings) = parse_words(
        "serve m -O2 --cudagraph-capture-sizes 1 2 4 --stream_interval -1 --structured-outputs-config.backend auto \
         --no-enable-eplb --no-async-scheduling --model-impl auto --max-logprobs=20 --tokenizer-revision main \
         --max-model-len -1",
    )
    .unwrap();
    assert_eq!((config.max_model_len, warnings.len()), (MaxModelLen::Fits, 9));
    let told = "--tokenizer-revision is ignored: the tokenizer is that of --revision";
    assert_eq!(warnings[8], told);
}

#[test]
fn a_line_of_a_manifest_that_became_one_argument_is_told() {
    for arg in [
        "--max-num-seqs 4",
        "--max-num-seqs\n",
        "--enforce-eager\n--port=1",
    ] {
        let args = ["serve", "m", arg].map(OsString::from);
        let error = parse(args.into_iter()).err().unwrap().to_string();
        assert!(
            error.starts_with(&format!("the argument {arg:?} has white space")),
            "{error}"
        );
    }
    let args = ["serve", "m", "--hf-overrides={\n\"a\": 1}"].map(OsString::from);
    assert!(parse(args.into_iter()).is_ok());
}

#[test]
fn prompts_are_logged_only_if_asked_for() {
    for (line, expected) in [
        ("serve m", None),
        ("serve m --max-log-len 9", None),
        ("serve m --enable-log-requests", Some(PromptLog { most: None })),
        (
            "serve m --enable-log-requests --max-log-len 9",
            Some(PromptLog { most: Some(9) }),
        ),
        ("serve m --enable-log-requests --no-enable-log-requests", None),
    ] {
        assert_eq!(parse_words(line).unwrap().0.prompt_log, expected, "{line}");
    }
}

#[test]
fn either_flag_says_what_the_model_does() {
    for (line, pooling) in [
        ("serve m", None),
        ("serve m --task embed", Some(true)),
        ("serve m --runner pooling", Some(true)),
        ("serve m --runner pooling --task embed", Some(true)),
        ("serve m --task generate", Some(false)),
    ] {
        assert_eq!(parse_words(line).unwrap().0.pooling, pooling, "{line}");
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_in_one_line() {
    for (line, words) in [
        ("serve m --frobnicate", "--frobnicate"),
        ("serve m --max-num-seq 4", "did you mean --max-num-seqs?"),
        ("serv m", "did you mean serve?"),
        ("serve", "MODEL"),
        ("serve m --quantization fp8", "--quantization fp8"),
        ("serve m --task classify", "--task classify"),
        ("serve m --runner draft", "--runner draft"),
        ("serve m --hf-overrides []", "--hf-overrides []"),
        (
            "serve m --default-chat-template-kwargs true",
            "--default-chat-template-kwargs true",
        ),
        ("serve m --kv-cache-dtype fp8", "--kv-cache-dtype fp8"),
        ("serve m --tensor-parallel-size 2", "--tensor-parallel-size 2"),
        ("serve m --reasoning-parser glm45", "--reasoning-parser glm45"),
        (
            "serve m --tool-call-parser qwen3_coder",
            "--tool-call-parser qwen3_coder",
        ),
        ("serve m --max-model-len many", "--max-model-len many"),
        ("serve m --max-num-seqs 0", "--max-num-seqs 0"),
        (
            "serve m --gpu-memory-utilization 1.5",
            "--gpu-memory-utilization 1.5",
        ),
        ("serve m --dtype int4", "--dtype int4"),
        ("serve m --device tpu", "--device tpu"),
        ("serve m --log-format xml", "--log-format xml"),
        ("serve m --scheduling-policy sjf", "--scheduling-policy sjf"),
        ("serve m --request-timeout 0", "--request-timeout 0"),
        ("serve m --swap-space -1", "--swap-space -1"),
        (
            "serve m --swap-space 1 --no-enable-prefix-caching",
            "--swap-space 1",
        ),
        ("serve m --max-num-seqs many", "--max-num-seqs many"),
        (
            "serve m --max-num-seqs auto --max-num-batched-tokens 100",
            "--max-num-batched-tokens 100",
        ),
        ("serve m --port eighty", "--port"),
        ("serve m --port -1", "-1 is not in 0..=65535"),
        ("serve m --seed -1", "use a whole number, 0 or more"),
        ("serve m --drain-timeout -3", "use a whole number, 0 or more"),
        (
            "serve m --max-queued-requests -1",
            "use a whole number, at least 1",
        ),
        ("serve m --block-size 0", "use a whole number, at least 1"),
        (
            "serve m --max-num-batched-tokens -1",
            "--max-num-batched-tokens -1",
        ),
        (
            "serve m --request-timeout -3",
            "--request-timeout -3 is out of range",
        ),
        ("serve m --gpu-memory-utilization -1", "above 0, at most 1"),
        ("serve m --max-model-len -2", "--max-model-len -2"),
        ("serve m --runner generate --task embed", "--task embed"),
        ("serve m --served-model-name=", "--served-model-name"),
        ("serve m --max-logprobs -1", "set it to 20"),
        ("serve m --logprobs-mode processed_logits", "raw_logprobs"),
        ("serve m --uds /tmp/s", "--host and --port"),
        (
            "serve m --speculative-config.method ngram",
            "--speculative-config.method",
        ),
        ("serve m --metrics-port 8000", "--metrics-port 8000"),
        ("serve m --api-key= ", "--api-key"),
        ("serve m --allowed-origins *", "--allowed-origins"),
        ("serve m --allowed-headers [\"a\\nb\"]", "--allowed-headers"),
        (
            "serve m --max-num-seqs 512 --max-num-batched-tokens 256",
            "--max-num-batched-tokens 256",
        ),
    ] {
        let error = parse_words(line).err().unwrap().to_string();
        assert!(error.contains(words) && !error.contains('\n'), "{line}: {error}");
    }
}
