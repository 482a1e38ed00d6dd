//! A server: a share of the weights, which changes by gradients that workers push, in the order in which they arrive.

use std::collections::VecDeque;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::letters::{Kind, Letter};
use super::pack::unpack;
use super::shares::Shares;
use super::{Post, REST, Ranks};
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::kernels::Buffer;
use crate::network::Network;
use crate::network::checkpoint::{self, share};
use crate::training::optimiser::Step;
use crate::training::server::update_block;
use crate::training::validate::revive;

/// Blocks on their way to a worker at a time: so many that the way is never empty, so few that a worker which takes long to
/// receive them costs little memory.
const WINDOW: usize = 4;

/// What the leader asks of servers, between stretches.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Errand {
    /// Draw all weights anew.
    Draw {
        /// Seed of the run.
        seed: u64,
    },
    /// Read the weights of a checkpoint.
    Load {
        /// Its folder.
        checkpoint: PathBuf,
    },
    /// Write the weights into the folder of a checkpoint that is not complete; what comes back is a [`share::Part`].
    Save {
        /// The folder.
        folder: PathBuf,
        /// The frames that were learned from.
        data: String,
    },
    /// Draw the filters of some simple units anew, as [`revive`].
    Revive {
        /// The stage, from 0.
        stage: usize,
        /// Their numbers.
        units: Vec<usize>,
        /// Seed of the run.
        seed: u64,
        /// Step of the run.
        step: u64,
    },
}

/// Why an errand failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    problem: String,
    /// For want of room on the disk.
    full_disk: bool,
}

impl Failure {
    fn of(error: &Error) -> Failure {
        Failure { problem: error.to_string(), full_disk: error.is_full_disk() }
    }

    /// As the leader sees it.
    pub fn of_rank(self, rank: usize, errand: &Errand) -> Error {
        let problem = format!("rank {rank}, a server: {}", self.problem);
        match errand {
            Errand::Save { folder, .. } if self.full_disk => {
                Error::io(folder, "write")(std::io::Error::new(std::io::ErrorKind::StorageFull, problem))
            }
            _ => Error::Mismatch(problem),
        }
    }
}

/// A share of the weights, and the workers that use it.
pub struct Server<'a> {
    config: &'a RunConfig,
    network: Network,
    shares: &'a Shares,
    /// Which of the servers it is.
    number: usize,
    ranks: Ranks,
    workers: Vec<Worker>,
    /// Updates that are complete.
    updates: u64,
    /// Blocks that were updated, of each stage.
    changes: Vec<u64>,
}

/// What a server knows of a worker.
#[derive(Debug, Default)]
struct Worker {
    /// Blocks that it waits for, and what to say after them.
    wanted: VecDeque<(usize, usize)>,
    fetched: Option<u64>,
    /// [`Server::changes`] when it was last sent a stage.
    seen: Vec<Option<u64>>,
    /// When its updates were complete, in updates of all, the latest last.
    own: VecDeque<u64>,
    /// How stale its pushes were since it last fetched.
    ages: Vec<u64>,
    done: bool,
}

