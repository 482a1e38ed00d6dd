//! The network: stages in order, and the memory that a minibatch takes on its way through them.

pub mod checkpoint;
mod convolve;
mod crop;
pub mod objective;
mod on_cpu;
pub mod plain;
pub mod preprocess;
pub mod shared;
pub mod stage;
pub mod strip;
pub mod weights;

use std::sync::Arc;

use ndarray::{Array4, ArrayView4};

use crate::config::{Objective, RunConfig};
use crate::error::Result;
use crate::geometry::{Kind, MapShape, StageShape, Support};
use crate::kernels::{Buffer, Cpu, Rows, lanes_for};
pub use crop::Crop;
use objective::Loss;
pub use stage::{Activations, Stage, StageKernels};
use strip::{Peers, Strip};
pub use weights::{At, WeightUpdate, Weights};

/// S stages of local, untied filters, pooling and contrast normalisation (paper §3). Shared by all replicas.
pub struct Network {
    /// The instruction set its kernels use.
    pub cpu: Cpu,
    /// Size of the pictures it takes.
    pub input: MapShape,
    /// The stages, from the picture upwards.
    pub stages: Vec<Stage>,
}

/// Activations and gradients of one minibatch, reused over steps.
pub struct Workspace {
    /// Pictures in the minibatch; further lanes are zero.
    pub pictures: usize,
    /// Lanes of every map.
    pub lanes: usize,
    /// Size of the pictures.
    shape: MapShape,
    /// The pictures, `[row, column, channel, lane]`.
    pub input: Buffer,
    /// Gradient with respect to the pictures, made by [`Network::input_gradient`].
    pub input_gradient: Buffer,
    /// One for each stage.
    pub stages: Vec<Activations>,
    /// Losses of the stages that learned last.
    losses: Vec<Loss>,
}

/// One unit of a stage: the same place in its map for `h` and `y`; in the map of simple units for `a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Unit {
    /// Map, from 0.
    pub map: usize,
    /// Row of the map.
    pub row: usize,
    /// Column of the map.
    pub col: usize,
}

/// What a network of some settings costs, for `striate info`.
#[derive(Debug, Clone, serde::Serialize)]
pub struct StageCost {
    /// Sizes.
    pub shape: StageShape,
    /// What its units see of the picture, in pixels.
    pub support: Support,
    /// Units, `h` or `y`.
    pub units: usize,
    /// Connections of the encoder.
    pub encoder_connections: u64,
    /// Weights that are learned, encoder and decoder.
    pub weights: u64,
    /// Arithmetic to encode one picture, in floating-point operations.
    pub encode_flops: u64,
    /// Arithmetic to learn from one picture, in floating-point operations.
    pub learn_flops: u64,
}

impl Network {
    /// A network with random weights, drawn from `seed`.
    ///
    /// # Errors
    /// `STRIATE_CPU` asks for what this machine lacks.
    pub fn new(config: &RunConfig, seed: u64) -> Result<Network> {
        Self::build(config, |number, shape, settings, sums| {
            Stage::new(number, shape, settings, config.training.precision, seed, sums)
        })
    }

