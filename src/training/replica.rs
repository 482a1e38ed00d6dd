//! One replica: where it keeps its minibatch, its gradient and, if it fetches them now and then only, its weights (paper §4.1).
//!
//! With `fetch_every = push_every = 1` a replica has neither weights nor a gradient of its own: it reads the shared weights and
//! updates them in place, block by block, as gradients are made.

use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use super::optimiser::Step;
use crate::config::Training;
use crate::kernels::{Buffer, Rows, with_scratch};
use crate::network::objective::Loss;
use crate::network::shared::{Clock, Fetched};
use crate::network::{At, Network, Stage, WeightUpdate, Weights, Workspace};

/// The parameters that replicas share.
pub struct Store {
    /// The weights.
    pub network: Network,
    /// Counts their updates.
    pub clock: Clock,
}

/// A replica.
pub struct Replica {
    /// Its minibatch and activations.
    pub work: Workspace,
    /// Its weights, if it fetches them only now and then.
    own: Option<Network>,
    /// Its gradient, if that is not applied as it is made.
    accrued: Option<Gradients>,
    fetched: Option<Fetched>,
    /// When the weights were read that the oldest gradient was made from that is not pushed.
    oldest: Option<Fetched>,
    since_fetch: u64,
    since_push: u64,
}

/// What replicas do for a while.
pub struct Job<'a> {
    /// Settings.
    pub training: &'a Training,
    /// The stages that learn.
    pub stages: Range<usize>,
}

/// Gradients of all weights of a network, added up over minibatches. Memory that no stage uses is never touched.
struct Gradients {
    /// Of each stage and block, encoder and decoder, laid out as the weights are.
    stages: Vec<Vec<Mutex<[Buffer; 2]>>>,
}

/// Squared norms seen in one minibatch, for the log.
pub struct Norms {
    /// Of each stage.
    stages: Vec<Mutex<StageNorms>>,
}

/// Squared norms of one stage.
#[derive(Debug, Clone, Copy, Default)]
pub struct StageNorms {
    /// Of the gradient of all its weights.
    pub gradient: f64,
    /// Of W1 and W2.
    pub weights: [f64; 2],
}

impl Norms {
    /// Of so many stages.
    pub fn new(stages: usize) -> Norms {
        Norms { stages: (0..stages).map(|_| Mutex::default()).collect() }
    }

    /// Those of a stage since they were taken last.
    pub fn take(&self, stage: usize) -> StageNorms {
        std::mem::take(&mut self.stages[stage].lock().expect("no replica panics"))
    }

    fn add(&self, at: At, change: impl FnOnce(&mut StageNorms)) {
        change(&mut self.stages[at.stage].lock().expect("no replica panics"));
    }
}

fn square(values: &[f32]) -> f64 {
    let piece = |piece: &[f32]| f64::from(piece.iter().map(|x| x * x).sum::<f32>());
    values.chunks(256).map(piece).sum()
}

fn array(which: Weights) -> usize {
    usize::from(which == Weights::Decoder)
}

impl Gradients {
    fn zeros(network: &Network) -> Gradients {
        let of_stage = |stage: &Stage| {
            let blocks = stage.blocks.all().iter().map(|block| {
                let arrays = block.read();
                Mutex::new([&arrays.encoder, &arrays.decoder].map(|array| Buffer::zeros(array.len())))
            });
            blocks.collect()
        };
        Gradients { stages: network.stages.iter().map(of_stage).collect() }
    }

    fn add(&self, at: At, gradient: &[f32]) {
        let mut arrays = self.stages[at.stage][at.block].lock().expect("no replica panics");
        let sum = &mut arrays[array(at.which)][at.position * gradient.len()..][..gradient.len()];
        sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
    }

    /// Squared norm over `stages`, in a fixed order.
    fn square(&self, stages: &Range<usize>) -> f64 {
        let blocks = self.stages[stages.clone()].iter().flatten();
        blocks
            .map(|block| {
                block.lock().expect("no replica panics").iter().map(|array| square(array)).sum::<f64>()
            })
            .sum()
    }
}

