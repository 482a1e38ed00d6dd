//! A worker that is not the leader: learns from frames of its own when it is told to.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use super::LEADER;
use super::lead::{Order, Report};
use super::letters::{Kind, Letter};
use super::remote::{Outbox, Remote, ended, foreign};
use crate::config::RunConfig;
use crate::dataset::{Augment, Dataset, Shuffle, Split, available_memory};
use crate::error::{Error, Result};
use crate::frames::FrameStore;
use crate::kernels::{Rows, lanes_for};
use crate::network::Network;
use crate::network::checkpoint;
use crate::network::preprocess::Inputs;
use crate::training::replica::{Job, Replica};
use crate::training::{Feeder, Skipped, ahead, inputs_len, prepare};

/// A worker's end of the job.
pub struct Follower<'a> {
    /// The weights.
    pub remote: Remote<'a>,
    /// Letters that are not weights.
    pub office: Receiver<Result<(usize, Letter)>>,
    /// Its rank, and how many workers there are.
    pub place: (usize, usize),
}

impl Follower<'_> {
    /// Learns from its share of the frames of the run in `out` until it is told that there is no more to do.
    ///
    /// # Errors
    /// Frames or checkpoint cannot be read, or the job has ended.
    pub fn work(&self, config: &RunConfig, store: &FrameStore, out: &Path, threads: usize) -> Result<()> {
        let office = Office { out: self.remote.outbox(), letters: &self.office };
        let Some(mut order) = office.order()? else { return Ok(()) };
        let (shape, margin) = (config.input_shape(), config.input.margin);
        let frames = Dataset::open(store, shape, margin, out)?;
        let split = own_split(&frames, store, config, order.seed, self.place)?;
        let whitening = checkpoint::load_whitening(&order.checkpoint)?;
        let augment = Augment::new(&config.input, order.seed);
        let inputs = Inputs::for_training(&frames, &whitening, (available_memory() / 8) as usize, augment);
        let own = Arc::new(Network::zeros(config, true)?);
        let rows = if threads > 1 { Rows::Shared } else { Rows::InTurn };
        let mut replica = Replica::far(&own, &config.training, rows);
        let (training, skipped) = (&config.training, Skipped::default());
        let seed = shuffle_seed(order.seed, self.place.0);
        let shuffle = Shuffle::new(seed, split.training.len(), training.batch);
        let first = order.begin / self.place.1 as u64;
        std::thread::scope(|scope| {
            let prepare = prepare(&inputs, &split, &skipped, shuffle, lanes_for(training.batch), first);
            let feeder = Feeder::start(scope, first..u64::MAX, (ahead(1), inputs_len(config)), prepare)?;
            loop {
                let job = Job { training, stages: order.plan.stages.clone() };
                let step = |number| order.plan.step(own.cpu, training, number);
                let (mut last, mut ages) = (None, Vec::new());
                office.ask()?;
                while let Some(number) = office.number()? {
                    office.ask()?;
                    let waiting = Instant::now();
                    feeder.take(u64::MAX, &mut replica.work.input)?;
                    let stall = waiting.elapsed().as_secs_f64();
                    let losses =
                        replica.learn(&self.remote, &job, step(number), None, |age| ages.push(age))?.to_vec();
                    let (ages, skipped) = (std::mem::take(&mut ages), skipped.take());
                    let report = Report { number, losses, stall, skipped, ages };
                    office.out.send(LEADER, Letter::of(Kind::Report, &report))?;
                    last = Some(number);
                }
                if let Some(last) = last {
                    replica.finish(&self.remote, &job, step(last), |_| ())?;
                }
                office.out.send(LEADER, Letter::new(Kind::Settled, &[]))?;
                match office.order()? {
                    Some(next) => order = next,
                    None => return Ok(()),
                }
            }
        })
    }
}

/// The seed of the order in which a worker takes its frames.
pub fn shuffle_seed(seed: u64, rank: usize) -> u64 {
    seed.wrapping_add((rank as u64) << 32)
}

/// The frames that the worker of a rank among so many learns from: of those that are not held out, the ones that it reads.
pub fn own_split(
    frames: &Dataset,
    store: &FrameStore,
    config: &RunConfig,
    seed: u64,
    (rank, workers): (usize, usize),
) -> Result<Split> {
    let mut split = Split::new(&frames.keys, config.training.held_out, seed);
    // Pictures that cannot be read are in the store, and not among the frames.
    let mut in_store = 0..store.len();
    let mine: Vec<bool> = frames
        .keys
        .iter()
        .map(|key| {
            let index = in_store.find(|&index| store.key(index) == key).expect("frames are of the store");
            store.reader(index, workers) == rank
        })
        .collect();
    split.training.retain(|&number| mine[number as usize]);
    if split.training.is_empty() {
        let problem =
            format!("no frames for rank {rank} of {workers} workers: give it more frames, or fewer workers");
        return Err(Error::Mismatch(problem));
    }
    Ok(split)
}

/// Letters to the leader and from it.
struct Office<'a> {
    out: Outbox,
    letters: &'a Receiver<Result<(usize, Letter)>>,
}

impl Office<'_> {
    fn next(&self) -> Result<(usize, Letter)> {
        self.letters.recv().map_err(|_| ended())?
    }

    /// Waits for what to do next; none if there is nothing more.
    fn order(&self) -> Result<Option<Order>> {
        let (from, letter) = self.next()?;
        match letter.kind {
            Kind::End => Ok(None),
            Kind::Order => letter.read().map(Some).ok_or_else(|| foreign(from, &letter)),
            _ => Err(foreign(from, &letter)),
        }
    }

    /// Asks for a number, one ahead of need.
    fn ask(&self) -> Result<()> {
        self.out.send(LEADER, Letter::new(Kind::Number, &[]))
    }

    /// The number asked for; none if there are no more.
    fn number(&self) -> Result<Option<u64>> {
        let (from, letter) = self.next()?;
        match letter.kind {
            Kind::Take => Ok(letter.numbers().next()),
            _ => Err(foreign(from, &letter)),
        }
    }
}
