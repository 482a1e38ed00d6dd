//! Settings of a run: typed TOML, every value checked, unknown keys refused with the nearest valid one.
//!
//! Frames are never named here: a config describes a network and its training, and fits any frames.

mod check;
mod keys;

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::geometry::{MapShape, StageShape, Windows};
use keys::{one_based, plain_type, refuse_unknown, set};

/// Settings of a run, checked. Holding one means that every value is valid and every stage fits its input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// The picture that the network sees.
    pub input: Input,
    /// The stages, from the picture upwards.
    pub stages: Vec<Stage>,
    /// How the weights are learned.
    pub training: Training,
}

/// `[input]`: the picture that the network sees and what is done to it first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Input {
    /// 1 for grey, 3 for RGB.
    pub channels: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// What is done to a picture first, fitted on the training frames.
    pub preprocess: Preprocess,
    /// Added to the variance of each direction before whitening, where pixels have variance 1: a low-pass at the
    /// noise end. Lower gives checkerboards, higher gives blobs.
    pub floor: f64,
    /// Side of the whitening filter, for `preprocess = "conv"`; odd, up to 31.
    pub conv_size: usize,
    /// Side of the window of the contrast normalisation, for `preprocess = "lcn"`; odd, from 3 to 31.
    pub lcn_size: usize,
    /// Pixels by which frames are kept larger than the network's input, in height and in width in all: each time a frame is
    /// learned from, a random window of the input's size is cut; everything else sees the middle. 0 for none.
    pub margin: usize,
    /// Whether a frame that is learned from is mirrored left to right half of the times.
    pub flip: bool,
}

impl Default for Input {
    fn default() -> Self {
        Input {
            channels: 1,
            height: 32,
            width: 32,
            preprocess: Preprocess::Zca,
            floor: 1.0,
            conv_size: 9,
            lcn_size: 9,
            margin: 0,
            flip: false,
        }
    }
}

impl Input {
    /// Side of the whitening filter: as asked, but odd and no larger than the picture.
    pub fn whitening_side(&self) -> usize {
        self.odd_side(self.conv_size)
    }

    /// Side of the window of the contrast normalisation: as asked, but odd and no larger than the picture.
    pub fn lcn_side(&self) -> usize {
        self.odd_side(self.lcn_size)
    }

    fn odd_side(&self, side: usize) -> usize {
        (side.min(self.height).min(self.width) - 1) | 1
    }
}

/// What happens to a picture before the first stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preprocess {
    /// Pixels in 0..1 as they are, as the paper's formula has it.
    None,
    /// Mean and contrast of each picture removed, and nothing else.
    Contrast,
    /// The same, then local contrast normalisation of the picture: for any size.
    Lcn,
    /// Mean and contrast of each picture removed, then full ZCA whitening: for small pictures.
    Zca,
    /// The same with a whitening convolution fitted on patches: for any size.
    Conv,
}

/// One `[[stages]]` entry: filtering, pooling and contrast normalisation (paper §3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stage {
    /// Output maps (paper: 8).
    pub maps: usize,
    /// Side of a receptive field, in input positions (paper: 18).
    pub field: usize,
    /// Step between receptive fields (the paper does not say; 1 gives its count of connections).
    pub stride: usize,
    /// Side of a pooling window, inside one map (paper: 5); 1 for no pooling.
    pub pool: usize,
    /// Step between pooling windows.
    pub pool_stride: usize,
    /// Side of the contrast-normalisation window (paper: 5), odd; 0 for none.
    pub lcn: usize,
    /// λ, sparsity against reconstruction (paper: 0.1).
    pub sparsity_weight: f64,
    /// ε inside the square root of the pooling.
    pub epsilon: f64,
    /// Smallest divisor of the contrast normalisation (paper: 0.01).
    pub lcn_floor: f64,
    /// How overlapping reconstructions are combined.
    pub reconstruction: Reconstruction,
    /// What the normalisation window does outside the map.
    pub lcn_border: LcnBorder,
    /// The decoder is the encoder's transpose, instead of weights of its own (the paper's W2).
    pub tied: bool,
}

impl Default for Stage {
    fn default() -> Self {
        Stage {
            maps: 8,
            field: 18,
            stride: 1,
            pool: 5,
            pool_stride: 1,
            lcn: 5,
            sparsity_weight: 1.0,
            epsilon: 1e-4,
            lcn_floor: 0.01,
            reconstruction: Reconstruction::Sum,
            lcn_border: LcnBorder::Renorm,
            tied: false,
        }
    }
}

