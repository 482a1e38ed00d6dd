//! One stage: its weights, and what flows through it in both directions (paper §3).
//!
//! Weights live in blocks, a row of positions each, behind a reader-writer lock: replicas on threads read and update
//! them in place, asynchronously and without a data race. Nothing of the size of the weights exists beside them but
//! the sums of the optimiser.

use std::sync::RwLock;

use ndarray::{Array, Ix6};
use ndarray_rand::rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use crate::config::{self, LcnBorder, Reconstruction};
use crate::geometry::StageShape;
use crate::kernels::filter::{self, MAP_PAD, Taps};
use crate::kernels::lcn::{Lcn, LcnScratch};
use crate::kernels::{Buffer, Cpu, pool};
use crate::rng;

/// Weights of one row of positions, each array `[column, tap, map]` with maps padded by zeros to [`MAP_PAD`].
pub struct Block {
    /// W1.
    pub encoder: Buffer,
    /// W2.
    pub decoder: Buffer,
    /// What the optimiser remembers of each encoder weight; empty if nothing.
    pub encoder_sums: Buffer,
    /// What the optimiser remembers of each decoder weight; empty if nothing.
    pub decoder_sums: Buffer,
}

/// Which of a stage's arrays of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// W1.
    Encoder,
    /// W2.
    Decoder,
    /// The optimiser's sums for W1.
    EncoderSums,
    /// The optimiser's sums for W2.
    DecoderSums,
}

impl Block {
    fn array(&self, which: Weights) -> &Buffer {
        match which {
            Weights::Encoder => &self.encoder,
            Weights::Decoder => &self.decoder,
            Weights::EncoderSums => &self.encoder_sums,
            Weights::DecoderSums => &self.decoder_sums,
        }
    }

    fn array_mut(&mut self, which: Weights) -> &mut Buffer {
        match which {
            Weights::Encoder => &mut self.encoder,
            Weights::Decoder => &mut self.decoder,
            Weights::EncoderSums => &mut self.encoder_sums,
            Weights::DecoderSums => &mut self.decoder_sums,
        }
    }
}

/// Turns the gradient of one position into new weights. Arrays are `[tap, map]` with `maps` (padded by zeros) filters; the
/// gradient may be used as scratch.
pub trait WeightUpdate: Sync {
    /// New encoder weights of one position.
    fn encoder(&self, maps: usize, weights: &mut [f32], sums: &mut [f32], gradient: &mut [f32]);
    /// New decoder weights of one position.
    fn decoder(&self, maps: usize, weights: &mut [f32], sums: &mut [f32], gradient: &mut [f32]);
}

/// One stage of the network.
pub struct Stage {
    /// Sizes.
    pub shape: StageShape,
    /// λ, ε and the rest.
    pub settings: config::Stage,
    blocks: Vec<RwLock<Block>>,
    /// 1 / (number of receptive fields covering each input position), for `reconstruction = "coverage"`.
    inverse_coverage: Option<Vec<f32>>,
}

/// What one replica knows of a stage while it works on a minibatch: activations and their gradients.
///
/// Maps are `[channel, row, column, lane]`.
pub struct Activations {
    taps: Taps,
    lcn: Option<Lcn>,
    lcn_scratch: LcnScratch,
    row_scratch: Buffer,
    pairs: Buffer,
    gradient: Buffer,
    /// Simple units.
    pub a: Buffer,
    /// Complex units.
    pub h: Buffer,
    /// Output of the stage.
    pub y: Buffer,
    /// Reconstruction minus input.
    pub residual: Buffer,
    /// Gradient with respect to `a`.
    pub da: Buffer,
    /// Gradient with respect to `h`.
    pub dh: Buffer,
    /// Gradient with respect to `y`.
    pub dy: Buffer,
}

