//! The parameter server (paper §4.1): what replicas fetch weights from and push gradients to. On threads that is [`Store`], the
//! weights in this process's memory.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::optimiser::Step;
use crate::error::Result;
use crate::kernels::{Buffer, Rows};
use crate::network::shared::{Clock, Fetched};
use crate::network::{At, Network, Stage, WeightUpdate, Weights};

/// Where the weights are that replicas share.
pub trait ParameterServer: Sync {
    /// The weights, if they are in this process's memory: replicas may read them there, and update them as gradients are made.
    fn in_memory(&self) -> Option<&Network>;

    /// Brings a replica's `own` weights up to date, if they are wanted now or have come; without own weights, only tells the time.
    /// None if they stay as they are.
    ///
    /// # Errors
    /// The weights are elsewhere, and do not come.
    fn fetch(&self, own: &Own, when: When) -> Result<Option<Fetched>>;

    /// Updates the weights. Calls `pushed` with how stale gradients were, that of each update which is known by now: how many
    /// updates of others came between the weights being fetched and the update.
    ///
    /// # Errors
    /// The weights are elsewhere, and cannot be reached.
    fn push(&self, push: Push, pushed: &mut dyn FnMut(u64)) -> Result<()>;

    /// Waits until all that a replica pushed is in the weights, and its own are those: at the end of a while.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    fn settle(&self, own: &Own, pushed: &mut dyn FnMut(u64)) -> Result<()>;
}

/// Weights that a replica has for itself.
pub struct Own<'a> {
    /// The network, if it has.
    pub network: Option<&'a Network>,
    /// It uses the stages below this (from 0).
    pub end: usize,
    /// How blocks are worked on.
    pub rows: Rows,
}

/// When weights are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The replica has none.
    Now,
    /// It is time for new ones. Where they have a way to go, they may come later; but those asked for before have to be here.
    Due,
    /// If they have come.
    IfHere,
}

/// One update of the weights that replicas share.
pub struct Push<'a> {
    /// Gradients added up over minibatches, of which what is pushed is taken away; none if the weights were updated as they were
    /// made.
    pub gradients: Option<&'a Gradients>,
    /// What they are multiplied by.
    pub scale: f32,
    /// The stages that learn.
    pub stages: Range<usize>,
    /// What makes new weights of them.
    pub step: Step,
    /// When the oldest weights were fetched that they were made from.
    pub fetched: Fetched,
    /// How blocks are worked on.
    pub rows: Rows,
}

/// The weights in this process's memory.
pub struct Store {
    /// The weights.
    pub network: Arc<Network>,
    /// Counts their updates.
    pub clock: Clock,
}

impl Store {
    /// That no update has changed yet.
    pub fn new(network: impl Into<Arc<Network>>) -> Store {
        Store { network: network.into(), clock: Clock::new() }
    }
}

impl ParameterServer for Store {
    fn in_memory(&self) -> Option<&Network> {
        Some(&self.network)
    }

    fn fetch(&self, own: &Own, when: When) -> Result<Option<Fetched>> {
        if when == When::IfHere {
            return Ok(None);
        }
        let fetched = self.clock.fetch();
        let stages = own.network.iter().flat_map(|own| &own.stages);
        for (to, from) in stages.zip(&self.network.stages).take(own.end) {
            to.blocks.copy_from(&from.blocks, own.rows);
        }
        Ok(Some(fetched))
    }

    fn push(&self, push: Push, pushed: &mut dyn FnMut(u64)) -> Result<()> {
        for stage in &self.network.stages[push.stages.clone()] {
            let blocks = stage.blocks.all().len();
            if let Some(gradients) = push.gradients {
                push.rows.each_number(blocks, |number| {
                    gradients.edit(stage.number - 1, number, |gradients| {
                        gradients
                            .iter_mut()
                            .flat_map(|array| array.iter_mut())
                            .for_each(|g| *g *= push.scale);
                        update_block(stage, number, gradients, &push.step);
                        gradients.iter_mut().for_each(|array| array.fill(0.0));
                    });
                });
            }
        }
        pushed(self.clock.push(push.fetched));
        Ok(())
    }

