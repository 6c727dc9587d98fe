//! The engine thread: receives commands, runs steps, samples, and tells clients and observer.
use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::admission::{NAN, Shared};
use super::choose::{Chosen, Row, choose};
use super::{Command, OnEnd};
use crate::model::{Logits, Model, ModelError, StepPlan};
use crate::request::{
    FinishReason, FinishedRequest, GenerateRequest, Observer, SamplingParams, StepStats, TokenEvent,
    TokenLogprobs,
};
use crate::sampler::{Sampled, Sampler, logprobs};
use crate::scheduler::{EngineConfig, Scheduler, Step};
use crate::sequence::{Sequence, SequenceId};

/// Steps that may panic, none going well between them: then what they share is broken, and only a restart helps.
const MOST_PANICS: usize = 16;

/// A request on its way to the thread.
pub(super) struct Submission {
    pub(super) id: SequenceId,
    pub(super) request: GenerateRequest,
    pub(super) sampler: Sampler,
    pub(super) events: UnboundedSender<TokenEvent>,
    pub(super) on_end: OnEnd,
    pub(super) queued: Instant,
}

/// A request that has not ended.
pub(super) struct Live {
    pub(super) request: GenerateRequest,
    events: UnboundedSender<TokenEvent>,
    on_end: OnEnd,
    pub(super) sampler: Sampler,
    /// Those of the prompt so far, if they were asked for and are not sent yet.
    prompt_logprobs: Option<Vec<TokenLogprobs>>,
    queued: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    cached_tokens: usize,
    generated: usize,
    preemptions: usize,
}

/// Everything the thread owns.
pub(super) struct Worker {
    model: Box<dyn Model>,
    config: EngineConfig,
    scheduler: Scheduler,
    live: HashMap<SequenceId, Live>,
    observer: Arc<dyn Observer>,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    /// Events to send once the observer knows what led to them: a client that has seen its last token finds it
    /// counted.
    outbox: Vec<(UnboundedSender<TokenEvent>, TokenEvent)>,
    /// Panics of the model since a plan was last computed.
    panics: usize,
}

impl Worker {
    pub(super) fn new(
        mut model: Box<dyn Model>,
        config: EngineConfig,
        observer: Arc<dyn Observer>,
        commands: Receiver<Command>,
        shared: Arc<Shared>,
    ) -> Self {
        model.set_heartbeat(shared.heartbeat().clone());
        let scheduler = Scheduler::new(config.clone());
        let (live, outbox) = (HashMap::new(), Vec::new());
        let mut worker = Self {
            model,
            config,
            scheduler,
            live,
            observer,
            commands,
            shared,
            outbox,
            panics: 0,
        };
        // The bound in force is known before the first request.
        worker.report(StepStats::default());
        worker
    }

    /// Runs until every handle and stream is gone. A panic that is no request's own ends all requests with an error and leaves the engine
    /// dead, which `/health` tells, so that it is restarted instead of serving from a broken state.
    pub(super) fn run(mut self) {
        if catch_unwind(AssertUnwindSafe(|| while self.turn() {})).is_ok() {
            return;
        }
        self.shared.set_dead();
        tracing::error!("the engine thread panicked; every request fails until the process is restarted");
        let ids: Vec<_> = self.live.keys().copied().collect();
        self.fail(&ids, "the engine stopped working; try again later");
        self.report(StepStats::default());
        // Requests that were on their way when it died.
        while let Ok(command) = self.commands.recv() {
            if let Command::Submit(submission) = command {
                let id = submission.id;
                self.submit(*submission);
                self.fail(&[id], "the engine stopped working; try again later");
                self.report(StepStats::default());
            }
        }
    }