/// How the contributions of overlapping receptive fields make one reconstruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reconstruction {
    /// Their sum, as in the paper's formula.
    Sum,
    /// Their sum divided by the number of receptive-field positions that cover the pixel.
    Coverage,
}

/// Weights of the normalisation window at the border of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LcnBorder {
    /// Rescaled so that those inside the map sum to 1.
    Renorm,
    /// Left as they are: outside counts as zero.
    Zero,
}

/// `[training]`: objective, schedule and optimiser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Training {
    /// How far gradients of one stage's objective reach.
    pub objective: Objective,
    /// One stage after the other, or all at once.
    pub schedule: Schedule,
    /// Whether replicas wait for each other.
    pub mode: Mode,
    /// Steps (minibatches of all replicas together): one number per stage for `greedy`, one in all for `together`.
    pub steps: Vec<u64>,
    /// Frames in a minibatch (paper: 100). Multiples of 16 waste nothing.
    pub batch: usize,
    /// Threads that train at the same time; 0 for one per core.
    pub replicas: usize,
    /// Rule that turns a gradient into a step.
    pub optimiser: Optimiser,
    /// How weights and the optimiser's sums are stored.
    pub precision: Precision,
    /// Learning rate.
    pub rate: f64,
    /// Share of the velocity that a step keeps, for `optimiser = "momentum"`.
    pub momentum: f64,
    /// Steps at the start of each phase over which the rate rises to its full value.
    pub warmup: u64,
    /// Fraction of a stage's steps at the full rate; after it the rate falls linearly.
    pub rate_hold: f64,
    /// The rate at the end, as a fraction of `rate`.
    pub rate_end: f64,
    /// Largest norm of a decoder filter; 0 for no bound.
    pub decoder_norm_bound: f64,
    /// Fraction of the encoder's weights taken away each step (times the schedule's factor).
    pub encoder_decay: f64,
    /// Largest change of a filter in one step, as a share of its norm; 0 for no limit. Without it a minibatch of outliers,
    /// or several replicas at once, can throw a stage so far that it never comes back.
    pub max_step: f64,
    /// Largest norm of the gradient of a filter; 0 for no limit.
    pub gradient_clip: f64,
    /// Largest norm of the gradient of all weights that learn; 0 for no limit. Takes memory for a gradient in each replica.
    pub global_clip: f64,
    /// Steps of a replica between reads of the shared weights (the paper's P). Above 1 each replica has weights of its own.
    pub fetch_every: u64,
    /// Steps of a replica between pushes of gradients (the paper's G). Above 1 each replica has a gradient of its own.
    pub push_every: u64,
    /// How gradients travel to servers on other machines; on threads they do not travel.
    pub push_as: PushAs,
    /// Share of the frames that is kept out of training, at most 2,000, for the validation loss; 0 for none.
    pub held_out: f64,
    /// Steps between validations; there is always one at a checkpoint and at the end of a stage. 0 for no others.
    pub validate_every: u64,
    /// Units that never respond on validation: only counted, or drawn anew.
    pub dead_units: DeadUnits,
    /// A loss so many times its running mean ends the run; 0 for never.
    pub loss_jump: f64,
    /// What happens when the loss is no number any more, or jumps.
    pub on_divergence: OnDivergence,
    /// Steps between lines of the log.
    pub log_every: u64,
    /// Minutes between checkpoints; one is always written at the end of a stage.
    pub checkpoint_minutes: f64,
    /// Steps between checkpoints, beside those by the clock; 0 for none.
    pub checkpoint_steps: u64,
    /// Newest checkpoints that are kept; above 5 GB only one.
    pub keep_last: usize,
    /// Whether the checkpoint with the lowest validation loss of the stage that learns is kept as well; not above
    /// 5 GB.
    pub keep_best: bool,
    /// What happens when a checkpoint does not fit on the disk. The one before stays good.
    pub on_full_disk: OnFullDisk,
}