impl Stage {
    /// Encoder entries from N(0, 1/taps), decoder filters the same directions with norm 1; drawn from
    /// the streams `weights <number>` of `seed`. `sums` allocates what Adagrad needs.
    pub fn new(number: usize, shape: StageShape, settings: config::Stage, seed: u64, sums: bool) -> Stage {
        let mut stage = Stage::zeros(shape, settings, sums);
        let (maps, padded, taps) = (shape.filtered.channels, stage.padded_maps(), shape.taps());
        let scale = (taps as f32).powf(-0.5);
        stage.blocks.par_iter_mut().enumerate().for_each(|(row, block)| {
            let block = block.get_mut().expect("nobody holds it");
            let mut rng = rng::stream(seed, &format!("weights {number}"), row as u64);
            let filters = block.encoder.chunks_exact_mut(taps * padded);
            for (encoder, decoder) in filters.zip(block.decoder.chunks_exact_mut(taps * padded)) {
                let mut norms = vec![0f32; maps];
                for weights in encoder.chunks_exact_mut(padded) {
                    for (weight, norm) in weights[..maps].iter_mut().zip(&mut norms) {
                        let draw: f32 = StandardNormal.sample(&mut rng);
                        *weight = scale * draw;
                        *norm += *weight * *weight;
                    }
                }
                for (from, to) in encoder.chunks_exact(padded).zip(decoder.chunks_exact_mut(padded)) {
                    for ((to, from), norm) in to.iter_mut().zip(from).zip(&norms) {
                        *to = from / norm.sqrt();
                    }
                }
            }
        });
        stage
    }

    /// All weights 0, to be read from a checkpoint.
    pub fn zeros(shape: StageShape, settings: config::Stage, sums: bool) -> Stage {
        let size = shape.filtered.cols * shape.taps() * shape.filtered.channels.next_multiple_of(MAP_PAD);
        let optional = || Buffer::zeros(if sums { size } else { 0 });
        let block = || Block {
            encoder: Buffer::zeros(size),
            decoder: Buffer::zeros(size),
            encoder_sums: optional(),
            decoder_sums: optional(),
        };
        let inverse_coverage = (settings.reconstruction == Reconstruction::Coverage).then(|| {
            let (rows, cols) = (shape.coverage(true), shape.coverage(false));
            let inverse = |n: usize| 1.0 / n.max(1) as f32;
            rows.iter().flat_map(|&row| cols.iter().map(move |&col| inverse(row * col))).collect()
        });
        let blocks = (0..shape.filtered.rows).map(|_| RwLock::new(block())).collect();
        Stage { shape, settings, blocks, inverse_coverage }
    }

    fn padded_maps(&self) -> usize {
        self.shape.filtered.channels.next_multiple_of(MAP_PAD)
    }

    /// Values of one position in each array of a block.
    fn position_len(&self) -> usize {
        self.shape.taps() * self.padded_maps()
    }

    /// Room for a minibatch of this many lanes.
    pub fn activations(&self, lanes: usize) -> Activations {
        let (s, maps) = (&self.shape, |shape: crate::geometry::MapShape| Buffer::zeros(shape.len() * lanes));
        let renormalise = self.settings.lcn_border == LcnBorder::Renorm;
        let lcn = |side| Lcn::new(s.pooled, lanes, side, self.settings.lcn_floor as f32, renormalise);
        Activations {
            taps: Taps::new(s, lanes),
            lcn: (s.lcn > 0).then(|| lcn(s.lcn)),
            lcn_scratch: LcnScratch::new(s.pooled, lanes),
            row_scratch: Buffer::zeros(s.filtered.cols * lanes),
            pairs: Buffer::zeros(self.padded_maps() * lanes),
            gradient: Buffer::zeros(self.position_len()),
            a: maps(s.filtered),
            h: maps(s.pooled),
            y: maps(s.pooled),
            residual: maps(s.input),
            da: maps(s.filtered),
            dh: maps(s.pooled),
            dy: maps(s.pooled),
        }
    }

    /// Calls `work` with each position's weights, its first value in the input and that in the filtered maps.
    fn for_each_position(&self, taps: &Taps, which: Weights, mut work: impl FnMut(&[f32], usize, usize)) {
        for (row, block) in self.blocks.iter().enumerate() {
            let block = block.read().expect("no replica panics");
            for (col, weights) in block.array(which).chunks_exact(self.position_len()).enumerate() {
                work(weights, taps.base(row, col), self.first_response(row, col, taps.lanes()));
            }
        }
    }