    /// A network with all weights 0, to be read from a checkpoint; with room for the optimiser's sums or without.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn zeros(config: &RunConfig, sums: bool) -> Result<Network> {
        Self::build(config, |number, shape, settings, keeps_sums| {
            Stage::zeros(number, shape, settings, config.training.precision, sums && keeps_sums)
        })
    }

    /// A network of the same sizes with all weights 0, and nothing for an optimiser.
    pub fn zeros_like(&self) -> Network {
        let zeros = |stage: &Stage| {
            Stage::zeros(stage.number, stage.shape, stage.settings.clone(), stage.precision(), false)
        };
        Network { cpu: self.cpu, input: self.input, stages: self.stages.iter().map(zeros).collect() }
    }

    fn build(
        config: &RunConfig,
        stage: impl Fn(usize, StageShape, crate::config::Stage, bool) -> Stage,
    ) -> Result<Network> {
        let sums = config.training.optimiser.remembers();
        let shapes = config.shapes().into_iter().zip(config.stages.clone()).enumerate();
        let stages =
            shapes.map(|(index, (shape, settings))| stage(index + 1, shape, settings, sums)).collect();
        Ok(Network { cpu: Cpu::detect()?, input: config.input_shape(), stages })
    }

    /// The same network on another instruction set, for comparison.
    pub fn with_cpu(mut self, cpu: Cpu) -> Network {
        self.cpu = cpu;
        self
    }

    /// One of several parts of it: it keeps the filters of some rows of positions of every stage, and works together with the other parts
    /// (paper §4.1).
    #[must_use]
    pub fn part(mut self, (part, parts): (usize, usize), peers: &Arc<dyn Peers>) -> Network {
        for stage in &mut self.stages {
            stage.strip = Strip::of_part(&stage.shape, (part, parts), Arc::clone(peers));
            stage.blocks.keep_only(stage.held());
        }
        self
    }

    /// True unless it is a [part](Self::part).
    pub fn is_whole(&self) -> bool {
        self.stages[0].strip.is_whole()
    }

    /// Draws all weights that are here anew, as [`new`](Self::new) does.
    pub fn draw(&self, seed: u64) {
        self.stages.iter().for_each(|stage| stage.blocks.draw(stage.number, seed));
    }

    /// What does the arithmetic.
    fn kernels(&self) -> &dyn StageKernels {
        &self.cpu
    }

    /// Memory for minibatches of up to `batch` pictures.
    pub fn workspace(&self, batch: usize) -> Workspace {
        let lanes = lanes_for(batch);
        let input = Buffer::zeros(self.input.len() * lanes);
        let stages = self.stages.iter().map(|stage| stage.activations(lanes)).collect();
        let (input_gradient, losses) = (input.clone(), Vec::new());
        Workspace { pictures: batch, lanes, shape: self.input, input_gradient, input, stages, losses }
    }

    /// About how many bytes a [`workspace`](Self::workspace) for `batch` pictures takes.
    pub fn workspace_bytes(&self, batch: usize) -> u64 {
        map_bytes(self.input, self.stages.iter().map(|stage| &stage.shape), batch)
    }

    /// Filtering, pooling and normalisation up to and including stage `last` (from 0).
    pub fn forward(&self, work: &mut Workspace, last: usize) {
        self.forward_to(work, last, Kind::Y);
    }

    /// The same, but of stage `last` only as far as `kind`: what its values of that kind need.
    pub fn forward_to(&self, work: &mut Workspace, last: usize, kind: Kind) {
        self.forward_from(work, 0, last, kind);
    }

    /// The same from what stage `first` takes, which is in [`Workspace::input_of`] then.
    pub fn forward_from(&self, work: &mut Workspace, first: usize, last: usize, kind: Kind) {
        for index in first..last {
            self.encode(work, index, Kind::Y);
        }
        self.encode(work, last, kind);
    }

    /// One stage, whose input is there, as far as `kind`.
    fn encode(&self, work: &mut Workspace, index: usize, kind: Kind) {
        let (stage, kernels) = (&self.stages[index], self.kernels());
        let (pictures, row) = (work.pictures, stage.shape.input.row_len() * work.lanes);
        if index > 0 {
            // Pictures are there as a whole.
            stage.strip.fill_fields(work.input_of(index), row);
        }
        let (input, acts) = work.split(index);
        kernels.filter(stage, input, acts);
        if kind != Kind::A {
            kernels.pool(stage, acts);
        }
        if kind == Kind::Y {
            kernels.normalise(stage, acts, pictures);
        }
    }

    /// The same network but for some stages (from 0), which are those of `other`. It can only encode.
    pub fn with_stages_of(&self, other: &Network, stages: &[usize]) -> Network {
        let of = |index: usize| if stages.contains(&index) { other } else { self };
        let stages = (0..self.stages.len()).map(|index| of(index).stages[index].encoder()).collect();
        Network { cpu: self.cpu, input: self.input, stages }
    }

    /// Size of one sublayer's maps.
    pub fn shape(&self, stage: usize, kind: Kind) -> MapShape {
        match kind {
            Kind::A => self.stages[stage].shape.filtered,
            Kind::H | Kind::Y => self.stages[stage].shape.pooled,
        }
    }

    /// Every unit of a stage, map after map.
    pub fn units(&self, stage: usize, kind: Kind) -> Vec<Unit> {
        let MapShape { channels, rows, cols } = self.shape(stage, kind);
        let places =
            move |map| (0..rows).flat_map(move |row| (0..cols).map(move |col| Unit { map, row, col }));
        (0..channels).flat_map(places).collect()
    }
}

impl Workspace {
    /// Takes pictures `[picture, channel, row, column]` of the network's input size.
    pub fn load(&mut self, pictures: ArrayView4<f32>) {
        assert!(pictures.len_of(ndarray::Axis(0)) <= self.lanes, "more pictures than lanes");
        self.start(pictures.len_of(ndarray::Axis(0)));
        for (lane, picture) in pictures.outer_iter().enumerate() {
            self.load_picture(lane, picture.iter().copied());
        }
    }

    /// Begins a minibatch of this many pictures, to be put into as many lanes; those without one are zero.
    pub fn start(&mut self, pictures: usize) {
        assert!((1..=self.lanes).contains(&pictures), "{pictures} pictures in {} lanes", self.lanes);
        self.pictures = pictures;
        if pictures < self.lanes {
            self.input.chunks_exact_mut(self.lanes).for_each(|lanes| lanes[pictures..].fill(0.0));
        }
    }