/// What becomes of the gradients of a minibatch.
struct Learn<'a> {
    step: Step,
    store: &'a Network,
    /// The weights that change as gradients are made are the replica's own.
    own: bool,
    accrued: Option<&'a Gradients>,
    norms: Option<&'a Norms>,
}

impl WeightUpdate for Learn<'_> {
    fn update(&self, at: At, maps: usize, weights: &mut [f32], sums: &mut [f32], gradient: &mut [f32]) {
        if let Some(norms) = self.norms {
            norms.add(at, |norms| norms.gradient += square(gradient));
        }
        if let Some(accrued) = self.accrued {
            accrued.add(at, gradient);
        }
        match (self.own, self.accrued) {
            (false, None) => self.step.update(at, maps, weights, sums, gradient),
            (false, Some(_)) => {}
            (true, accrued) => self.update_own(at, maps, weights, gradient, accrued.is_none()),
        }
        if let Some(norms) = self.norms {
            norms.add(at, |norms| norms.weights[array(at.which)] += square(weights));
        }
    }

    fn number(&self) -> u64 {
        self.step.number()
    }
}

impl Learn<'_> {
    /// Changes the replica's own weights, by the step that the shared ones would take, and these too if `push`.
    fn update_own(&self, at: At, maps: usize, weights: &mut [f32], gradient: &mut [f32], push: bool) {
        let len = gradient.len();
        let block = &self.store.stages[at.stage].blocks.all()[at.block];
        with_scratch([len, len], |[pushed, sums]| {
            pushed.copy_from_slice(gradient);
            let remembered = {
                let arrays = block.read();
                let array = match at.which {
                    Weights::Encoder => &arrays.encoder_sums,
                    _ => &arrays.decoder_sums,
                };
                let len = if array.is_empty() { 0 } else { len };
                (0..len).for_each(|n| sums[n] = array.get(at.position * len + n));
                len
            };
            self.step.update(at, maps, weights, &mut sums[..remembered], gradient);
            if push {
                let (key, place) = (at.key(self.number()), (at.which, at.position));
                block.write().edit(self.step.cpu(), place, len, key, |weights, sums| {
                    self.step.update(at, maps, weights, sums, pushed);
                });
            }
        });
    }
}

impl Replica {
    /// For minibatches of `training.batch`; one of `replicas`.
    pub fn new(store: &Network, training: &Training, replicas: usize, rows: Rows) -> Replica {
        Replica {
            work: store.workspace(training.batch).with_rows(rows),
            own: training.copies_weights().then(|| store.zeros_like()),
            accrued: training.keeps_gradients(replicas).then(|| Gradients::zeros(store)),
            fetched: None,
            oldest: None,
            since_fetch: 0,
            since_push: 0,
        }
    }

    /// Learns from the minibatch in `work` without waiting for other replicas; `step` is that of its number. Calls `pushed` with
    /// the staleness of each update of the shared weights.
    pub fn learn(
        &mut self,
        store: &Store,
        job: &Job,
        step: Step,
        norms: Option<&Norms>,
        mut pushed: impl FnMut(u64),
    ) -> &[Loss] {
        let rows = self.work.rows();
        if self.fetched.is_none() || self.since_fetch == job.training.fetch_every {
            self.fetched = Some(store.clock.fetch());
            self.since_fetch = 0;
            if let Some(own) = &self.own {
                // Stages below those that learn are the input of these.
                for (to, from) in own.stages.iter().zip(&store.network.stages).take(job.stages.end) {
                    to.blocks.copy_from(&from.blocks, rows);
                }
            }
        }
        self.oldest = self.oldest.or(self.fetched);
        self.since_fetch += 1;
        self.since_push += 1;
        let network = self.own.as_ref().unwrap_or(&store.network);
        let (accrued, own) = (self.accrued.as_ref(), self.own.is_some());
        let update = Learn { step, store: &store.network, own, accrued, norms };
        network.learn(&mut self.work, job.stages.clone(), job.training.objective, &update);
        if self.since_push == job.training.push_every {
            self.push(store, job, step, &mut pushed);
        }
        self.work.losses()
    }

