//! Supervised learning of all weights from pixels to labels, from those that a run learned or from random ones (the paper's ImageNet
//! experiment; Krizhevsky et al. 2012).
//!
//! Each step takes a minibatch of labelled pictures, shifted and mirrored at random, through the network and a [`Head`], and changes the
//! encoders and the head by stochastic gradient descent with momentum. Decoders stay as they are.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::head::{Head, Kind as HeadKind, Loss};
use super::linear::{self, Method};
use crate::analysis::evaluate::Group;
use crate::config::{Optimiser, Training};
use crate::dataset::{Augment, Dataset, Shuffle, available_memory};
use crate::error::{Error, Result};
use crate::geometry::Kind;
use crate::kernels::Rows;
use crate::network::preprocess::{Inputs, Scratch, Whitening};
use crate::network::{Network, WeightUpdate, Workspace};
use crate::training::optimiser::{Step, schedule};

/// How to learn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// How the head puts positions together.
    pub head: HeadKind,
    /// What it sees.
    pub group: Group,
    /// Minibatches.
    pub steps: u64,
    /// Pictures in each.
    pub batch: usize,
    /// Rate of the head, times the number of values that its classes' weights see: so one rate suits heads of any size.
    pub rate: f64,
    /// Rate of the network's encoders; 0 leaves them as they are.
    pub network_rate: f64,
    /// So many of the lowest stages stay as they are.
    #[serde(default)]
    pub keep: usize,
    /// In so many of the first steps only the head learns (a linear probe before fine-tuning; Kumar et al. 2022).
    #[serde(default)]
    pub head_first: u64,
    /// The rule of a step: momentum or AdaGrad.
    #[serde(default = "momentum")]
    pub optimiser: Optimiser,
    /// Share of the velocity that a step keeps, with momentum.
    pub momentum: f64,
    /// Share of the weights taken away each step, times the schedule's factor.
    pub decay: f64,
    /// Most pixels by which a picture is shifted each way.
    pub shift: usize,
    /// Whether half of the pictures are mirrored.
    pub flip: bool,
    /// Seed of order, shifts and the head.
    pub seed: u64,
}

fn momentum() -> Optimiser {
    Optimiser::Momentum
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            head: HeadKind::Full,
            group: Group { stage: 0, kind: Kind::Y },
            steps: 3000,
            batch: 96,
            rate: 0.5,
            network_rate: 0.01,
            keep: 0,
            head_first: 0,
            optimiser: momentum(),
            momentum: 0.9,
            decay: 1e-4,
            shift: 2,
            flip: true,
            seed: 0,
        }
    }
}

impl Settings {
    /// The rule of a step at its place in a schedule of so many: rising for a twentieth, holding to a half, then falling linearly to a
    /// hundredth.
    fn step(&self, network: &Network, rate: f64, (number, steps): (u64, u64)) -> Step {
        let training = Training {
            optimiser: self.optimiser,
            rate,
            momentum: self.momentum,
            encoder_decay: self.decay,
            max_step: 0.0,
            decoder_norm_bound: 0.0,
            warmup: (steps / 20).max(1),
            rate_hold: 0.5,
            rate_end: 0.01,
            ..Training::default()
        };
        Step::new(network.cpu, &training, schedule(&training, number, steps), number)
    }
}

/// A stretch of the way.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Steps done.
    pub step: u64,
    /// Mean over the minibatches since the last line, each before its step.
    pub log_loss: f64,
    /// The same of the share that was right.
    pub accuracy: f64,
    /// Seconds since the beginning.
    pub seconds: f64,
}

/// What came of it.
pub struct Tuned {
    /// The head; the network is changed in place.
    pub head: Head,
    /// The way there.
    pub lines: Vec<Line>,
    /// Whether all steps were done; else it was interrupted.
    pub finished: bool,
}

/// Multiplications and additions of a step for each picture, of whitening, network and head.
pub fn flops(network: &Network, whitening: &Whitening, head: &Head, settings: &Settings) -> u64 {
    let of_stage = |(index, stage): (usize, &crate::network::Stage)| {
        // Responses, the gradient of weights, and that of the input where something below learns from it.
        let learns = settings.network_rate > 0.0 && index >= settings.keep;
        let products = if learns { 2 + u64::from(index > settings.keep) } else { 1 };
        2 * products * stage.shape.connections()
    };
    let stages = network.stages[..=settings.group.stage].iter().enumerate().map(of_stage);
    // Pictures that are never shifted or mirrored are whitened once.
    let whitening = if settings.shift > 0 || settings.flip { whitening.flops() } else { 0 };
    stages.sum::<u64>() + head.flops() + whitening
}

