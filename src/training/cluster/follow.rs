//! A worker that is not the leader: learns from frames of its own when it is told to.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use super::LEADER;
use super::group::Group;
use super::lead::{Order, Report};
use super::letters::{Kind, Letter};
use super::remote::{Outbox, Remote, ended, foreign};
use crate::config::RunConfig;
use crate::dataset::{Augment, Dataset, Shuffle, Split, available_memory};
use crate::error::{Error, Result};
use crate::frames::FrameStore;
use crate::kernels::{Cpu, Rows, lanes_for};
use crate::network::Network;
use crate::network::checkpoint;
use crate::network::preprocess::Inputs;
use crate::training::replica::{Job, Replica};
use crate::training::server::{Own, ParameterServer};
use crate::training::validate::validate;
use crate::training::{Feeder, Skipped, ahead, inputs_len, prepare};

/// A worker's end of the job.
pub struct Follower<'a> {
    /// The weights.
    pub remote: Remote<'a>,
    /// Letters that are not weights.
    pub office: Receiver<Result<(usize, Letter)>>,
    /// Its replica, or the part that it has of it.
    pub group: Group,
}

/// What a worker is to do.
enum Task {
    /// Learn for a while.
    Learn(Order),
    /// Look at frames together with the other parts of the replica.
    Look(Vec<usize>),
    /// Decode its share of the frames, before all else.
    Decode,
    /// Nothing more.
    End,
}

impl Follower<'_> {
    /// Learns from its share of the frames of the run in `out` until it is told that there is no more to do.
    ///
    /// # Errors
    /// Frames or checkpoint cannot be read, or the job has ended.
    pub fn work(&self, config: &RunConfig, store: &FrameStore, out: &Path, threads: usize) -> Result<()> {
        let office = Office { out: self.remote.outbox(), letters: &self.office };
        let (shape, margin) = (config.input_shape(), config.input.margin);
        let mut task = office.task()?;
        if let Task::Decode = task {
            let decoded = Dataset::decode_share(store, shape, margin, out, self.group.worker(), || ());
            let decoded = decoded.map_err(|error| error.to_string());
            office.out.send(LEADER, Letter::of(Kind::Decoded, &decoded))?;
            task = office.task()?;
        }
        let Task::Learn(order) = &task else { return Ok(()) };
        let frames = Dataset::open(store, shape, margin, out)?;
        let split = own_split(&frames, store, config, order.seed, self.group.replica())?;
        let whitening = checkpoint::load_whitening(&order.checkpoint)?;
        let augment = Augment::new(&config.input, order.seed);
        let inputs = Inputs::for_training(&frames, &whitening, (available_memory() / 8) as usize, augment);
        let own = Arc::new(self.group.own(Network::zeros(config, true)?));
        let rows = if threads > 1 { Rows::Shared } else { Rows::InTurn };
        let mut replica = Replica::far(&own, &config.training, rows);
        let skipped = Skipped::default();
        let (replica_number, replicas) = self.group.replica();
        let (seed, first) = (shuffle_seed(order.seed, replica_number), order.begin / replicas as u64);
        std::thread::scope(|scope| {
            let start = |first| {
                let shuffle = Shuffle::new(seed, split.training.len(), config.training.batch);
                let lanes = lanes_for(config.training.batch);
                let prepare = prepare(&inputs, &split, &skipped, shuffle, lanes, first);
                Feeder::start(scope, first..u64::MAX, (ahead(1), inputs_len(config)), prepare)
            };
            let mut feeder = start(first)?;
            let mut learned = 0..0;
            loop {
                match task {
                    Task::Learn(order) => {
                        self.learn(&office, &order, config, &mut replica, &skipped, (&mut feeder, &start))?;
                        learned = order.plan.stages;
                        office.out.send(LEADER, Letter::new(Kind::Settled, &[]))?;
                    }
                    Task::Look(frames) => {
                        let all = Own { network: Some(&own), end: learned.end, rows };
                        self.remote.settle(&all, &mut |_| ())?;
                        validate(&own, std::slice::from_mut(&mut replica), &inputs, &frames, &learned);
                        self.group.check()?;
                    }
                    Task::Decode => {
                        let problem = "rank 0 asks for frames to be decoded in the middle of a run";
                        return Err(Error::Mismatch(problem.into()));
                    }
                    Task::End => return Ok(()),
                }
                task = office.task()?;
            }
        })
    }

    /// Learns as it is ordered to, until there is nothing more in this stretch.
    fn learn(
        &self,
        office: &Office,
        order: &Order,
        config: &RunConfig,
        replica: &mut Replica,
        skipped: &Skipped,
        (feeder, start): (&mut Feeder, &impl Fn(u64) -> Result<Feeder>),
    ) -> Result<()> {
        let (training, cpu) = (&config.training, Cpu::detect()?);
        let job = Job { training, stages: order.plan.stages.clone() };
        let step = |number| order.plan.step(cpu, training, number);
        let (mut last, mut ages, leads) = (None, Vec::new(), self.group.is_head());
        if leads {
            office.ask()?;
        }
        while let Some((number, place)) = self.next(office, feeder)? {
            if place != feeder.next() {
                // The replica has gone back to an earlier checkpoint.
                *feeder = start(place)?;
            }
            let waiting = Instant::now();
            feeder.take(u64::MAX, &mut replica.work.input)?;
            let stall = waiting.elapsed().as_secs_f64();
            let losses =
                replica.learn(&self.remote, &job, step(number), None, |age| ages.push(age))?.to_vec();
            self.group.check()?;
            let (ages, skipped) = (std::mem::take(&mut ages), skipped.take());
            if leads {
                let report = Report { number, losses, stall, skipped, ages };
                office.out.send(LEADER, Letter::of(Kind::Report, &report))?;
            }
            last = Some(number);
        }
        match last {
            Some(last) => replica.finish(&self.remote, &job, step(last), |_| ()),
            None => Ok(()),
        }
    }

    /// The number of the next minibatch, and its place in the order of the replica's own.
    fn next(&self, office: &Office, feeder: &Feeder) -> Result<Option<(u64, u64)>> {
        if !self.group.is_head() {
            return office.turn();
        }
        let Some(number) = office.number()? else {
            self.group.stop()?;
            return Ok(None);
        };
        office.ask()?;
        self.group.turn(number, feeder.next())?;
        Ok(Some((number, feeder.next())))
    }
}

