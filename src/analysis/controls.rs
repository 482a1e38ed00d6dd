//! The paper's controls (§4.3 and the table in §4.4): what other detectors come to on the same pictures, trained on the same frames.

mod autoencoder;
mod clusters;
mod contest;
mod model;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rand::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Progress;
use super::detector::Scores;
use super::evaluate::halves;
use super::responses::Labelled;
use crate::config::RunConfig;
use crate::dataset::{Dataset, Shuffle, Split, available_memory, resized};
use crate::error::{Error, Result};
use crate::frames::FrameStore;
use crate::geometry::{Kind, MapShape};
use crate::network::checkpoint::{self, Checkpoint};
use crate::network::preprocess::{Inputs, Transform, Whitening};
use crate::network::{Network, costs};
use crate::rng::{self, ChaCha8Rng};
use crate::training::{self, Happened, Options, State};
use autoencoder::Autoencoder;
use clusters::Clusters;
use contest::{Standing, Test};

/// Pictures for k-means have at most so many pixels a side, as in the paper.
const CLUSTER_SIDE: usize = 40;

/// Most frames that are sorted into clusters.
const CLUSTER_FRAMES: usize = 5_000;

/// An autoencoder that learns is saved so often.
const SAVE_SECONDS: f64 = 60.0;

/// Frames on which it is measured what an autoencoder leaves unexplained.
const SOME_FRAMES: usize = 1000;

/// What the units of the top stage are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// Always "no".
    AlwaysNo,
    /// The best top unit of the same network with random weights.
    RandomWeights,
    /// The best of many whole training frames, each once, as linear filters.
    LinearFilters,
    /// The best of many pieces of training frames, as large and placed as the fields of first-stage units, as linear filters.
    LinearPatches,
    /// The best of as many clusters as the top stage has units, by k-means.
    KMeans,
    /// The best unit that encodes in an autoencoder of 3 layers with as many weights, shown as many frames.
    #[value(name = "autoencoder-3")]
    #[serde(rename = "autoencoder-3")]
    Autoencoder3,
    /// The same with 6 layers.
    #[value(name = "autoencoder-6")]
    #[serde(rename = "autoencoder-6")]
    Autoencoder6,
    /// The best first-stage unit of the run.
    FirstStage,
    /// The best top unit of a network trained alike but without contrast normalisation.
    WithoutLcn,
    /// The best top unit of a network trained alike on frames that do not show the thing.
    WithoutConcept,
    /// The best top unit of the run.
    TopStage,
}

impl Control {
    /// All of them, in the order of the table.
    pub const ALL: [Control; 11] = [
        Control::AlwaysNo,
        Control::RandomWeights,
        Control::LinearFilters,
        Control::LinearPatches,
        Control::KMeans,
        Control::Autoencoder3,
        Control::Autoencoder6,
        Control::FirstStage,
        Control::WithoutLcn,
        Control::WithoutConcept,
        Control::TopStage,
    ];

    /// What it is, for a table.
    pub fn title(self) -> &'static str {
        match self {
            Control::AlwaysNo => "always \"no\"",
            Control::RandomWeights => "random weights, top stage",
            Control::LinearFilters => "linear filters, whole frames",
            Control::LinearPatches => "linear filters, first-stage fields",
            Control::KMeans => "k-means",
            Control::Autoencoder3 => "autoencoder, 3 layers",
            Control::Autoencoder6 => "autoencoder, 6 layers",
            Control::FirstStage => "first stage",
            Control::WithoutLcn => "trained without LCN, top stage",
            Control::WithoutConcept => "trained without the concept, top stage",
            Control::TopStage => "top stage",
        }
    }
}

/// How controls are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Frames, and pieces of frames, that are tried as linear filters.
    pub filters: usize,
    /// Networks with random weights.
    pub random_networks: usize,
    /// Values of a unit that are tried; of a network's unit the better counts.
    pub kinds: Vec<Kind>,
    /// Seed of what is drawn, and of halves.
    pub seed: u64,
}