/// Those of all steps and pictures: in the first ones the network may stay as it is.
pub fn all_flops(network: &Network, whitening: &Whitening, head: &Head, settings: &Settings) -> u64 {
    let still = Settings { network_rate: 0.0, ..settings.clone() };
    let of = |steps: u64, settings: &Settings| {
        steps * settings.batch as u64 * flops(network, whitening, head, settings)
    };
    of(settings.head_first, &still) + of(settings.steps - settings.head_first, settings)
}

/// Mean of each channel's values over some pictures, and the inverse of their deviation.
fn standard(
    network: &Network,
    inputs: &Inputs,
    pictures: &[usize],
    group: Group,
    work: &mut Workspace,
) -> Vec<(f32, f32)> {
    let channels = network.shape(group.stage, group.kind).channels;
    let mut sums = vec![(0.0, 0.0, 0.0); channels];
    for some in pictures.chunks(work.lanes) {
        inputs.load(some, work);
        network.forward_to(work, group.stage, group.kind);
        for unit in network.units(group.stage, group.kind) {
            let (count, sum, square): &mut (f64, f64, f64) = &mut sums[unit.map];
            for &value in work.unit_values(network, group.stage, group.kind, unit) {
                *count += 1.0;
                *sum += f64::from(value);
                *square += f64::from(value).powi(2);
            }
        }
    }
    let of = |(count, sum, square): (f64, f64, f64)| {
        let mean = sum / count;
        let deviation = (square / count - mean * mean).max(0.0).sqrt();
        (mean as f32, if deviation > 1e-6 * mean.abs() { (1.0 / deviation) as f32 } else { 0.0 })
    };
    sums.into_iter().map(of).collect()
}

/// Pictures with their classes, as they are learned from.
pub struct Lesson {
    shown: Dataset,
    class: Vec<usize>,
    classes: usize,
}

impl Lesson {
    /// The pictures numbered `pictures` of a dataset, with room to shift them; `class` has those of all of the dataset, numbers below
    /// `classes`.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn new(
        dataset: &Dataset,
        pictures: &[usize],
        (class, classes): (&[usize], usize),
        settings: &Settings,
    ) -> Result<Lesson> {
        let shown = dataset.some(pictures, 2 * settings.shift)?;
        Ok(Lesson { shown, class: pictures.iter().map(|&picture| class[picture]).collect(), classes })
    }

    /// Pictures in it.
    pub fn len(&self) -> usize {
        self.class.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.class.is_empty()
    }
}

/// A network and a head while they learn.
pub struct Tuner<'a> {
    /// The network, which changes in place.
    pub network: &'a Network,
    /// The head.
    pub head: Head,
    /// Steps done.
    pub number: u64,
    lesson: &'a Lesson,
    settings: &'a Settings,
    inputs: Inputs<'a>,
    work: Workspace,
    shuffle: Shuffle,
    pictures: Vec<usize>,
    class: Vec<usize>,
    scratch: Scratch,
}

