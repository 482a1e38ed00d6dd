//! One replica: where it keeps its minibatch, its gradient and, if it fetches them now and then only, its weights (paper §4.1).
//!
//! With `fetch_every = push_every = 1` a replica has neither weights nor a gradient of its own: it reads the shared weights and
//! updates them in place, block by block, as gradients are made.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use super::optimiser::Step;
use super::server::{Gradients, Own, ParameterServer, Push, When, square};
use crate::config::Training;
use crate::error::Result;
use crate::kernels::{Rows, with_scratch};
use crate::network::objective::Loss;
use crate::network::shared::Fetched;
use crate::network::{At, Network, WeightUpdate, Weights, Workspace};

/// A replica.
pub struct Replica {
    /// Its minibatch and activations.
    pub work: Workspace,
    /// Its weights, if it fetches them only now and then.
    own: Option<Arc<Network>>,
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

/// What becomes of the gradients of a minibatch.
struct Learn<'a> {
    step: Step,
    changes: Changes<'a>,
    accrued: Option<&'a Gradients>,
    norms: Option<&'a Norms>,
}

/// The weights that change as gradients are made.
enum Changes<'a> {
    /// None: gradients are added up only.
    Nothing,
    /// Those that the network has, whose sums it has too.
    InPlace,
    /// The replica's own, by the step that the shared ones would take; and these too, if gradients are not added up.
    Beside(&'a Network),
}

impl WeightUpdate for Learn<'_> {
    fn update(&self, at: At, maps: usize, weights: &mut [f32], sums: &mut [f32], gradient: &mut [f32]) {
        if let Some(norms) = self.norms {
            norms.add(at, |norms| norms.gradient += square(gradient));
        }
        if let Some(accrued) = self.accrued {
            accrued.add(at, gradient);
        }
        match self.changes {
            Changes::Nothing => {}
            Changes::InPlace => self.step.update(at, maps, weights, sums, gradient),
            Changes::Beside(shared) => self.update_both(shared, at, maps, weights, gradient),
        }
        if let Some(norms) = self.norms {
            norms
                .add(at, |norms| norms.weights[usize::from(at.which == Weights::Decoder)] += square(weights));
        }
    }

    fn number(&self) -> u64 {
        self.step.number()
    }
}