impl Default for Training {
    fn default() -> Self {
        Training {
            objective: Objective::Local,
            schedule: Schedule::Greedy,
            mode: Mode::Async,
            steps: Vec::new(),
            batch: 96,
            replicas: 0,
            optimiser: Optimiser::Adagrad,
            precision: Precision::F32,
            rate: 0.02,
            momentum: 0.9,
            warmup: 200,
            rate_hold: 0.6,
            rate_end: 0.05,
            decoder_norm_bound: 1.0,
            encoder_decay: 1e-3,
            max_step: 0.1,
            gradient_clip: 0.0,
            global_clip: 0.0,
            fetch_every: 1,
            push_every: 1,
            push_as: PushAs::F32,
            held_out: 0.05,
            validate_every: 1000,
            dead_units: DeadUnits::Report,
            loss_jump: 10.0,
            on_divergence: OnDivergence::Stop,
            log_every: 100,
            checkpoint_minutes: 10.0,
            checkpoint_steps: 0,
            keep_last: 2,
            keep_best: true,
            on_full_disk: OnFullDisk::Stop,
        }
    }
}

impl Training {
    /// True if each replica has weights of its own.
    pub fn copies_weights(&self) -> bool {
        self.fetch_every > 1
    }

    /// True if each of `replicas` replicas has a gradient of all weights of its own.
    pub fn keeps_gradients(&self, replicas: usize) -> bool {
        self.push_every > 1 || self.global_clip > 0.0 || (self.mode == Mode::Sync && replicas > 1)
    }
}

/// How gradients travel between machines. What is not sent stays behind and is added to the next gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PushAs {
    /// As they are.
    F32,
    /// Rounded to 16 bits: half of the bytes.
    Bf16,
    /// Of each block the largest hundredth, with their places: a fiftieth of the bytes.
    TopPercent,
}

/// How far the gradient of a stage's objective reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// A stage sees its input as a constant.
    Local,
    /// Gradients reach earlier stages through the encoders of later ones; what is to be reconstructed is constant.
    JointDetachedTarget,
    /// Also through what is to be reconstructed.
    JointFull,
}

impl Objective {
    /// All modes, in the order of the golden files.
    pub const ALL: [Objective; 3] = [Objective::Local, Objective::JointDetachedTarget, Objective::JointFull];

    /// The name in configs and golden files.
    pub fn name(self) -> &'static str {
        match self {
            Objective::Local => "local",
            Objective::JointDetachedTarget => "joint-detached-target",
            Objective::JointFull => "joint-full",
        }
    }
}

/// Which stages learn at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stage by stage, from the picture upwards.
    Greedy,
    /// All stages in every step, as the paper does.
    Together,
}

/// Whether replicas wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// No replica waits for another (paper §4.1). Repeats from a seed with one replica only.
    Async,
    /// Replicas work on minibatches with the same weights, which then change by the mean of their gradients, taken in the
    /// order of the replicas. Repeats bit for bit from a seed.
    Sync,
}

/// What is done about units that never respond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeadUnits {
    /// They are counted.
    Report,
    /// Their filters are drawn anew.
    Revive,
}

/// What is done when the loss is no number any more, or jumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDivergence {
    /// The run ends with an error.
    Stop,
    /// It goes on from the last checkpoint at half the rate, up to five times.
    RollBack,
}

/// What is done when a checkpoint does not fit on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFullDisk {
    /// The run ends with an error.
    Stop,
    /// It goes on without, and says so.
    GoOn,
}

/// Rule that turns a gradient into a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimiser {
    /// `w -= rate * g / sqrt(sum of g² + 1e-16)`, what DistBelief found a good partner of asynchrony.
    Adagrad,
    /// `w -= rate * g`.
    Sgd,
    /// `v = momentum * v + g; w -= rate * v`.
    Momentum,
}

impl Optimiser {
    /// True if it remembers a number for each weight.
    pub fn remembers(self) -> bool {
        self != Optimiser::Sgd
    }
}

/// How weights are stored; arithmetic is f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 4 bytes each.
    F32,
    /// 2 bytes each: 8 bits of precision; updates are rounded by chance.
    Bf16,
}

impl Precision {
    /// The name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Bytes of a weight.
    pub fn bytes(self) -> usize {
        match self {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        }
    }
}

impl RunConfig {
    /// Reads a config file and replaces single settings by `overrides`, each `key=value` such as
    /// `training.rate=0.01` or `stages.2.maps=32` (stages count from 1).
    ///
    /// # Errors
    /// [`Error::BadConfig`] if the file cannot be read or is not TOML, a key is unknown, or a value has the wrong type
    /// or range.
    pub fn load(path: &Path, overrides: &[String]) -> Result<RunConfig> {
        let text = fs::read_to_string(path).map_err(|e| Error::Mismatch(format!("cannot read: {e}")));
        text.and_then(|text| Self::parse(&text, overrides))
            .map_err(|source| Error::BadConfig { path: path.into(), source: Box::new(source) })
    }