    /// Puts one picture, values in order `[channel, row, column]`, into a lane.
    pub fn load_picture(&mut self, lane: usize, values: impl Iterator<Item = f32>) {
        assert!(lane < self.pictures, "lane {lane} holds no picture");
        let MapShape { channels, rows, cols } = self.shape;
        let places = (0..channels).flat_map(|c| (0..rows * cols).map(move |at| at * channels + c));
        for (place, value) in places.zip(values) {
            self.input[place * self.lanes + lane] = value;
        }
    }

    /// Scales every picture to this norm; one that is zero everywhere stays so.
    pub fn scale_to(&mut self, norm: f32) {
        let mut squares = vec![0f64; self.lanes];
        for place in self.input.chunks_exact(self.lanes) {
            squares.iter_mut().zip(place).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
        }
        let scale = |&square: &f64| if square > 0.0 { (f64::from(norm) / square.sqrt()) as f32 } else { 0.0 };
        let scales: Vec<f32> = squares.iter().map(scale).collect();
        for place in self.input.chunks_exact_mut(self.lanes) {
            place.iter_mut().zip(&scales).for_each(|(x, scale)| *x *= scale);
        }
    }

    /// Lets the threads of the pool in which the network is used share the rows of its maps.
    #[must_use]
    pub fn with_rows(mut self, rows: Rows) -> Workspace {
        self.stages.iter_mut().for_each(|acts| acts.rows = rows);
        self
    }

    /// How the rows of its maps are worked on.
    pub fn rows(&self) -> Rows {
        self.stages[0].rows
    }

    /// Losses of the stages that learned last, in order.
    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// One sublayer's values, `[picture, map, row, column]`.
    pub fn values(&self, network: &Network, stage: usize, kind: Kind) -> Array4<f32> {
        self.unpack(self.maps(stage, kind), network.shape(stage, kind))
    }

    /// The same into `rows`, `[picture, unit]` with units in the order of [`Network::units`].
    pub fn copy_values(&self, network: &Network, stage: usize, kind: Kind, rows: &mut [f32]) {
        /// Units and pictures that are copied together: so many lines of the cache are read whole, and as many written.
        const BLOCK: usize = 16;
        let (shape, maps) = (network.shape(stage, kind), self.maps(stage, kind));
        let (units, plane) = (shape.len(), shape.rows * shape.cols);
        assert_eq!(rows.len(), self.pictures * units, "a value of each unit for each picture");
        for first in (0..units).step_by(BLOCK) {
            let block = BLOCK.min(units - first);
            let place = |unit: usize| (unit % plane * shape.channels + unit / plane) * self.lanes;
            let starts: [usize; BLOCK] = std::array::from_fn(|at| place((first + at).min(units - 1)));
            for lanes in (0..self.pictures).step_by(BLOCK) {
                for lane in lanes..self.pictures.min(lanes + BLOCK) {
                    let row = &mut rows[lane * units + first..][..block];
                    row.iter_mut().zip(&starts).for_each(|(value, start)| *value = maps[start + lane]);
                }
            }
        }
    }

    /// The value of one unit for each picture.
    pub fn unit_values(&self, network: &Network, stage: usize, kind: Kind, unit: Unit) -> &[f32] {
        let shape = network.shape(stage, kind);
        let first = shape.place(unit.map, unit.row, unit.col) * self.lanes;
        &self.maps(stage, kind)[first..first + self.pictures]
    }

    /// One sublayer's maps, `[row, column, channel, lane]`.
    pub fn maps(&self, stage: usize, kind: Kind) -> &[f32] {
        let acts = &self.stages[stage];
        match kind {
            Kind::A => &acts.a,
            Kind::H => &acts.h,
            Kind::Y => &acts.y,
        }
    }

    /// Where the gradient with respect to one sublayer's values is kept, maps `[row, column, channel, lane]`.
    pub fn seeds(&mut self, stage: usize, kind: Kind) -> &mut [f32] {
        let acts = &mut self.stages[stage];
        match kind {
            Kind::A => &mut acts.da,
            Kind::H => &mut acts.dh,
            Kind::Y => &mut acts.dy,
        }
    }

    /// Maps `[row, column, channel, lane]` as pictures `[picture, channel, row, column]`.
    pub fn unpack(&self, maps: &[f32], shape: MapShape) -> Array4<f32> {
        let size = (self.pictures, shape.channels, shape.rows, shape.cols);
        Array4::from_shape_fn(size, |(lane, c, y, x)| maps[shape.place(c, y, x) * self.lanes + lane])
    }