impl Learn<'_> {
    /// See [`Changes::Beside`].
    fn update_both(&self, shared: &Network, at: At, maps: usize, weights: &mut [f32], gradient: &mut [f32]) {
        let len = gradient.len();
        let block = &shared.stages[at.stage].blocks.all()[at.block];
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
            if self.accrued.is_none() {
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
            own: training.copies_weights().then(|| Arc::new(store.zeros_like())),
            accrued: training.keeps_gradients(replicas).then(|| Gradients::zeros(store)),
            fetched: None,
            oldest: None,
            since_fetch: 0,
            since_push: 0,
        }
    }

    /// One whose parameter server is not in this process's memory: a gradient is its own, and the weights of `own`, with what the
    /// optimiser remembers of them if it learns on between fetches.
    pub fn far(own: &Arc<Network>, training: &Training, rows: Rows) -> Replica {
        Replica {
            work: own.workspace(training.batch).with_rows(rows),
            accrued: Some(Gradients::zeros(own)),
            own: Some(Arc::clone(own)),
            fetched: None,
            oldest: None,
            since_fetch: 0,
            since_push: 0,
        }
    }

    /// Learns from the minibatch in `work` without waiting for other replicas; `step` is that of its number. Calls `pushed` with
    /// the staleness of each update of the shared weights.
    ///
    /// # Errors
    /// The parameter server cannot be reached.
    pub fn learn(
        &mut self,
        server: &dyn ParameterServer,
        job: &Job,
        step: Step,
        norms: Option<&Norms>,
        mut pushed: impl FnMut(u64),
    ) -> Result<&[Loss]> {
        let when = match self.fetched {
            None => When::Now,
            Some(_) if self.since_fetch == job.training.fetch_every => When::Due,
            Some(_) => When::IfHere,
        };
        if when != When::IfHere {
            self.since_fetch = 0;
        }
        self.fetched = server.fetch(&self.own(job), when)?.or(self.fetched);
        self.oldest = self.oldest.or(self.fetched);
        self.since_fetch += 1;
        self.since_push += 1;
        let (shared, accrued) = (server.in_memory(), self.accrued.as_ref());
        let changes = match (&self.own, shared) {
            (Some(_), Some(shared)) => Changes::Beside(shared),
            // Elsewhere: what is fetched next has its own steps in it, unless it learns on meanwhile.
            (Some(_), None) if job.training.fetch_every == 1 => Changes::Nothing,
            (None, Some(_)) if accrued.is_some() => Changes::Nothing,
            _ => Changes::InPlace,
        };
        let network =
            self.own.as_deref().or(shared).expect("weights of its own where the shared are elsewhere");
        let update = Learn { step, changes, accrued, norms };
        network.learn(&mut self.work, job.stages.clone(), job.training.objective, &update);
        if self.since_push == job.training.push_every {
            self.push(server, job, step, &mut pushed)?;
        }
        Ok(self.work.losses())
    }

    /// Pushes what has not been pushed, and fetches anew the next time: at the end of a while.
    ///
    /// # Errors
    /// The parameter server cannot be reached.
    pub fn finish(
        &mut self,
        server: &dyn ParameterServer,
        job: &Job,
        step: Step,
        mut pushed: impl FnMut(u64),
    ) -> Result<()> {
        if self.since_push > 0 {
            self.push(server, job, step, &mut pushed)?;
        }
        self.fetched = None;
        server.settle(&self.own(job), &mut pushed)
    }

    /// Its own weights; stages below those that learn are the input of these.
    fn own(&self, job: &Job) -> Own<'_> {
        Own { network: self.own.as_deref(), end: job.stages.end, rows: self.work.rows() }
    }

    fn push(
        &mut self,
        server: &dyn ParameterServer,
        job: &Job,
        step: Step,
        pushed: &mut impl FnMut(u64),
    ) -> Result<()> {
        let gradients = self.accrued.as_ref();
        let push = Push {
            gradients,
            scale: gradients.map_or(1.0, |gradients| clipped(gradients, job, 1.0)),
            stages: job.stages.clone(),
            step: step.of(self.since_push),
            fetched: self.oldest.take().expect("fetched before it learned"),
            rows: self.work.rows(),
        };
        server.push(push, pushed)?;
        self.since_push = 0;
        self.fetched.as_mut().expect("fetched before it learned").count_own();
        Ok(())
    }
}

/// Replicas learn from a minibatch each with the same weights, which then change by the mean of their gradients.
///
/// # Errors
/// The parameter server cannot be reached.
pub fn learn_together(
    replicas: &mut [Replica],
    server: &dyn ParameterServer,
    job: &Job,
    step: Step,
    norms: Option<&Norms>,
) -> Result<()> {
    let (stages, shared) = (&job.stages, server.in_memory());
    let network = shared.expect("replicas that wait for each other share their memory");
    let nothing = Own { network: None, end: stages.end, rows: Rows::Shared };
    let fetched = server.fetch(&nothing, When::Now)?.expect("the time is told at once");
    replicas.par_iter_mut().enumerate().for_each(|(number, replica)| {
        let norms = norms.filter(|_| number == 0);
        let update = Learn { step, changes: Changes::Nothing, accrued: replica.accrued.as_ref(), norms };
        network.learn(&mut replica.work, stages.clone(), job.training.objective, &update);
    });
    let mut gradients = replicas.iter().filter_map(|replica| replica.accrued.as_ref());
    let first = gradients.next().expect("a replica with a gradient of its own");
    let mut count = 1;
    for other in gradients {
        first.add_all(other, stages.clone(), Rows::Shared);
        count += 1;
    }
    let scale = clipped(first, job, 1.0 / count as f32);
    let (gradients, stages, rows) = (Some(first), stages.clone(), Rows::Shared);
    server.push(Push { gradients, scale, stages, step, fetched, rows }, &mut |_| ())
}

/// What gradients are to be multiplied by: `scale`, or less if the settings clip their norm over all weights.
fn clipped(gradients: &Gradients, job: &Job, scale: f32) -> f32 {
    let limit = job.training.global_clip;
    let norm = if limit > 0.0 { f64::from(scale) * gradients.square(job.stages.clone()).sqrt() } else { 0.0 };
    if norm > limit { scale * (limit / norm) as f32 } else { scale }
}