    /// The same from text.
    pub fn parse(text: &str, overrides: &[String]) -> Result<RunConfig> {
        let mut table: Table = text.parse().map_err(|e: toml::de::Error| {
            let line =
                e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Error::Mismatch(format!("not TOML at line {line}: {}", e.message().replace('\n', ", ")))
        })?;
        for item in overrides {
            set(&mut table, item)?;
        }
        refuse_unknown(&table)?;
        let config: RunConfig = serde_path_to_error::deserialize(Value::Table(table)).map_err(|e| {
            let path = one_based(&e.path().to_string());
            let reason = e.into_inner().message().replace('\n', ", ");
            match reason.split_once(", expected ") {
                Some((got, want)) => Error::Setting {
                    key: path,
                    got: got.replace("invalid type: ", "").replace("invalid value: ", ""),
                    want: plain_type(want).to_owned(),
                },
                None if path == "." => Error::Mismatch(reason),
                None => Error::Mismatch(format!("setting `{path}`: {reason}")),
            }
        })?;
        config.checked()
    }

    /// The config itself if every value is valid.
    pub(crate) fn checked(self) -> Result<RunConfig> {
        self.check().map(|()| self)
    }

    /// The settings as TOML, defaults filled in.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("settings are plain tables")
    }

    /// Every setting in which `other` differs, as `key: this value -> other value`.
    pub fn differences(&self, other: &RunConfig) -> Vec<String> {
        let (mine, others) = (self.flattened(), other.flattened());
        let key = |entry: &(String, String)| entry.0.clone();
        let keys: std::collections::BTreeSet<String> = mine.iter().chain(&others).map(key).collect();
        let find = |entries: &[(String, String)], key: &str| {
            entries.iter().find(|entry| entry.0 == key).map_or("none".to_owned(), |entry| entry.1.clone())
        };
        let pairs = keys.iter().map(|key| (key, find(&mine, key), find(&others, key)));
        pairs.filter(|(_, a, b)| a != b).map(|(key, a, b)| format!("{key}: {a} -> {b}")).collect()
    }

    /// Every setting as `(key, value)`, stages numbered from 1.
    fn flattened(&self) -> Vec<(String, String)> {
        let table = Table::try_from(self).expect("settings are plain tables");
        let entries = |section: &str, table: &Table| -> Vec<(String, String)> {
            table.iter().map(|(key, value)| (format!("{section}.{key}"), value.to_string())).collect()
        };
        let sections = table.iter().flat_map(|(section, value)| match value {
            Value::Table(table) => entries(section, table),
            Value::Array(stages) => (1..)
                .zip(stages.iter().filter_map(Value::as_table))
                .flat_map(|(number, stage)| entries(&format!("{section}.{number}"), stage))
                .collect(),
            _ => Vec::new(),
        });
        sections.collect()
    }

    /// The sizes of every stage.
    pub fn shapes(&self) -> Vec<StageShape> {
        self.try_shapes().expect("checked when the config was made")
    }

    /// Size of the network's input.
    pub fn input_shape(&self) -> MapShape {
        MapShape { channels: self.input.channels, rows: self.input.height, cols: self.input.width }
    }

    fn try_shapes(&self) -> Result<Vec<StageShape>> {
        let mut input = self.input_shape();
        self.stages
            .iter()
            .enumerate()
            .map(|(index, s)| {
                let windows = Windows {
                    maps: s.maps,
                    field: s.field,
                    stride: s.stride,
                    pool: s.pool,
                    pool_stride: s.pool_stride,
                    lcn: s.lcn,
                };
                let shape = StageShape::new(index + 1, input, windows)?;
                input = shape.pooled;
                Ok(shape)
            })
            .collect()
    }

    /// Phases of training: which stages learn, and for how many steps.
    pub fn phases(&self) -> Vec<(std::ops::Range<usize>, u64)> {
        match self.training.schedule {
            Schedule::Greedy => {
                (0..self.stages.len()).map(|s| s..s + 1).zip(self.training.steps.clone()).collect()
            }
            Schedule::Together => vec![(0..self.stages.len(), self.training.steps[0])],
        }
    }
}

#[cfg(test)]
mod tests;
