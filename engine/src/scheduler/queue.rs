//! Who waits, and who is next: by priority, then those preempted, then clients in turn by tokens, then by arrival.
//!
//! Clients share the engine as in the virtual token counter of Sheng et al., "Fairness in Serving Large Language
//! Models" (OSDI 2024): each client's counter grows by the tokens it is served, and the lowest counter is next. A
//! client that begins to wait is lifted to the lowest counter of those who wait, so that idling saves up nothing.
use std::collections::HashMap;

use crate::sequence::{Sequence, SequenceId};

/// The waiting sequences and what each client was served.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Vec<Sequence>,
    /// Never forgotten, so that leaving and coming back gains nothing; there are as many as API keys.
    clients: HashMap<u64, Client>,
    /// The client whose sequence left last.
    last: u64,
    arrivals: u64,
}

#[derive(Debug, Default)]
struct Client {
    served: u64,
    waiting: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn push(&mut self, mut sequence: Sequence) {
        sequence.arrival = self.arrivals;
        self.arrivals += 1;
        let others = self.clients.values().filter(|client| client.waiting > 0);
        let last = self.clients.get(&self.last).map_or(0, |client| client.served);
        let lowest = others.map(|client| client.served).min().unwrap_or(last);
        let client = self.clients.entry(sequence.terms.client).or_default();
        if client.waiting == 0 {
            client.served = client.served.max(lowest);
        }
        client.waiting += 1;
        self.waiting.push(sequence);
    }

    /// A sequence that ran before waits again; it was served already.
    pub(super) fn push_preempted(&mut self, sequence: Sequence) {
        self.clients.entry(sequence.terms.client).or_default().waiting += 1;
        self.waiting.push(sequence);
    }

    /// Those that ran before.
    pub(super) fn preempted(&self) -> impl Iterator<Item = &Sequence> {
        self.waiting.iter().filter(|sequence| sequence.ticket.is_some())
    }

    /// Where the next one is.
    pub(super) fn next(&self) -> Option<usize> {
        let served = |sequence: &Sequence| self.clients.get(&sequence.terms.client).map_or(0, |c| c.served);
        let rank = |sequence: &Sequence| match sequence.ticket {
            Some(ticket) => (sequence.terms.priority, false, 0, ticket),
            None => (sequence.terms.priority, true, served(sequence), sequence.arrival),
        };
        (0..self.waiting.len()).min_by_key(|&index| rank(&self.waiting[index]))
    }

    pub(super) fn get(&self, index: usize) -> Option<&Sequence> {
        self.waiting.get(index)
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Sequence> {
        self.waiting.get_mut(index)
    }

    /// Takes the sequence at `index` out to run.
    pub(super) fn take(&mut self, index: usize) -> Sequence {
        let sequence = self.waiting.swap_remove(index);
        if let Some(client) = self.clients.get_mut(&sequence.terms.client) {
            client.waiting -= 1;
        }
        self.last = sequence.terms.client;
        sequence
    }

    /// Counts tokens that a client was served.
    pub(super) fn charge(&mut self, client: u64, tokens: usize) {
        self.clients.entry(client).or_default().served += tokens as u64;
    }

    /// Forgets a sequence; false if it does not wait.
    pub(super) fn remove(&mut self, id: SequenceId) -> bool {
        let Some(index) = self.waiting.iter().position(|sequence| sequence.id == id) else {
            return false;
        };
        let sequence = self.waiting.swap_remove(index);
        if let Some(client) = self.clients.get_mut(&sequence.terms.client) {
            client.waiting -= 1;
        }
        true
    }
}