    /// Pushes what has not been pushed, and fetches anew the next time: at the end of a while.
    pub fn finish(&mut self, store: &Store, job: &Job, step: Step, mut pushed: impl FnMut(u64)) {
        if self.since_push > 0 {
            self.push(store, job, step, &mut pushed);
        }
        self.fetched = None;
    }

    /// Forgets what it fetched and has not pushed.
    pub fn forget(&mut self) {
        (self.fetched, self.oldest, self.since_push) = (None, None, 0);
        for block in self.accrued.iter().flat_map(|gradients| gradients.stages.iter().flatten()) {
            block.lock().expect("no replica panics").iter_mut().for_each(|array| array.fill(0.0));
        }
    }

    fn push(&mut self, store: &Store, job: &Job, step: Step, pushed: &mut impl FnMut(u64)) {
        if let Some(accrued) = &self.accrued {
            let step = step.of(self.since_push);
            apply(&store.network, &[accrued], job, step, 1.0, self.work.rows());
        }
        self.since_push = 0;
        pushed(store.clock.push(self.oldest.take().expect("fetched before it learned")));
        self.fetched.as_mut().expect("fetched before it learned").count_own();
    }
}

/// Replicas learn from a minibatch each with the same weights, which then change by the mean of their gradients.
pub fn learn_together(replicas: &mut [Replica], store: &Store, job: &Job, step: Step, norms: Option<&Norms>) {
    let stages = &job.stages;
    replicas.par_iter_mut().enumerate().for_each(|(number, replica)| {
        let norms = norms.filter(|_| number == 0);
        let accrued = replica.accrued.as_ref();
        let update = Learn { step, store: &store.network, own: false, accrued, norms };
        store.network.learn(&mut replica.work, stages.clone(), job.training.objective, &update);
    });
    let gradients: Vec<&Gradients> = replicas.iter().filter_map(|replica| replica.accrued.as_ref()).collect();
    let mean = 1.0 / gradients.len() as f32;
    apply(&store.network, &gradients, job, step, mean, Rows::Shared);
}

/// Updates the shared weights by gradients, added in their order, scaled, and clipped over all weights if the settings say so;
/// the gradients become 0.
fn apply(store: &Network, gradients: &[&Gradients], job: &Job, step: Step, scale: f32, rows: Rows) {
    let (first, others) = gradients.split_first().expect("a gradient");
    let for_each_block = |work: &(dyn Fn(&Stage, usize) + Sync)| {
        for stage in &store.stages[job.stages.clone()] {
            rows.each_number(stage.blocks.all().len(), |number| work(stage, number));
        }
    };
    for_each_block(&|stage, number| {
        let block = |gradients: &Gradients, work: &mut dyn FnMut(&mut [Buffer; 2])| {
            work(&mut gradients.stages[stage.number - 1][number].lock().expect("no replica panics"));
        };
        block(first, &mut |sums| {
            for other in others {
                block(other, &mut |more| {
                    for (sum, more) in sums.iter_mut().zip(more) {
                        sum.iter_mut()
                            .zip(more.iter_mut())
                            .for_each(|(sum, more)| *sum += std::mem::take(more));
                    }
                });
            }
        });
    });
    let limit = job.training.global_clip;
    let norm = if limit > 0.0 { f64::from(scale) * first.square(&job.stages).sqrt() } else { 0.0 };
    let scale = if norm > limit { scale * (limit / norm) as f32 } else { scale };
    for_each_block(&|stage, number| {
        let mut sums = first.stages[stage.number - 1][number].lock().expect("no replica panics");
        let (block, tied) = (&stage.blocks.all()[number], stage.blocks.is_tied());
        let (_, padded) = block.maps();
        let len = stage.shape.taps() * padded;
        let mut arrays = block.write();
        for (gradient, which) in sums.iter_mut().zip([Weights::Encoder, Weights::Decoder]) {
            for (position, gradient) in gradient.chunks_exact_mut(len).enumerate() {
                gradient.iter_mut().for_each(|g| *g *= scale);
                let at = At { stage: stage.number - 1, block: number, position, which, tied };
                arrays.edit(store.cpu, (which, position), len, at.key(step.number()), |weights, sums| {
                    step.update(at, padded, weights, sums, gradient);
                });
                gradient.fill(0.0);
            }
        }
    });
}