impl<'a> Tuner<'a> {
    /// At the beginning: a head of zeros on the network as it is.
    pub fn new(
        network: &'a Network,
        whitening: &'a Whitening,
        lesson: &'a Lesson,
        settings: &'a Settings,
    ) -> Tuner<'a> {
        let Group { stage, kind } = settings.group;
        let margin = lesson.shown.margin();
        let input = crate::config::Input { margin, flip: settings.flip, ..Default::default() };
        let (augment, budget) = (Augment::new(&input, settings.seed), (available_memory() / 4) as usize);
        let inputs = Inputs::for_training(&lesson.shown, whitening, budget, augment);
        let mut work = network.workspace(settings.batch).with_rows(Rows::Shared);
        let few: Vec<usize> = (0..lesson.len().min(1000)).collect();
        let standard = standard(network, &inputs, &few, settings.group, &mut work);
        let shape = network.shape(stage, kind);
        Tuner {
            network,
            head: Head::new(settings.head, shape, lesson.classes, standard, settings.seed),
            number: 0,
            lesson,
            settings,
            inputs,
            work,
            shuffle: Shuffle::new(settings.seed, lesson.len(), settings.batch),
            pictures: Vec::new(),
            class: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// The next step, by the schedule of the settings.
    ///
    /// # Errors
    /// The loss is no number any more, or pictures cannot be read.
    pub fn step(&mut self) -> Result<Loss> {
        let (settings, network, number) = (self.settings, self.network, self.number);
        let inputs = self.head.parameters[0].inputs as f64;
        let of_head = settings.step(network, settings.rate / inputs, (number, settings.steps));
        // The network's schedule begins when it does.
        let learns = settings.network_rate > 0.0 && number >= settings.head_first;
        let of_network = learns.then(|| {
            let place = (number - settings.head_first, settings.steps - settings.head_first);
            settings.step(network, settings.network_rate, place)
        });
        let of_network = of_network.as_ref().map(|step| step as &dyn WeightUpdate);
        let loss = self.step_by(of_network, &of_head)?;
        if !loss.value.is_finite() {
            let problem = format!(
                "the loss is no number any more at step {}: a lower --rate or --network-rate may help",
                self.number
            );
            return Err(Error::Mismatch(problem));
        }
        Ok(loss)
    }

    /// The next step, by these updates; without one of the network only the head learns.
    ///
    /// # Errors
    /// Pictures cannot be read.
    pub fn step_by(
        &mut self,
        of_network: Option<&dyn WeightUpdate>,
        of_head: &dyn WeightUpdate,
    ) -> Result<Loss> {
        let Tuner { network, head, number, lesson, inputs, work, pictures, class, scratch, .. } = self;
        self.shuffle.batch(*number, pictures);
        class.clear();
        class.extend(pictures.iter().map(|&picture| lesson.class[picture]));
        work.start(pictures.len());
        inputs.fill_minibatch(Some(*number), pictures, work.lanes, &mut work.input, scratch)?;
        let (Group { stage, kind }, lanes) = (self.settings.group, work.lanes);
        network.forward_to(work, stage, kind);
        head.forward(work.maps(stage, kind), lanes);
        let mut loss = Loss::default();
        match of_network {
            Some(update) => network.learn_by(work, (self.settings.keep, stage, kind), update, |work| {
                loss = head.gradient(class, lanes, Some(work.seeds(stage, kind)));
            }),
            None => loss = head.gradient(class, lanes, None),
        }
        head.update(of_head);
        *number += 1;
        Ok(loss)
    }
}

/// Learns from labelled pictures; `network` changes in place, and needs room for the optimiser's sums, all 0. `progress` is told of every
/// hundredth step. Stops early when `stop` is set.
///
/// # Errors
/// The loss is no number any more, or pictures cannot be read.
pub fn tune(
    network: &Network,
    whitening: &Whitening,
    lesson: &Lesson,
    settings: &Settings,
    (stop, mut progress): (&AtomicUsize, impl FnMut(&Line)),
) -> Result<Tuned> {
    assert!(network.stages.iter().all(|stage| stage.has_sums()), "room for the optimiser's sums");
    let mut tuner = Tuner::new(network, whitening, lesson, settings);
    let (begun, mut lines, mut sum, mut since) = (Instant::now(), Vec::new(), Loss::default(), 0);
    while tuner.number < settings.steps {
        if stop.load(Ordering::Relaxed) != 0 {
            return Ok(Tuned { head: tuner.head, lines, finished: false });
        }
        let loss = tuner.step()?;
        sum.value += loss.value;
        sum.accuracy += loss.accuracy;
        since += 1;
        if since == 100 || tuner.number == settings.steps {
            let mean = |sum: f64| sum / f64::from(since);
            let line = Line {
                step: tuner.number,
                log_loss: mean(sum.value),
                accuracy: mean(sum.accuracy),
                seconds: begun.elapsed().as_secs_f64(),
            };
            progress(&line);
            lines.push(line);
            (sum, since) = (Loss::default(), 0);
        }
    }
    Ok(Tuned { head: tuner.head, lines, finished: true })
}

/// Probabilities of the classes, `[picture, class]`, by a head on a network.
pub fn probabilities(
    network: &Network,
    head: &mut Head,
    group: Group,
    inputs: &Inputs,
    batch: usize,
) -> Vec<f32> {
    let mut work = network.workspace(batch).with_rows(Rows::Shared);
    let (pictures, lanes, mut all) = ((0..inputs.len()).collect::<Vec<_>>(), work.lanes, Vec::new());
    for some in pictures.chunks(batch) {
        inputs.load(some, &mut work);
        network.forward_to(&mut work, group.stage, group.kind);
        let (classes, numbers) = (head.classes, head.forward(work.maps(group.stage, group.kind), lanes));
        for lane in 0..some.len() {
            let mut row: Vec<f32> = (0..classes).map(|class| numbers[class * lanes + lane]).collect();
            linear::probabilities(Method::Softmax, &mut row);
            all.extend(row);
        }
    }
    all
}