    fn settle(&self, _: &Own, _: &mut dyn FnMut(u64)) -> Result<()> {
        Ok(())
    }
}

/// Updates a block by the gradients of its encoder and its decoder, which are used up.
pub fn update_block(stage: &Stage, number: usize, gradients: &mut [Buffer; 2], step: &Step) {
    let (block, tied) = (&stage.blocks.all()[number], stage.blocks.is_tied());
    let (_, padded) = block.maps();
    let len = stage.shape.taps() * padded;
    let mut arrays = block.write();
    for (gradient, which) in gradients.iter_mut().zip([Weights::Encoder, Weights::Decoder]) {
        for (position, gradient) in gradient.chunks_exact_mut(len).enumerate() {
            let at = At { stage: stage.number - 1, block: number, position, which, tied };
            arrays.edit(step.cpu(), (which, position), len, at.key(step.number()), |weights, sums| {
                step.update(at, padded, weights, sums, gradient);
            });
        }
    }
}

/// Gradients of all weights of a network, added up over minibatches. Memory that no stage uses is never touched.
pub struct Gradients {
    /// Of each stage and block, encoder and decoder, laid out as the weights are.
    stages: Vec<Vec<Mutex<[Buffer; 2]>>>,
}

impl Gradients {
    /// None yet, of weights laid out as those of `network`.
    pub fn zeros(network: &Network) -> Gradients {
        let of_stage = |stage: &Stage| {
            let blocks = stage.blocks.all().iter().map(|block| {
                let arrays = block.read();
                Mutex::new([&arrays.encoder, &arrays.decoder].map(|array| Buffer::zeros(array.len())))
            });
            blocks.collect()
        };
        Gradients { stages: network.stages.iter().map(of_stage).collect() }
    }

    /// Adds the gradient of one position.
    pub fn add(&self, at: At, gradient: &[f32]) {
        let mut arrays = self.stages[at.stage][at.block].lock().expect("no replica panics");
        let array = &mut arrays[usize::from(at.which == Weights::Decoder)];
        let sum = &mut array[at.position * gradient.len()..][..gradient.len()];
        sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
    }

    /// Adds those of `other`, which become 0, to some stages.
    pub fn add_all(&self, other: &Gradients, stages: Range<usize>, rows: Rows) {
        for (sums, others) in self.stages[stages.clone()].iter().zip(&other.stages[stages]) {
            rows.each_number(sums.len(), |number| {
                let mut sums = sums[number].lock().expect("no replica panics");
                let mut others = others[number].lock().expect("no replica panics");
                for (sum, other) in sums.iter_mut().zip(others.iter_mut()) {
                    sum.iter_mut().zip(other.iter_mut()).for_each(|(sum, g)| *sum += std::mem::take(g));
                }
            });
        }
    }

    /// Squared norm over `stages`, in a fixed order.
    pub fn square(&self, stages: Range<usize>) -> f64 {
        let blocks = self.stages[stages].iter().flatten();
        blocks
            .map(|block| {
                block.lock().expect("no replica panics").iter().map(|array| square(array)).sum::<f64>()
            })
            .sum()
    }

    /// Lets `work` use the gradients of a block of a stage (from 0), encoder and decoder.
    pub fn edit<T>(&self, stage: usize, block: usize, work: impl FnOnce(&mut [Buffer; 2]) -> T) -> T {
        work(&mut self.stages[stage][block].lock().expect("no replica panics"))
    }

    /// How many blocks there are of a stage (from 0).
    pub fn blocks(&self, stage: usize) -> usize {
        self.stages[stage].len()
    }
}

/// Sum of squares.
pub fn square(values: &[f32]) -> f64 {
    let piece = |piece: &[f32]| f64::from(piece.iter().map(|x| x * x).sum::<f32>());
    values.chunks(256).map(piece).sum()
}