    /// What a stage takes, in maps `[row, column, channel, lane]`: the pictures, or the outputs of the stage below.
    pub fn input_of(&mut self, stage: usize) -> &mut Buffer {
        match stage.checked_sub(1) {
            Some(below) => &mut self.stages[below].y,
            None => &mut self.input,
        }
    }

    /// Gradient with respect to that, made by [`Network::gradient_to`].
    pub fn input_gradient_of(&self, stage: usize) -> &Buffer {
        match stage.checked_sub(1) {
            Some(below) => &self.stages[below].dy,
            None => &self.input_gradient,
        }
    }

    /// A stage's input and its activations.
    fn split(&mut self, stage: usize) -> (&[f32], &mut Activations) {
        let (below, here) = self.stages.split_at_mut(stage);
        let input = below.last().map_or(&self.input, |acts| &acts.y);
        (input, &mut here[0])
    }

    /// A stage's input, its activations and the gradient with respect to its input.
    fn split_gradient(&mut self, stage: usize) -> (&[f32], &mut Activations, &mut [f32]) {
        let (below, here) = self.stages.split_at_mut(stage);
        match below.last_mut() {
            Some(Activations { y, dy, .. }) => (y, &mut here[0], dy),
            None => (&self.input, &mut here[0], &mut self.input_gradient),
        }
    }
}

/// Sizes and costs of every stage of a config, without allocating it.
pub fn costs(config: &RunConfig) -> Vec<StageCost> {
    let shapes = config.shapes();
    let supports = crate::geometry::supports(&shapes);
    let joint = config.training.objective != Objective::Local;
    let cost = |(index, (shape, support)): (usize, (StageShape, Support))| StageCost {
        shape,
        support,
        units: shape.pooled.len(),
        encoder_connections: shape.connections(),
        weights: if config.stages[index].tied { 1 } else { 2 } * shape.connections(),
        encode_flops: 2 * shape.connections(),
        // Encode, decode, two weight gradients and the way back through the decoder; and through the encoder if joint.
        learn_flops: if joint && index > 0 { 12 } else { 10 } * shape.connections(),
    };
    shapes.into_iter().zip(supports).enumerate().map(cost).collect()
}

/// Bytes that training takes.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct TrainingBytes {
    /// The weights that replicas share.
    pub weights: u64,
    /// What the optimiser remembers of them.
    pub optimiser: u64,
    /// Activations of a replica.
    pub activations: u64,
    /// Weights that a replica has for itself (`fetch_every` above 1).
    pub copies: u64,
    /// A gradient of all weights that a replica has for itself (`push_every` above 1, `global_clip`, several replicas in `sync`).
    pub gradients: u64,
}

/// Bytes that training takes: weights, what the optimiser remembers, and for each replica its own.
pub fn training_bytes(config: &RunConfig, replicas: usize) -> TrainingBytes {
    let padded = |(s, settings): (&StageShape, &crate::config::Stage)| {
        let maps = s.filtered.channels.next_multiple_of(crate::kernels::filter::MAP_PAD);
        let arrays = if settings.tied { 1 } else { 2 };
        arrays * (s.positions() * s.taps() * maps) as u64
    };
    let (shapes, training) = (config.shapes(), &config.training);
    let count = shapes.iter().zip(&config.stages).map(padded).sum::<u64>();
    let weights = training.precision.bytes() as u64 * count;
    TrainingBytes {
        weights,
        optimiser: if training.optimiser.remembers() { weights } else { 0 },
        activations: map_bytes(config.input_shape(), shapes.iter(), training.batch),
        copies: if training.copies_weights() { weights } else { 0 },
        gradients: if training.keeps_gradients(replicas) { 4 * count } else { 0 },
    }
}

/// Bytes of all maps of a minibatch: activations, residuals and gradients.
fn map_bytes<'a>(input: MapShape, stages: impl Iterator<Item = &'a StageShape>, batch: usize) -> u64 {
    let values = |s: &StageShape| s.input.len() + 2 * s.filtered.len() + 4 * s.pooled.len();
    let maps = 2 * input.len() + stages.map(values).sum::<usize>();
    4 * (maps * lanes_for(batch)) as u64
}

/// Floating-point operations to learn from a picture while `stages` learn: all products of these, one of those below.
pub fn learn_flops(costs: &[StageCost], stages: std::ops::Range<usize>) -> u64 {
    let below: u64 = costs[..stages.start].iter().map(|s| s.encode_flops).sum();
    below + costs[stages].iter().map(|s| s.learn_flops).sum::<u64>()
}

/// Floating-point operations to learn from one picture in each step of the schedule, all steps together.
pub fn schedule_flops(config: &RunConfig, stages: &[StageCost]) -> u128 {
    let phases = config.phases().into_iter();
    phases.map(|(range, steps)| u128::from(learn_flops(stages, range)) * u128::from(steps)).sum()
}