    /// Index of map 0, lane 0 of the simple units at a position.
    fn first_response(&self, row: usize, col: usize, lanes: usize) -> usize {
        (row * self.shape.filtered.cols + col) * lanes
    }

    /// Distance between maps of simple units.
    fn map_step(&self, lanes: usize) -> usize {
        self.shape.filtered.rows * self.shape.filtered.cols * lanes
    }

    /// Filtering and pooling: `a` and `h` from the stage's input.
    pub fn encode(&self, cpu: Cpu, input: &[f32], acts: &mut Activations) {
        let Activations { taps, a, h, row_scratch, .. } = acts;
        let (maps, step) = (self.shape.filtered.channels, self.map_step(taps.lanes()));
        a.fill(0.0);
        self.for_each_position(taps, Weights::Encoder, |weights, base, first| {
            filter::respond(cpu, taps, base, maps, weights, input, &mut a[first..], step);
        });
        pool::pool(cpu, &self.shape, self.settings.epsilon as f32, a, h, row_scratch);
    }

    /// Local contrast normalisation: `y` from `h`; lanes from `pictures` on are no pictures and become 0.
    pub fn normalise(&self, cpu: Cpu, acts: &mut Activations, pictures: usize) {
        let Activations { lcn, h, y, lcn_scratch, taps, .. } = acts;
        match lcn {
            Some(lcn) => lcn.normalise(cpu, h, y, lcn_scratch),
            None => y.copy_from_slice(h),
        }
        if pictures < taps.lanes() {
            y.chunks_exact_mut(taps.lanes()).for_each(|lanes| lanes[pictures..].fill(0.0));
        }
    }

    /// Decoding: `residual` = reconstruction - input.
    pub fn decode(&self, cpu: Cpu, input: &[f32], acts: &mut Activations) {
        let Activations { taps, a, residual, .. } = acts;
        let (maps, step) = (self.shape.filtered.channels, self.map_step(taps.lanes()));
        residual.fill(0.0);
        self.for_each_position(taps, Weights::Decoder, |weights, base, first| {
            filter::scatter(cpu, taps, base, maps, weights, &a[first..], step, residual);
        });
        self.divide_by_coverage(residual, taps.lanes());
        residual.iter_mut().zip(input).for_each(|(r, x)| *r -= x);
    }

