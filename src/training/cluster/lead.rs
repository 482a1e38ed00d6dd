//! The leader, the first worker: gives out the numbers of minibatches, hears how each went, and sends servers on errands. It learns as the
//! others do.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Ranks;
use super::group::Group;
use super::letters::{Kind, Letter};
use super::remote::{Outbox, Remote, ended, foreign};
use super::serve::{Errand, Failure};
use crate::dataset::Decoded;
use crate::error::{Error, Result};
use crate::network::checkpoint::share::Part;
use crate::network::objective::Loss;
use crate::training::optimiser::Plan;

/// Minibatches that are to be learned from, by number.
#[derive(Debug, Default)]
pub struct Desk {
    numbers: Mutex<Range<u64>>,
}

impl Desk {
    /// The next one, if there is one.
    pub fn take(&self) -> Option<u64> {
        self.numbers().next()
    }

    /// The number of the next one.
    pub fn next(&self) -> u64 {
        self.numbers().start
    }

    /// Gives out no more.
    pub fn stop(&self) {
        let mut numbers = self.numbers();
        numbers.end = numbers.start;
    }

    fn numbers(&self) -> std::sync::MutexGuard<'_, Range<u64>> {
        self.numbers.lock().expect("nobody panics who takes a number")
    }
}

/// What workers are to do for a while.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// Seed of the run.
    pub seed: u64,
    /// What learns, and how fast.
    pub plan: Plan,
    /// The step that the stretch begins with.
    pub begin: u64,
    /// The checkpoint that the run began or went on with.
    pub checkpoint: PathBuf,
}

/// How a minibatch of another worker went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Its number.
    pub number: u64,
    /// Of the stages that learn.
    pub losses: Vec<Loss>,
    /// Seconds that it waited for frames.
    pub stall: f64,
    /// Pictures passed over.
    pub skipped: usize,
    /// How stale pushes were that are known since its last report.
    pub ages: Vec<u64>,
}

/// The leader's end of the job.
pub struct Lead<'a> {
    /// The weights.
    pub remote: Remote<'a>,
    /// Its replica.
    pub group: Group,
    ranks: Ranks,
    desk: &'a Desk,
    /// Minibatches that each replica learned from.
    done: Vec<AtomicU64>,
    out: Outbox,
    office: Mutex<Receiver<Result<(usize, Letter)>>>,
}

/// What the leader hears.
pub enum News {
    /// Of a minibatch.
    Report(Report),
    /// A worker has done its part of the stretch.
    Settled,
}

impl<'a> Lead<'a> {
    /// Of a job of these ranks; `office` brings the letters that are not weights.
    pub fn new(
        (remote, group): (Remote<'a>, Group),
        ranks: Ranks,
        desk: &'a Desk,
        office: Receiver<Result<(usize, Letter)>>,
    ) -> Lead<'a> {
        let out = remote.outbox();
        let done = (0..ranks.replicas()).map(|_| AtomicU64::new(0)).collect();
        Lead { remote, group, ranks, desk, done, out, office: Mutex::new(office) }
    }

    /// Ranks of the job.
    pub fn ranks(&self) -> Ranks {
        self.ranks
    }

    /// Numbers of minibatches.
    pub fn desk(&self) -> &Desk {
        self.desk
    }

    /// Counts a minibatch of a replica.
    pub fn count(&self, replica: usize) {
        if let Some(done) = self.done.get(replica) {
            done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Minibatches that each replica learned from in this job.
    pub fn done(&self) -> Vec<u64> {
        self.done.iter().map(|done| done.load(Ordering::Relaxed)).collect()
    }

    /// Has all workers decode their shares of the frames, of which `own` is the leader's; what came of them, in order.
    ///
    /// # Errors
    /// One of them failed, or the job has ended.
    pub fn decode(&self, own: impl FnOnce() -> Result<Decoded>) -> Result<Vec<Decoded>> {
        self.to_workers(|| Letter::new(Kind::Decode, &[]))?;
        let mut shares = vec![own()?];
        shares.resize_with(self.ranks.workers, Decoded::default);
        let office = self.office.lock().expect("nobody panics who reads letters");
        for _ in 1..self.ranks.workers {
            let (from, letter) = office.recv().map_err(|_| ended())??;
            let decoded: Option<std::result::Result<Decoded, String>> = letter.read();
            let decoded =
                decoded.filter(|_| letter.kind == Kind::Decoded).ok_or_else(|| foreign(from, &letter))?;
            shares[from] =
                decoded.map_err(|problem| Error::Mismatch(format!("rank {from}, a worker: {problem}")))?;
        }
        Ok(shares)
    }

    /// Begins a stretch of minibatches up to number `end`, on all workers.
    ///
    /// # Errors
    /// The job has ended.
    pub fn begin(&self, order: &Order, end: u64) -> Result<()> {
        *self.desk.numbers() = order.begin..end;
        self.to_workers(|| Letter::of(Kind::Order, order))
    }

    /// Tells workers that there is nothing more to do.
    ///
    /// # Errors
    /// The job has ended.
    pub fn end(&self) -> Result<()> {
        self.to_workers(|| Letter::new(Kind::End, &[]))
    }

    fn to_workers(&self, letter: impl Fn() -> Letter) -> Result<()> {
        (1..self.ranks.workers).try_for_each(|rank| self.out.send(rank, letter()))
    }

    /// What another worker has to tell, if it does so in time.
    ///
    /// # Errors
    /// The job has ended, or a rank does not answer.
    pub fn hear(&self, patience: Duration) -> Result<Option<News>> {
        let office = self.office.lock().expect("nobody panics who reads letters");
        match office.recv_timeout(patience) {
            Ok(letter) => {
                let (from, letter) = letter?;
                let news = match letter.kind {
                    Kind::Report => {
                        self.count(from / self.ranks.parts);
                        letter.read().map(News::Report)
                    }
                    Kind::Settled => Some(News::Settled),
                    _ => None,
                };
                news.map(Some).ok_or_else(|| foreign(from, &letter))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(ended()),
        }
    }

    /// Sends all servers on an errand, between stretches, and waits for what comes of it.
    ///
    /// # Errors
    /// It failed.
    pub fn send_servers(&self, errand: &Errand) -> Result<Vec<Part>> {
        for rank in self.ranks.of_servers() {
            self.out.send(rank, Letter::of(Kind::Errand, errand))?;
        }
        let office = self.office.lock().expect("nobody panics who reads letters");
        // All answers, so that none is taken for that to a later errand.
        let mut outcomes = Vec::new();
        for _ in 0..self.ranks.servers {
            let (from, letter) = office.recv().map_err(|_| ended())??;
            let done: Option<std::result::Result<Option<Part>, Failure>> = letter.read();
            let done = done.filter(|_| letter.kind == Kind::DidIt).ok_or_else(|| foreign(from, &letter))?;
            outcomes.push(done.map_err(|failure| failure.of_rank(from, errand)));
        }
        let mut parts = Vec::new();
        for outcome in outcomes {
            parts.extend(outcome?);
        }
        Ok(parts)
    }
}