/// The seed of the order in which a replica takes its frames.
pub fn shuffle_seed(seed: u64, replica: usize) -> u64 {
    seed.wrapping_add((replica as u64) << 32)
}

/// The frames that a replica among so many learns from: of those that are not held out, the ones that it reads.
pub fn own_split(
    frames: &Dataset,
    store: &FrameStore,
    config: &RunConfig,
    seed: u64,
    (replica, replicas): (usize, usize),
) -> Result<Split> {
    let mut split = Split::new(&frames.keys, config.training.held_out, seed);
    // Pictures that cannot be read are in the store, and not among the frames.
    let mut in_store = 0..store.len();
    let mine: Vec<bool> = frames
        .keys
        .iter()
        .map(|key| {
            let index = in_store.find(|&index| store.key(index) == key).expect("frames are of the store");
            store.reader(index, replicas) == replica
        })
        .collect();
    split.training.retain(|&number| mine[number as usize]);
    if split.training.is_empty() {
        let problem =
            format!("no frames for replica {replica} of {replicas}: give it more frames, or fewer workers");
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

    /// Waits for what to do next.
    fn task(&self) -> Result<Task> {
        let (from, letter) = self.next()?;
        let task = match letter.kind {
            Kind::End => Some(Task::End),
            Kind::Decode => Some(Task::Decode),
            Kind::Order => letter.read().map(Task::Learn),
            Kind::Look => letter.read().map(Task::Look),
            _ => None,
        };
        task.ok_or_else(|| foreign(from, &letter))
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

    /// The number of the next minibatch and its place, as the first part of the replica says; none if there are no more.
    fn turn(&self) -> Result<Option<(u64, u64)>> {
        let (from, letter) = self.next()?;
        match (letter.kind, letter.open()) {
            (Kind::Turn, Some(([number, place], _))) => Ok(Some((number, place))),
            (Kind::Turn, None) => Ok(None),
            _ => Err(foreign(from, &letter)),
        }
    }
}