    /// Divides maps of the input's size by the number of receptive fields at each place, if the settings say so.
    pub fn divide_by_coverage(&self, maps: &mut [f32], lanes: usize) {
        let Some(inverse) = &self.inverse_coverage else { return };
        for (lanes, scale) in maps.chunks_exact_mut(lanes).zip(inverse.iter().cycle()) {
            lanes.iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// Adds to `dh` what `dy` makes of it; `dy` is used up.
    pub fn normalisation_gradient(&self, cpu: Cpu, acts: &mut Activations) {
        let Activations { lcn, y, dy, dh, lcn_scratch, .. } = acts;
        match lcn {
            Some(lcn) => lcn.gradient(cpu, y, dy, dh, lcn_scratch),
            None => dh.iter_mut().zip(dy.iter()).for_each(|(dh, dy)| *dh += dy),
        }
    }

    /// `da` from `dh`; `dh` is used up.
    pub fn pooling_gradient(&self, cpu: Cpu, acts: &mut Activations) {
        let Activations { a, h, dh, da, row_scratch, .. } = acts;
        pool::pool_gradient(cpu, &self.shape, a, h, dh, da, row_scratch);
    }

    /// Adds to `dx` (the input's size) what `da` gives back through the encoder.
    pub fn filtering_gradient(&self, cpu: Cpu, acts: &Activations, dx: &mut [f32]) {
        let (maps, step) = (self.shape.filtered.channels, self.map_step(acts.taps.lanes()));
        self.for_each_position(&acts.taps, Weights::Encoder, |weights, base, first| {
            filter::scatter(cpu, &acts.taps, base, maps, weights, &acts.da[first..], step, dx);
        });
    }

    /// Gradients of both arrays of weights, applied block by block as they are made.
    ///
    /// On entry `da` holds the gradient by way of `h`, and `residual` that by way of the reconstruction; each
    /// position adds to `da` what comes through W2. Where `dx` is given, what W1 gives back is added to it. Both use the
    /// weights as they are before their update.
    pub fn learn(
        &self,
        cpu: Cpu,
        input: &[f32],
        acts: &mut Activations,
        mut dx: Option<&mut [f32]>,
        update: &impl WeightUpdate,
    ) {
        let Activations { taps, a, da, residual, pairs, gradient, .. } = acts;
        let (maps, padded, lanes) = (self.shape.filtered.channels, self.padded_maps(), taps.lanes());
        let (step, len) = (self.map_step(lanes), self.position_len());
        for (row, block) in self.blocks.iter().enumerate() {
            let mut block = block.write().expect("no replica panics");
            let Block { encoder, decoder, encoder_sums, decoder_sums } = &mut *block;
            for col in 0..self.shape.filtered.cols {
                let (base, first, here) =
                    (taps.base(row, col), self.first_response(row, col, lanes), col * len);
                let (encoder, decoder) = (&mut encoder[here..here + len], &mut decoder[here..here + len]);
                let remembered = |sums: &mut Buffer| if sums.is_empty() { 0..0 } else { here..here + len };

                filter::respond(cpu, taps, base, maps, decoder, residual, &mut da[first..], step);
                filter::weight_gradient(cpu, taps, base, maps, residual, &a[first..], step, pairs, gradient);
                let range = remembered(decoder_sums);
                update.decoder(padded, decoder, &mut decoder_sums[range], gradient);

                if let Some(dx) = dx.as_deref_mut() {
                    filter::scatter(cpu, taps, base, maps, encoder, &da[first..], step, dx);
                }
                filter::weight_gradient(cpu, taps, base, maps, input, &da[first..], step, pairs, gradient);
                let range = remembered(encoder_sums);
                update.encoder(padded, encoder, &mut encoder_sums[range], gradient);
            }
        }
    }

    /// Numbers in each array of weights.
    pub fn weight_count(&self) -> usize {
        self.shape.connections() as usize
    }

    /// True if every weight is a number.
    pub fn is_finite(&self) -> bool {
        self.blocks.iter().all(|block| {
            let block = block.read().expect("no replica panics");
            block.encoder.iter().chain(block.decoder.iter()).all(|weight| weight.is_finite())
        })
    }

    /// True if the optimiser's sums are kept.
    pub fn has_sums(&self) -> bool {
        self.blocks.iter().any(|block| !block.read().expect("no replica panics").encoder_sums.is_empty())
    }

    /// A copy of the weights in the layout of files: `[row, column, map, channel, dy, dx]`.
    pub fn weights(&self, which: Weights) -> Array<f32, Ix6> {
        let s = &self.shape;
        let side =
            (s.filtered.rows, s.filtered.cols, s.filtered.channels, s.input.channels, s.field, s.field);
        let mut out = Vec::with_capacity(self.weight_count());
        self.for_each_weight(which, |weight| out.push(weight));
        Array::from_shape_vec(side, out).expect("all positions were visited")
    }

    /// Calls `visit` with every weight in the order of [`Stage::weights`].
    pub fn for_each_weight(&self, which: Weights, mut visit: impl FnMut(f32)) {
        for block in &self.blocks {
            let block = block.read().expect("no replica panics");
            for weights in block.array(which).chunks_exact(self.position_len()) {
                for map in 0..self.shape.filtered.channels {
                    weights.iter().skip(map).step_by(self.padded_maps()).for_each(|&weight| visit(weight));
                }
            }
        }
    }

    /// Takes weights in the layout of [`Stage::weights`], read one after the other from `values`.
    pub fn set_weights(&self, which: Weights, mut values: impl Iterator<Item = f32>) {
        for block in &self.blocks {
            let mut block = block.write().expect("no replica panics");
            for weights in block.array_mut(which).chunks_exact_mut(self.position_len()) {
                for map in 0..self.shape.filtered.channels {
                    for weight in weights.iter_mut().skip(map).step_by(self.padded_maps()) {
                        *weight = values.next().expect("as many values as weights");
                    }
                }
            }
        }
    }
}