impl Server<'_> {
    /// The server `number` of `shares`, for the workers of `ranks`. All its weights are 0, until an [`Errand`] brings others.
    ///
    /// # Errors
    /// As [`Network::zeros`].
    pub fn new<'a>(
        config: &'a RunConfig,
        shares: &'a Shares,
        number: usize,
        ranks: Ranks,
    ) -> Result<Server<'a>> {
        let network = Network::zeros(config, true)?;
        for (index, stage) in network.stages.iter().enumerate() {
            stage.blocks.keep_only(shares.of(index, number));
        }
        let stages = network.stages.len();
        let worker = || Worker { seen: vec![None; stages], ..Worker::default() };
        let workers = (0..ranks.workers).map(|_| worker()).collect();
        Ok(Server { config, network, shares, number, ranks, workers, updates: 0, changes: vec![0; stages] })
    }

    /// Serves until no worker wants anything more; returns the network, whose weights are up to date as far as they are this
    /// server's.
    ///
    /// # Errors
    /// As [`work`](Self::work).
    pub fn serve(mut self, post: &mut impl Post) -> Result<Network> {
        while !self.workers.iter().all(|worker| worker.done) {
            if !self.work(post)? {
                std::thread::sleep(REST);
            }
        }
        Ok(self.network)
    }

    /// Does what there is to do: answers letters, and sends what fits on the way. False if there was nothing.
    ///
    /// # Errors
    /// A letter is not what a worker of this version writes.
    pub fn work(&mut self, post: &mut impl Post) -> Result<bool> {
        let letter = post.receive();
        let answered = letter.is_some();
        if let Some((from, letter)) = letter {
            let kind = letter.kind;
            let foreign =
                || Error::Mismatch(format!("rank {from} sent a letter that makes no sense: {kind:?}"));
            match letter.kind {
                Kind::Errand => {
                    let errand = letter.read().ok_or_else(foreign)?;
                    let done = self.run(errand).map_err(|error| Failure::of(&error));
                    post.send(from, Letter::of(Kind::DidIt, &done));
                }
                _ => self.answer(from, &letter).ok_or_else(foreign)?,
            }
        }
        Ok(self.send(post) || answered)
    }

    fn answer(&mut self, from: usize, letter: &Letter) -> Option<()> {
        let worker = self.workers.get_mut(from)?;
        match letter.kind {
            Kind::Gradients => {
                let ([stage, block, number, factor, minibatches], packed) = letter.open()?;
                let (stage, block) = (stage as usize, block as usize);
                let step = Step::new(self.network.cpu, &self.config.training, f64::from_bits(factor), number);
                self.update((stage, block), packed, &step.of(minibatches))?;
            }
            Kind::Pushed => {
                let ([fetched_at], _) = letter.open()?;
                worker.own.retain(|&updates| updates > fetched_at);
                // All since then, but for its own.
                worker.ages.push((self.updates - fetched_at) - worker.own.len() as u64);
                self.updates += 1;
                worker.own.push_back(self.updates);
            }
            Kind::Fetch => {
                let ([end], _) = letter.open()?;
                for stage in 0..(end as usize).min(self.changes.len()) {
                    // Stages that do not learn are sent once.
                    let now = Some(self.changes[stage]);
                    if std::mem::replace(&mut worker.seen[stage], now) != now {
                        let of_part =
                            self.network.stages[stage].of_part(self.ranks.part(from), self.ranks.parts);
                        let blocks =
                            self.shares.of(stage, self.number).filter(|block| of_part.contains(block));
                        worker.wanted.extend(blocks.map(|block| (stage, block)));
                    }
                }
                worker.fetched = Some(self.updates);
            }
            Kind::Done => worker.done = true,
            _ => return None,
        }
        Some(())
    }

    /// Does what the leader asks for.
    ///
    /// # Errors
    /// A checkpoint cannot be read or written.
    pub fn run(&mut self, errand: Errand) -> Result<Option<share::Part>> {
        let own = |stage: usize| self.shares.of(stage, self.number);
        match errand {
            Errand::Draw { seed } => self.network.draw(seed),
            Errand::Load { checkpoint } => checkpoint::load_into(&self.network, &checkpoint)?,
            Errand::Save { folder, data } => {
                let (number, count) = (self.number, self.shares.servers());
                let part = share::write(&folder, (self.config, &data), &self.network, &own, (number, count));
                return part.map(Some);
            }
            Errand::Revive { stage, units, seed, step } => {
                revive(&self.network.stages[stage], &units, seed, step);
            }
        }
        self.changes.iter_mut().for_each(|changes| *changes += 1);
        Ok(None)
    }

    /// Updates a block by gradients as they came.
    fn update(&mut self, (stage, block): (usize, usize), packed: &[u8], step: &Step) -> Option<()> {
        let number = stage;
        let stage = self.network.stages.get(stage)?;
        if !self.shares.of(number, self.number).contains(&block) {
            return None;
        }
        let mut gradients = {
            let arrays = stage.blocks.all()[block].read();
            [&arrays.encoder, &arrays.decoder].map(|array| Buffer::zeros(array.len()))
        };
        let how = self.config.training.push_as;
        let packed = unpack(packed, how, &mut gradients[0])?;
        unpack(packed, how, &mut gradients[1])?;
        update_block(stage, block, &mut gradients, step);
        self.changes[number] += 1;
        Some(())
    }

    /// Sends workers what they want, as far as there is room on the way.
    fn send(&mut self, post: &mut impl Post) -> bool {
        let mut sent = false;
        let with_sums = self.config.training.copies_weights();
        for (rank, worker) in self.workers.iter_mut().enumerate() {
            let waits = worker.fetched.is_some();
            while waits && post.on_the_way(rank) < WINDOW {
                sent = true;
                let Some((stage, block)) = worker.wanted.pop_front() else {
                    let mut head = vec![worker.fetched.take().expect("it waits")];
                    head.append(&mut worker.ages);
                    post.send(rank, Letter::new(Kind::Fetched, &head));
                    break;
                };
                let mut letter = Letter::new(Kind::Weights, &[stage as u64, block as u64]);
                self.network.stages[stage].blocks.all()[block].read().write_to(with_sums, &mut letter.bytes);
                post.send(rank, letter);
            }
        }
        sent
    }
}
