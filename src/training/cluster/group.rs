//! The ranks of a replica that is split by position (paper §4.1: model parallelism): each is a worker with some of its rows, and they
//! exchange the rows around theirs while they learn from the same minibatch.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard};

use super::Ranks;
use super::letters::{Kind, Letter};
use super::remote::{Outbox, ended, foreign};
use crate::error::{Error, Result};
use crate::network::Network;
use crate::network::strip::Peers;

/// A rank's end of its replica.
#[derive(Clone)]
pub struct Group {
    ranks: Ranks,
    rank: usize,
    out: Outbox,
    rows: Arc<Rows>,
}

/// What carries rows from part to part.
struct Rows {
    out: Outbox,
    /// Rank of the first part.
    first: usize,
    mail: Mutex<Mail>,
}

struct Mail {
    letters: Receiver<Result<(usize, Letter)>>,
    /// Letters that came before they were wanted, of each part.
    early: Vec<VecDeque<Letter>>,
    /// Why nothing more comes.
    lost: Option<String>,
}

impl Group {
    /// Of a worker; `letters` brings rows of the other parts.
    pub fn new(ranks: Ranks, rank: usize, out: Outbox, letters: Receiver<Result<(usize, Letter)>>) -> Group {
        let early = (0..ranks.parts).map(|_| VecDeque::new()).collect();
        let mail = Mutex::new(Mail { letters, early, lost: None });
        let rows = Arc::new(Rows { out: out.clone(), first: ranks.head(rank), mail });
        Group { ranks, rank, out, rows }
    }

    /// What this worker has of a network.
    pub fn own(&self, network: Network) -> Network {
        let parts = self.ranks.parts;
        if parts == 1 {
            return network;
        }
        let peers: Arc<dyn Peers> = Arc::clone(&self.rows) as Arc<dyn Peers>;
        network.part((self.ranks.part(self.rank), parts), &peers)
    }

    /// Which of the replicas this is, or is a part of, and how many there are.
    pub fn replica(&self) -> (usize, usize) {
        (self.rank / self.ranks.parts, self.ranks.replicas())
    }

    /// Which of the workers this is, and how many there are.
    pub fn worker(&self) -> (usize, usize) {
        (self.rank, self.ranks.workers)
    }

    /// True for the first part, which the others follow.
    pub fn is_head(&self) -> bool {
        self.ranks.head(self.rank) == self.rank
    }

    /// Tells the other parts which minibatch is next: its number, and its place in the order of the replica's own.
    ///
    /// # Errors
    /// The job has ended.
    pub fn turn(&self, number: u64, place: u64) -> Result<()> {
        self.to_others(|| Letter::new(Kind::Turn, &[number, place]))
    }

    /// Tells the other parts that there is none for now.
    ///
    /// # Errors
    /// The job has ended.
    pub fn stop(&self) -> Result<()> {
        self.to_others(|| Letter::new(Kind::Turn, &[]))
    }

    /// Tells the other parts to look at frames with this one.
    ///
    /// # Errors
    /// The job has ended.
    pub fn look(&self, frames: &[usize]) -> Result<()> {
        self.to_others(|| Letter::of(Kind::Look, &frames))
    }

    fn to_others(&self, letter: impl Fn() -> Letter) -> Result<()> {
        (1..self.ranks.parts).try_for_each(|part| self.out.send(self.rank + part, letter()))
    }

    /// Refuses what was computed without all parts.
    ///
    /// # Errors
    /// A part is lost.
    pub fn check(&self) -> Result<()> {
        match &self.rows.mail().lost {
            Some(why) => Err(Error::Mismatch(why.clone())),
            None => Ok(()),
        }
    }
}

impl Rows {
    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().expect("nobody panics who reads letters")
    }

    fn swap_letters(&self, to: Vec<(usize, Vec<f32>)>, from: &[(usize, usize)]) -> Result<Vec<Vec<f32>>> {
        for (part, values) in to {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.out.send(self.first + part, Letter { kind: Kind::Rows, bytes })?;
        }
        let mail = &mut *self.mail();
        let values = |&(part, len): &(usize, usize)| {
            let letter = mail.next(self.first, part)?;
            let values = letter.bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
            let values: Vec<f32> = values.collect();
            if values.len() == len { Ok(values) } else { Err(foreign(self.first + part, &letter)) }
        };
        from.iter().map(values).collect()
    }
}

impl Mail {
    /// The next letter of a part.
    fn next(&mut self, first: usize, part: usize) -> Result<Letter> {
        loop {
            if let Some(letter) = self.early[part].pop_front() {
                return Ok(letter);
            }
            let (from, letter) = self.letters.recv().map_err(|_| ended())??;
            let of = from.checked_sub(first).and_then(|part| self.early.get_mut(part));
            of.ok_or_else(|| foreign(from, &letter))?.push_back(letter);
        }
    }
}

impl Peers for Rows {
    fn swap(&self, to: Vec<(usize, Vec<f32>)>, from: &[(usize, usize)]) -> Vec<Vec<f32>> {
        if self.mail().lost.is_none() {
            match self.swap_letters(to, from) {
                Ok(values) => return values,
                Err(error) => self.mail().lost = Some(error.to_string()),
            }
        }
        from.iter().map(|&(_, len)| vec![0.0; len]).collect()
    }
}