/// A line of the table: the best of some detectors by the paper's rule.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// What it is.
    pub control: Control,
    /// Detectors that it is the best of.
    pub detectors: usize,
    /// Which it is; none of one that always says "no".
    pub best: Option<String>,
    /// Share of pictures that it is right about: the paper's number.
    pub accuracy: f64,
    /// Its scores.
    pub scores: Option<Scores>,
    /// The best accuracy of all detectors with their sign turned.
    pub flipped: Option<f64>,
    /// Accuracy if detector and threshold are chosen on one half of the pictures and tested on the other: mean of both ways.
    pub held_out: f64,
    /// Accuracies of the best of the other networks with random weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<f64>,
    /// What else there is to say.
    pub note: Option<String>,
    /// What it took.
    pub seconds: f64,
}

/// Of names, whatever their order.
pub fn hash_of(keys: &HashSet<String>) -> String {
    let mut sorted: Vec<&str> = keys.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    format!("{:016x}", rng::stable_hash(sorted.join("\n").as_bytes()))
}

/// Most bytes of preprocessed frames.
fn budget() -> usize {
    (available_memory() / 4) as usize
}

/// A run, and what it is compared on.
pub struct Comparison<'a> {
    /// Its folder.
    pub run: &'a Path,
    /// Its network.
    pub checkpoint: &'a Checkpoint,
    /// See [`checkpoint::identity`].
    pub identity: &'a str,
    /// How far it came.
    pub state: &'a State,
    /// Where its frames are.
    pub frames: &'a Path,
    /// Names of frames that show the thing, if they are known.
    pub shows_concept: Option<&'a HashSet<String>>,
    /// Pictures that show the thing, and others.
    pub labelled: &'a Labelled,
    /// How.
    pub settings: &'a Settings,
    /// Most bytes of values held at once.
    pub memory: u64,
    /// Threads for training.
    pub threads: usize,
    /// Set to a signal's number to stop, save and return.
    pub interrupted: &'a AtomicUsize,
}

