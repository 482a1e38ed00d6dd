//! What workers and servers write to each other.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a letter is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To a server: gradients of a block. Head: stage, block, number of the step, bits of the schedule's factor, minibatches.
    Gradients,
    /// To a server: those were all. Head: how many updates it had seen when the weights were fetched that they were made from.
    Pushed,
    /// To a server: weights, please. Head: the stages that are wanted are those below.
    Fetch,
    /// To a worker: weights of a block, and what the optimiser remembers of them if the worker learns on between fetches. Head: stage, block.
    Weights,
    /// To a worker: those were all that had changed. Head: how many updates the server had seen before; then how stale each of the
    /// worker's pushes was since the last time.
    Fetched,
    /// To a server: the worker wants nothing more.
    Done,
    /// To a server, from the leader: an [`Errand`](super::serve::Errand).
    Errand,
    /// To the leader: it is done. What came of it, or why it failed.
    DidIt,
    /// To the leader: a number for a minibatch, please.
    Number,
    /// To a worker: the number of its next minibatch, if there are more in this stretch.
    Take,
    /// To the leader: a [`Report`](super::lead::Report) of a minibatch.
    Report,
    /// To the leader: all that this worker learned in this stretch is in the weights.
    Settled,
    /// To a worker: a stretch begins, an [`Order`](super::lead::Order).
    Order,
    /// To a worker: that was the last one.
    End,
    /// To a worker: decode your share of the frames.
    Decode,
    /// To the leader: it is done. What came of it, or why it failed.
    Decoded,
    /// To the leader: this worker is there, whatever it does.
    Alive,
    /// To the other parts of a replica: the number of their next minibatch and its place in the order of the replica's own, if there
    /// are more in this stretch.
    Turn,
    /// To the other parts of a replica: look at these frames.
    Look,
    /// From part to part of a replica: rows of maps.
    Rows,
    /// Something that this version does not write.
    Unknown,
}

impl Kind {
    const ALL: [Kind; 20] = [
        Kind::Gradients,
        Kind::Pushed,
        Kind::Fetch,
        Kind::Weights,
        Kind::Fetched,
        Kind::Done,
        Kind::Errand,
        Kind::DidIt,
        Kind::Number,
        Kind::Take,
        Kind::Report,
        Kind::Settled,
        Kind::Order,
        Kind::End,
        Kind::Decode,
        Kind::Decoded,
        Kind::Alive,
        Kind::Turn,
        Kind::Look,
        Kind::Rows,
    ];

    /// Its number on the wire.
    pub fn tag(self) -> i32 {
        self as i32
    }

    /// The kind of this number.
    pub fn of_tag(tag: i32) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.tag() == tag)
    }
}

/// A letter: numbers at its head, then whatever belongs to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// What it is about.
    pub kind: Kind,
    /// All of it, in bytes: numbers of 64 bits, lower bytes first.
    pub bytes: Vec<u8>,
}

impl Letter {
    /// With these numbers at its head.
    pub fn new(kind: Kind, head: &[u64]) -> Letter {
        Letter { kind, bytes: head.iter().flat_map(|number| number.to_le_bytes()).collect() }
    }

    /// With plain data in it.
    pub fn of(kind: Kind, content: &impl Serialize) -> Letter {
        Letter { kind, bytes: serde_json::to_vec(content).expect("plain data") }
    }

    /// The plain data in it, if that is what it should be.
    pub fn read<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.bytes).ok()
    }

    /// The numbers at its head, as many as its kind has, and what follows; none if it is too short.
    pub fn open<const N: usize>(&self) -> Option<([u64; N], &[u8])> {
        let (head, rest) = self.bytes.split_at_checked(8 * N)?;
        let mut numbers = [0; N];
        numbers
            .iter_mut()
            .zip(head.as_chunks().0)
            .for_each(|(number, bytes)| *number = u64::from_le_bytes(*bytes));
        Some((numbers, rest))
    }

    /// All of it as numbers.
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        self.bytes.as_chunks().0.iter().map(|&bytes| u64::from_le_bytes(bytes))
    }
}