    /// Takes all commands, then runs one step. False when nobody can send any more.
    fn turn(&mut self) -> bool {
        let mut changed = false;
        if self.live.is_empty() {
            self.shared.work_ends();
            let Ok(command) = self.commands.recv() else {
                return false;
            };
            self.shared.work_begins();
            self.obey(command);
            changed = true;
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
            changed = true;
        }
        if changed {
            // Shown before the step, which may take long.
            self.report(StepStats::default());
        }
        if !self.live.is_empty() {
            self.step();
        }
        self.shared.heartbeat().beat();
        true
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.submit(*submission),
            Command::Abort(id) => self.end(id, FinishReason::Abort),
            Command::Stop(id) => self.end(id, FinishReason::Stop),
        }
    }

    fn submit(
        &mut self,
        Submission {
            id,
            request,
            sampler,
            events,
            on_end,
            queued,
        }: Submission,
    ) {
        let GenerateRequest { sampling, prompt, .. } = &request;
        let prompt_logprobs = sampling.prompt_logprobs.map(|_| Vec::new());
        let sequence = match prompt_logprobs {
            Some(_) => Sequence::scored(id, prompt.clone()),
            None => Sequence::new(id, prompt.clone()),
        };
        self.scheduler.enqueue(sequence.with_terms(request.terms));
        let live = Live {
            request,
            events,
            on_end,
            sampler,
            prompt_logprobs,
            queued,
            scheduled: None,
            first_token: None,
            last_token: None,
            cached_tokens: 0,
            generated: 0,
            preemptions: 0,
        };
        self.live.insert(id, live);
    }

    fn step(&mut self) {
        let step = self.scheduler.schedule();
        self.note_schedule(&step);
        if !step.started.is_empty() {
            // A long prefill must not show its requests as waiting.
            self.report(StepStats::default());
        }
        let mut stats = StepStats {
            prefill_tokens: step.prefill_tokens,
            prefix_queries: step.prefix_queries,
            prefix_hits: step.prefix_hits,
            host_hits: step.host_hits,
            preemptions: step.preempted.len(),
            ..StepStats::default()
        };
        match self.guarded(|worker| worker.model.copy_blocks(&step.copies)) {
            Ok(()) => self.run_plan(&step.plan, &mut stats),
            Err(error) => {
                self.give_up(&step.plan, &error);
                // What others were promised to find may not have been copied.
                let restarted = self.scheduler.restart_running();
                stats.preemptions += restarted.len();
                self.note_preempted(&restarted);
            }
        }
        if self.live.is_empty() {
            // Before the last client hears of its end.
            self.shared.work_ends();
        }
        self.report(stats);
    }

    /// Computes a plan and takes its tokens. After a panic every sequence is computed alone, so that only the one
    /// that causes it fails: computing a token's KV again changes nothing.
    fn run_plan(&mut self, plan: &StepPlan, stats: &mut StepStats) {
        let embeds = self.model.embedding_width().is_some();
        let computed = self.guarded(|worker| {
            let mut logits = worker.model.forward(plan)?;
            // The model computes a prompt's rows only as they are read.
            worker.score_prompts(plan, &mut logits)?;
            Ok(logits)
        });
        match computed {
            Ok(rows) => {
                self.panics = 0;
                match embeds {
                    true => self.pool(plan, &rows, stats),
                    false => self.sample(plan, rows, stats),
                }
            }
            Err(error) if plan.chunks.len() > 1 => {
                tracing::error!(%error, "a step failed; its requests are computed one by one");
                for chunk in &plan.chunks {
                    let alone = StepPlan {
                        chunks: vec![chunk.clone()],
                        block_size: plan.block_size,
                    };
                    self.run_plan(&alone, stats);
                }
            }
            Err(error) => self.give_up(plan, &error),
        }
    }

    /// Ends the requests of a plan that failed.
    fn give_up(&mut self, plan: &StepPlan, error: &ModelError) {
        tracing::error!(%error, "a step failed; its requests end with an error");
        let ids: Vec<_> = plan.chunks.iter().map(|chunk| chunk.sequence).collect();
        self.fail(&ids, &error.to_string());
        self.scheduler.forget_contents();
    }

    /// Lets the model work. A panic is an error like others if the model can go on, else it ends the engine.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, ModelError>) -> Result<T, ModelError> {
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(result) => result,
            Err(panic) if self.model.usable_after_panic() && self.panics < MOST_PANICS => {
                self.panics += 1;
                Err(ModelError::Panicked(words(&*panic)))
            }
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Records what the scheduler started and preempted.
    fn note_schedule(&mut self, step: &Step) {
        let now = Instant::now();
        for (id, cached_tokens) in &step.started {
            if let Some(live) = self.live.get_mut(id) {
                self.shared.started(now, live.request.prompt.len());
                live.scheduled = Some(now);
                live.cached_tokens = *cached_tokens;
            }
        }
        self.note_preempted(&step.preempted);
        if self.scheduler.waiting() > 0 {
            // What still waits was held back by places, blocks or tokens: nobody else could start either.
            self.shared.set_free_places(0);
        }
    }

    fn note_preempted(&mut self, ids: &[SequenceId]) {
        for id in ids {
            if let Some(live) = self.live.get_mut(id) {
                live.preemptions += 1;
            }
        }
    }

    /// Reads off how likely the prompts' tokens were.
    fn score_prompts(&mut self, plan: &StepPlan, logits: &mut Logits) -> Result<(), ModelError> {
        let rows = plan.chunks.iter().flat_map(|chunk| {
            let positions = chunk.start..chunk.start + chunk.prompt_rows;
            positions.map(|position| (chunk.sequence, position))
        });
        let mut rows = rows.collect::<Vec<_>>().into_iter();
        let mut failed = Vec::new();
        let visited = logits.visit_prompt(|row| {
            self.shared.heartbeat().beat();
            if let Some((id, position)) = rows.next()
                && let Some(live) = self.live.get_mut(&id)
                && catch_unwind(AssertUnwindSafe(|| live.score(position, row))).is_err()
            {
                failed.push(id);
            }
        });
        self.fail(
            &failed,
            "the log probabilities of the prompt could not be computed: a bug",
        );
        visited
    }

    fn sample(&mut self, plan: &StepPlan, mut logits: Logits, stats: &mut StepStats) {
        let now = Instant::now();
        let mut sampled = HashMap::new();
        let (mut ended, mut failed) = (Vec::new(), Vec::new());
        let mut lives: HashMap<_, _> = self.live.iter_mut().map(|(id, live)| (*id, live)).collect();
        let wanted = plan.chunks.iter().filter(|chunk| chunk.sample);
        let mut rows: Vec<Row<'_>> = wanted
            .zip(logits.rows_mut())
            .filter_map(|(chunk, row)| Some((chunk.sequence, lives.remove(&chunk.sequence)?, row)))
            .collect();
        let heartbeat = self.shared.heartbeat();
        let chosen = choose(&mut rows, || heartbeat.beat());
        for ((id, live, _), chosen) in rows.into_iter().zip(chosen) {
            if !self.shared.note_computed(!matches!(chosen, Chosen::NoNumbers)) {
                failed.push((id, TokenEvent::Failed(NAN.to_owned())));
                continue;
            }
            if let Some(prompt) = live.prompt_logprobs.take() {
                self.outbox
                    .push((live.events.clone(), TokenEvent::Prompt(prompt)));
            }
            let Sampled { token, logprobs } = match chosen {
                Chosen::NoNumbers => continue,
                Chosen::Nothing => {
                    ended.push((id, FinishReason::Length));
                    continue;
                }
                Chosen::Failed(error) => {
                    tracing::warn!(
                        ?error,
                        request = live.request.id,
                        "a request ends: no token can be chosen"
                    );
                    failed.push((id, error));
                    continue;
                }
                Chosen::Token(next) => next,
            };
            sampled.insert(id, token);
            stats.generated_tokens += 1;
            match live.last_token {
                None => stats
                    .first_token_latencies
                    .push((now - live.request.arrival).as_secs_f64()),
                Some(last) => stats.inter_token_latencies.push((now - last).as_secs_f64()),
            }
            let end = live.take(token, now, self.config.max_model_len);
            let event = match (end, logprobs) {
                (Some(FinishReason::Stop), _) => TokenEvent::Stop(token),
                (_, Some(scored)) => TokenEvent::Scored(scored),
                (_, None) => TokenEvent::Token(token),
            };
            self.outbox.push((live.events.clone(), event));
            ended.extend(end.map(|reason| (id, reason)));
        }
        self.scheduler.complete(plan, &sampled);
        for (id, reason) in ended {
            self.end(id, reason);
        }
        for (id, event) in failed {
            self.end_with(id, FinishReason::Error, event);
        }
    }

    /// The counterpart of `sample` for embeddings: a prompt's last row is its whole answer.
    fn pool(&mut self, plan: &StepPlan, rows: &Logits, stats: &mut StepStats) {
        let now = Instant::now();
        self.scheduler.complete(plan, &HashMap::new());
        let wanted = plan.chunks.iter().filter(|chunk| chunk.sample);
        for (chunk, row) in wanted.zip(rows.rows()) {
            let numbers = row.iter().all(|number| number.is_finite());
            if !self.shared.note_computed(numbers) {
                self.fail(&[chunk.sequence], NAN);
                continue;
            }
            if let Some(live) = self.live.get_mut(&chunk.sequence) {
                let latency = (now - live.request.arrival).as_secs_f64();
                stats.first_token_latencies.push(latency);
                (live.first_token, live.last_token) = (Some(now), Some(now));
                let event = TokenEvent::Embedding(row.to_vec());
                self.outbox.push((live.events.clone(), event));
            }
            self.end(chunk.sequence, FinishReason::Stop);
        }
    }

    /// Ends a request by itself; unknown ids have already ended.
    fn end(&mut self, id: SequenceId, reason: FinishReason) {
        self.end_with(id, reason, TokenEvent::Finished(reason));
    }

    fn fail(&mut self, ids: &[SequenceId], message: &str) {
        for &id in ids {
            self.end_with(id, FinishReason::Error, TokenEvent::Failed(message.to_owned()));
        }
    }

    fn end_with(&mut self, id: SequenceId, reason: FinishReason, event: TokenEvent) {
        let Some(live) = self.live.remove(&id) else { return };
        self.scheduler.remove(id);
        let finished = FinishedRequest {
            reason,
            arrival: live.request.arrival,
            queued: live.queued,
            scheduled: live.scheduled,
            first_token: live.first_token,
            last_token: live.last_token,
            finished: Instant::now(),
            prompt_tokens: live.request.prompt.len(),
            cached_tokens: live.cached_tokens,
            generated_tokens: live.generated,
            max_tokens: live.request.stop.max_tokens,
            preemptions: live.preemptions,
        };
        self.observer.finished(&finished);
        (live.on_end)(&finished);
        let queued = live.scheduled.is_none().then_some(live.request.prompt.len());
        self.shared.ended(queued);
        self.outbox.push((live.events, event));
    }

    /// Tells the observer, then the clients.
    fn report(&mut self, mut stats: StepStats) {
        stats.running = self.scheduler.running();
        stats.waiting = self.scheduler.waiting();
        stats.kv_usage = self.scheduler.kv_usage();
        stats.swap_usage = self.scheduler.swap_usage();
        stats.max_num_seqs = self.scheduler.max_num_seqs();
        if stats.waiting == 0 {
            self.shared
                .set_free_places(stats.max_num_seqs.saturating_sub(stats.running));
        }
        self.observer.step(&stats);
        for (events, event) in self.outbox.drain(..) {
            // The client may have left; then nobody needs the event.
            let _ = events.send(event);
        }
    }
}

impl Live {
    /// Takes the logits that follow the prompt's token at `position`. Those computed again after a preemption are
    /// known already.
    fn score(&mut self, position: usize, logits: &[f32]) {
        let SamplingParams { prompt_logprobs, .. } = self.request.sampling;
        if let (Some(known), Some(count)) = (&mut self.prompt_logprobs, prompt_logprobs)
            && known.len() == position
            && let Some(&next) = self.request.prompt.get(position + 1)
        {
            known.push(logprobs(logits, next, count));
        }
    }

    /// Takes a sampled token; returns how the request ends, if it does.
    fn take(&mut self, token: u32, now: Instant, max_model_len: usize) -> Option<FinishReason> {
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.generated += 1;
        if self.request.stop.stop_token_ids.contains(&token) {
            return Some(FinishReason::Stop);
        }
        let full = self.request.prompt.len() + self.generated >= max_model_len;
        (self.generated >= self.request.stop.max_tokens || full).then_some(FinishReason::Length)
    }
}

/// What a panic said.
pub(super) fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without words".to_owned())
}