impl Comparison<'_> {
    /// One line of the table; none if it was interrupted. What is trained is kept in `RUN/controls`, and gone on with if it is there.
    ///
    /// # Errors
    /// Frames cannot be read, something cannot be trained or written, or [`Control::WithoutConcept`] is asked for though it is not
    /// known which frames show it.
    pub fn row(&self, control: Control, progress: &Progress) -> Result<Option<Row>> {
        let began = Instant::now();
        let positive = &self.labelled.positive;
        let test =
            Test { positive, first: halves(positive, self.settings.seed), memory: self.memory, progress };
        let row = match control {
            Control::AlwaysNo => Some(self.no()),
            Control::RandomWeights => Some(self.random(&test)?),
            Control::LinearFilters | Control::LinearPatches => Some(self.linear(control, &test)?),
            Control::KMeans => Some(self.clusters(&test)?),
            Control::Autoencoder3 => self.autoencoder(control, 3, &test)?,
            Control::Autoencoder6 => self.autoencoder(control, 6, &test)?,
            Control::FirstStage => Some(self.units(control, self.checkpoint, 0, &test)),
            Control::TopStage => Some(self.units(control, self.checkpoint, self.top(), &test)),
            Control::WithoutLcn => {
                let mut config = self.checkpoint.config.clone();
                config.stages.iter_mut().for_each(|stage| stage.lcn = 0);
                let store = FrameStore::open(self.frames)?;
                let found = self.train("without-lcn", &config, &store, true, progress)?;
                found.map(|checkpoint| self.units(control, &checkpoint, self.top(), &test))
            }
            Control::WithoutConcept => {
                let Some(keys) = self.shows_concept else {
                    let problem =
                        "which frames show the concept is not known: name them with --concept-frames";
                    return Err(Error::Mismatch(problem.into()));
                };
                let store = FrameStore::open(self.frames)?;
                let all = store.len();
                let store = store.without(self.frames, keys)?;
                // Test sets of the same thing share the network.
                let name = format!("without-{}", hash_of(keys));
                let found = self.train(&name, &self.checkpoint.config, &store, false, progress)?;
                found.map(|checkpoint| {
                    let mut row = self.units(control, &checkpoint, self.top(), &test);
                    row.note = Some(format!("{} of {all} frames left out", all - store.len()));
                    row
                })
            }
        };
        Ok(row.map(|row| Row { seconds: began.elapsed().as_secs_f64(), ..row }))
    }

    fn top(&self) -> usize {
        self.checkpoint.network.stages.len() - 1
    }

    fn folder(&self) -> PathBuf {
        self.run.join("controls")
    }

    /// A file in the folder, which is there then.
    fn file(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder();
        fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
        Ok(folder.join(name))
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) != 0
    }

    fn no(&self) -> Row {
        let positive = &self.labelled.positive;
        let accuracy = positive.iter().filter(|positive| !**positive).count() as f64 / positive.len() as f64;
        Row {
            control: Control::AlwaysNo,
            detectors: 1,
            best: None,
            accuracy,
            scores: None,
            flipped: None,
            held_out: accuracy,
            others: Vec::new(),
            note: None,
            seconds: 0.0,
        }
    }

    fn won(&self, control: Control, standing: &Standing, best: String) -> Row {
        let scores = standing.best.1;
        Row {
            control,
            detectors: standing.count,
            best: Some(best),
            accuracy: scores.paper.accuracy,
            scores: Some(scores),
            flipped: Some(standing.flipped),
            held_out: standing.held_out(),
            others: Vec::new(),
            note: None,
            seconds: 0.0,
        }
    }

    /// The best unit of a stage.
    fn units(&self, control: Control, checkpoint: &Checkpoint, stage: usize, test: &Test) -> Row {
        let inputs = self.labelled.inputs(&checkpoint.whitening);
        let (standing, probe) =
            test.best_unit(&checkpoint.network, &self.labelled.shown(&inputs), stage, &self.settings.kinds);
        self.won(control, &standing, format!("{} {}", probe.name(), probe.kind))
    }

    /// The run's network before it learned, and others of other seeds.
    fn random(&self, test: &Test) -> Result<Row> {
        let inputs = self.labelled.inputs(&self.checkpoint.whitening);
        let shown = self.labelled.shown(&inputs);
        let mut rows = Vec::new();
        for number in 0..self.settings.random_networks as u64 {
            let network = Network::new(&self.checkpoint.config, self.state.seed + number)?;
            let (standing, probe) = test.best_unit(&network, &shown, self.top(), &self.settings.kinds);
            rows.push(self.won(
                Control::RandomWeights,
                &standing,
                format!("{} {}", probe.name(), probe.kind),
            ));
        }
        let others = rows[1..].iter().map(|row| row.accuracy).collect();
        Ok(Row { others, ..rows.swap_remove(0) })
    }

    /// The run's frames, as decoded before if they still are.
    fn dataset(&self, store: &FrameStore, folder: &Path, keep: bool, progress: &Progress) -> Result<Dataset> {
        let config = &self.checkpoint.config;
        progress.begin("frames", store.len());
        Dataset::load(store, config.input_shape(), config.input.margin, folder, keep, || progress.add(1))
    }

    /// The frames that the run learned from, and their numbers.
    fn learned_from(&self, progress: &Progress) -> Result<(Dataset, Vec<u32>)> {
        let dataset = self.dataset(&FrameStore::open(self.frames)?, self.run, false, progress)?;
        let split = Split::new(&dataset.keys, self.checkpoint.config.training.held_out, self.state.seed);
        Ok((dataset, split.training))
    }

    /// The best of frames, or of pieces of frames, as linear filters of preprocessed pictures.
    fn linear(&self, control: Control, test: &Test) -> Result<Row> {
        let (dataset, from) = self.learned_from(test.progress)?;
        let whitening = &self.checkpoint.whitening;
        let frames = Inputs::new(&dataset, whitening, budget());
        let inputs = self.labelled.inputs(whitening);
        let shown = self.labelled.shown(&inputs);
        let stage = self.checkpoint.network.stages[0].shape;
        let len = dataset.shape.len();
        // What each filter is: a frame, and where a piece of it begins.
        let mut rng = rng::stream(self.settings.seed, "linear filters", 0);
        let mut pieces: Vec<(u32, [usize; 2])> = Vec::new();
        if control == Control::LinearPatches {
            let place = |places: usize, rng: &mut ChaCha8Rng| stage.stride * rng.random_range(0..places);
            let MapShape { rows, cols, .. } = stage.filtered;
            pieces.extend((0..self.settings.filters).map(|_| {
                let frame = from[rng.random_range(0..from.len())];
                (frame, [place(rows, &mut rng), place(cols, &mut rng)])
            }));
        } else {
            // A frame twice would be the same filter.
            let count = self.settings.filters.min(from.len());
            let chosen = rand::seq::index::sample(&mut rng, from.len(), count);
            pieces.extend(chosen.into_iter().map(|at| (from[at], [0, 0])));
        }
        let filter = |number: usize| -> Vec<f32> {
            let (frame, [top, left]) = pieces[number];
            let mut values = frames.picture(frame as usize);
            if control == Control::LinearPatches {
                let (rows, cols) = (top..top + stage.field, left..left + stage.field);
                values
                    .indexed_iter_mut()
                    .filter(|((_, row, col), _)| !rows.contains(row) || !cols.contains(col))
                    .for_each(|(_, value)| *value = 0.0);
            }
            values.into_iter().collect()
        };
        let standing = test.best_of(pieces.len(), 4 * len, &shown, |numbers| {
            let count = numbers.len();
            let filters: Vec<f32> = numbers.into_par_iter().flat_map_iter(filter).collect();
            move |pictures: &[f32]| {
                let rows = pictures.len() / len;
                let mut out = vec![0.0; count * rows];
                let to = MatMut::from_row_major_slice_mut(&mut out, count, rows);
                let left = MatRef::from_row_major_slice(&filters, count, len);
                let right = MatRef::from_row_major_slice(pictures, rows, len).transpose();
                matmul(to, Accum::Replace, left, right, 1.0, Par::Seq);
                out
            }
        });
        let (frame, [top, left]) = pieces[standing.best.0];
        let mut best = format!("frame {}", dataset.keys[frame as usize]);
        if control == Control::LinearPatches {
            best += &format!(", {0}x{0} pixels from row {top}, column {left}", stage.field);
        }
        Ok(self.won(control, &standing, best))
    }

    /// The best cluster: as many as the top stage has units.
    fn clusters(&self, test: &Test) -> Result<Row> {
        let (dataset, from) = self.learned_from(test.progress)?;
        let shape = dataset.shape;
        let side = |side: usize| side.min(CLUSTER_SIDE);
        let small = MapShape { rows: side(shape.rows), cols: side(shape.cols), ..shape };
        let count = from.len().min(CLUSTER_FRAMES);
        let mut rng = rng::stream(self.settings.seed, "clusters", 0);
        let mut chosen = rand::seq::index::sample(&mut rng, from.len(), count).into_vec();
        chosen.iter_mut().for_each(|at| *at = from[*at] as usize);
        // Not whitened: distances in many directions of equal variance say nothing (no cluster was better than always "no").
        let resize = |dataset: &Dataset, chosen: &[usize]| -> Dataset {
            let pixels = |&index: &usize| resized(&dataset.pixels(index), shape, small);
            Dataset::from_pixels(small, chosen.par_iter().flat_map_iter(pixels).collect())
        };
        let frames = resize(&dataset, &chosen);
        let whitening = Whitening { shape: small, transform: Transform::Contrast { scale: 1.0 } };
        let top = self.checkpoint.network.units(self.top(), Kind::Y).len();
        let plan = clusters::Plan {
            len: small.len(),
            frames: count,
            count: top.min(count),
            seed: self.settings.seed,
            checkpoint: self.identity.to_owned(),
        };
        let path = self.file("k-means.safetensors")?;
        let clusters = match Clusters::load(&path, &plan)? {
            Some(clusters) => clusters,
            None => {
                test.progress.begin("sorting frames into clusters", 1);
                let rows = Inputs::new(&frames, &whitening, budget());
                let pictures: Vec<f32> =
                    (0..count).into_par_iter().flat_map_iter(|index| rows.picture(index)).collect();
                let clusters = Clusters::new(&pictures, plan.len, plan.count, plan.seed)?;
                test.progress.add(1);
                clusters.save(&path, &plan)?;
                clusters
            }
        };

        let sets: Vec<(Dataset, Vec<usize>)> = self
            .labelled
            .sets
            .iter()
            .map(|(dataset, chosen)| (resize(dataset, chosen), (0..chosen.len()).collect()))
            .collect();
        let small_ones = Labelled { sets, positive: self.labelled.positive.clone(), truths: None };
        let inputs = small_ones.inputs(&whitening);
        let standing = test.best_of(clusters.count(), 0, &small_ones.shown(&inputs), |numbers| {
            let clusters = &clusters;
            move |pictures: &[f32]| clusters.nearness(pictures, numbers.clone())
        });
        let mut row = self.won(Control::KMeans, &standing, format!("cluster {}", standing.best.0));
        row.note = Some(format!("{count} frames of {}x{}", small.cols, small.rows));
        Ok(row)
    }

    /// The best unit of an autoencoder with as many weights as the network, shown as many frames.
    fn autoencoder(&self, control: Control, depth: usize, test: &Test) -> Result<Option<Row>> {
        let (dataset, from) = self.learned_from(test.progress)?;
        let Checkpoint { config, whitening, .. } = self.checkpoint;
        let weights = costs(config).iter().map(|stage| stage.weights).sum();
        let batch = config.training.batch;
        let inputs_len = dataset.shape.len();
        let plan = autoencoder::Plan {
            inputs: inputs_len,
            depth,
            width: autoencoder::Plan::width_for(inputs_len, depth, weights),
            steps: self.state.images.div_ceil(batch as u64).max(1),
            batch,
            seed: self.state.seed,
            checkpoint: self.identity.to_owned(),
        };
        let path = self.file(&format!("autoencoder-{depth}.safetensors"))?;
        let cpu = self.checkpoint.network.cpu;
        let mut net = Autoencoder::load(cpu, &path, &plan)?.unwrap_or_else(|| Autoencoder::new(cpu, plan));
        let frames = Inputs::new(&dataset, whitening, budget());
        let mut shuffle = Shuffle::new(net.plan.seed, from.len(), batch);
        let (mut indices, mut saved) = (Vec::new(), Instant::now());
        test.progress.begin(&format!("autoencoder of {depth} layers, steps"), net.plan.steps as usize);
        test.progress.add(net.step as usize);
        while !net.is_done() {
            shuffle.batch(net.step, &mut indices);
            let pictures: Vec<f32> =
                indices.iter().flat_map(|&at| frames.picture(from[at] as usize)).collect();
            let error = net.learn(&pictures);
            test.progress.add(1);
            if !error.is_finite() {
                let problem = format!("the error of the autoencoder is no number at step {}", net.step);
                return Err(Error::Mismatch(problem));
            }
            let stop = self.is_interrupted();
            if stop || net.is_done() || saved.elapsed().as_secs_f64() > SAVE_SECONDS {
                net.save(&path)?;
                saved = Instant::now();
            }
            if stop && !net.is_done() {
                return Ok(None);
            }
        }
        let inputs = self.labelled.inputs(whitening);
        let standing = test.best_of(net.units(), 0, &self.labelled.shown(&inputs), |numbers| {
            let net = &net;
            move |pictures: &[f32]| net.encode(pictures, numbers.clone())
        });
        let some: Vec<f32> =
            from.iter().take(SOME_FRAMES).flat_map(|&index| frames.picture(index as usize)).collect();
        let (layer, unit) = (standing.best.0 / net.plan.width, standing.best.0 % net.plan.width);
        let mut row = self.won(control, &standing, format!("layer {}, unit {unit}", layer + 1));
        row.note = Some(format!(
            "{} weights, {} units a layer; {:.0} % of the input unexplained",
            net.plan.weights(),
            net.plan.width,
            100.0 * net.unexplained(&some)
        ));
        Ok(Some(row))
    }

    /// A network trained in `RUN/controls/NAME`; none if it was interrupted.
    fn train(
        &self,
        name: &str,
        config: &RunConfig,
        store: &FrameStore,
        all: bool,
        progress: &Progress,
    ) -> Result<Option<Checkpoint>> {
        let out = self.folder().join(name);
        fs::create_dir_all(&out).map_err(Error::io(&out, "create"))?;
        // All of the run's frames lie decoded in its folder already.
        let mut dataset = self.dataset(store, if all { self.run } else { &out }, !all, progress)?;
        let options = Options {
            lead: None,
            seed: self.state.seed,
            threads: self.threads,
            resume: true,
            accept_changes: false,
            frames: self.frames,
            interrupted: self.interrupted,
        };
        let steps: u64 = config.training.steps.iter().sum();
        progress.begin(&format!("{name}, steps"), steps as usize);
        let done = AtomicU64::new(0);
        let summary = training::train(config, &mut dataset, &out, &options, |happened| {
            if let Happened::Step(step) = happened {
                let before = done.fetch_max(step, Ordering::Relaxed);
                progress.add(step.saturating_sub(before) as usize);
            }
        })?;
        if !summary.finished {
            return Ok(None);
        }
        checkpoint::load_latest(&out, false).map(Some)
    }
}
