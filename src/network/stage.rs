//! One stage: its weights, and what flows through it in both directions (paper §3).
//!
//! Weights live in blocks, a row of positions each, behind a reader-writer lock: replicas on threads read and update
//! them in place, asynchronously and without a data race. Nothing of the size of the weights exists beside them but
//! the sums of the optimiser.

use std::ops::Range;
use std::sync::RwLock;

use ndarray::{Array, Ix6};
use ndarray_rand::rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use crate::config::{self, LcnBorder, Reconstruction};
use crate::geometry::StageShape;
use crate::kernels::filter::{self, Field, MAP_PAD, TOGETHER};
use crate::kernels::lcn::{Lcn, LcnScratch};
use crate::kernels::{Buffer, Cpu, Rows, pool, with_scratch};
use crate::rng;

/// Weights of one row of positions, each array `[column, tap, map]`, taps `(dy, dx, channel)`, with maps padded by zeros to [`MAP_PAD`].
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

/// A few positions side by side in a row.
struct Few {
    /// Where their first field begins in the maps, from the first of the row.
    start: usize,
    /// Their units in a row of maps.
    units: Range<usize>,
}

/// Rows of the input that a thread fills at once: few enough to stay in its cache, enough to make use of each position's
/// responses.
const ROWS_AT_ONCE: usize = 8;

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
/// Maps are `[row, column, channel, lane]`.
pub struct Activations {
    /// How the rows of maps are worked on.
    pub rows: Rows,
    field: Field,
    lcn: Option<Lcn>,
    lcn_scratch: LcnScratch,
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
            rows: Rows::InTurn,
            field: Field::new(s, lanes),
            lcn: (s.lcn > 0).then(|| lcn(s.lcn)),
            lcn_scratch: LcnScratch::new(s.pooled, lanes),
            a: maps(s.filtered),
            h: maps(s.pooled),
            y: maps(s.pooled),
            residual: maps(s.input),
            da: maps(s.filtered),
            dh: maps(s.pooled),
            dy: maps(s.pooled),
        }
    }

    /// What the receptive fields of a row of positions see of the input.
    fn seen<'a>(&self, field: Field, row: usize, input: &'a [f32]) -> &'a [f32] {
        &input[row * self.shape.stride * field.pitch..]
    }

    /// Adds to some rows of maps of the input's size, from row `first` on, what all units give back to them.
    ///
    /// Every number of `out` gets its terms in the same order, however the rows are divided.
    fn give_back(
        &self,
        cpu: Cpu,
        field: Field,
        which: Weights,
        response: &[f32],
        first: usize,
        out: &mut [f32],
    ) {
        let (s, lanes, last) = (&self.shape, field.lanes, first + out.len() / field.pitch);
        let (maps, row_len) = (s.filtered.channels, s.filtered.row_len() * lanes);
        for (row, block) in self.blocks.iter().enumerate() {
            let top = row * s.stride;
            let rows = top.max(first)..(top + s.field).min(last);
            if rows.is_empty() {
                continue;
            }
            let block = block.read().expect("no replica panics");
            let (weights, response) = (block.array(which), &response[row * row_len..][..row_len]);
            let out = &mut out[(rows.start - first) * field.pitch..];
            filter::scatter(cpu, field, rows.start - top..rows.end - top, maps, weights, response, out);
        }
    }

    /// Filtering and pooling: `a` and `h` from the stage's input.
    pub fn encode(&self, cpu: Cpu, input: &[f32], acts: &mut Activations) {
        self.filter(cpu, input, acts);
        self.pool(cpu, acts);
    }

    /// Simple units: `a` from the stage's input.
    pub fn filter(&self, cpu: Cpu, input: &[f32], acts: &mut Activations) {
        let Activations { rows, field, a, .. } = acts;
        rows.each(a, self.shape.filtered.row_len() * field.lanes, |row, a| {
            let block = self.blocks[row].read().expect("no replica panics");
            a.fill(0.0);
            let (maps, input) = (self.shape.filtered.channels, self.seen(*field, row, input));
            filter::respond(cpu, *field, maps, &block.encoder, input, a);
        });
    }

    /// Complex units: `h` from `a`.
    pub fn pool(&self, cpu: Cpu, acts: &mut Activations) {
        let Activations { rows, field, a, h, .. } = acts;
        let s = &self.shape;
        rows.each(h, s.pooled.row_len() * field.lanes, |row, h| {
            pool::pool_row(cpu, s, self.settings.epsilon as f32, a, row, h);
        });
    }

    /// Local contrast normalisation: `y` from `h`; lanes from `pictures` on are no pictures and become 0.
    pub fn normalise(&self, cpu: Cpu, acts: &mut Activations, pictures: usize) {
        let Activations { rows, lcn, h, y, lcn_scratch, field, .. } = acts;
        match lcn {
            Some(lcn) => lcn.normalise(cpu, *rows, h, y, lcn_scratch),
            None => y.copy_from_slice(h),
        }
        if pictures < field.lanes {
            y.chunks_exact_mut(field.lanes).for_each(|lanes| lanes[pictures..].fill(0.0));
        }
    }

    /// Decoding: `residual` = reconstruction - input.
    pub fn decode(&self, cpu: Cpu, input: &[f32], acts: &mut Activations) {
        let Activations { rows, field, a, residual, .. } = acts;
        rows.each(residual, ROWS_AT_ONCE * field.pitch, |number, residual| {
            let first = number * ROWS_AT_ONCE;
            residual.fill(0.0);
            self.give_back(cpu, *field, Weights::Decoder, a, first, residual);
            self.divide_by_coverage(first, residual, field.lanes);
            residual.iter_mut().zip(&input[first * field.pitch..]).for_each(|(r, x)| *r -= x);
        });
    }

    /// Divides rows of maps of the input's size, from row `first` on, by the number of receptive fields at each place, if
    /// the settings say so.
    fn divide_by_coverage(&self, first: usize, maps: &mut [f32], lanes: usize) {
        let Some(inverse) = &self.inverse_coverage else { return };
        let scales = &inverse[first * self.shape.input.cols..];
        for (place, scale) in maps.chunks_exact_mut(self.shape.input.channels * lanes).zip(scales) {
            place.iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// Turns `residual` into the gradient with respect to the reconstruction's terms, of the mean over `pictures`; where
    /// `dx` is given, it gets that with respect to the input as the target.
    pub fn residual_gradient(&self, acts: &mut Activations, pictures: usize, dx: Option<&mut [f32]>) {
        let Activations { rows, field, residual, .. } = acts;
        let (scale, pitch) = (2.0 / pictures as f32, field.pitch);
        if let Some(dx) = dx {
            rows.each(dx, pitch, |row, dx| {
                dx.iter_mut().zip(&residual[row * pitch..]).for_each(|(dx, r)| *dx = -scale * r);
            });
        }
        rows.each(residual, pitch, |row, residual| {
            residual.iter_mut().for_each(|r| *r *= scale);
            self.divide_by_coverage(row, residual, field.lanes);
        });
    }

    /// Adds to `dh` what `dy` makes of it; `dy` is used up.
    pub fn normalisation_gradient(&self, cpu: Cpu, acts: &mut Activations) {
        let Activations { rows, lcn, y, dy, dh, lcn_scratch, .. } = acts;
        match lcn {
            Some(lcn) => lcn.gradient(cpu, *rows, y, dy, dh, lcn_scratch),
            None => dh.iter_mut().zip(dy.iter()).for_each(|(dh, dy)| *dh += dy),
        }
    }

    /// `da` from `dh`; `dh` is used up.
    pub fn pooling_gradient(&self, cpu: Cpu, acts: &mut Activations) {
        let Activations { rows, field, a, h, dh, da, .. } = acts;
        let (s, pooled) = (&self.shape, self.shape.pooled.row_len() * field.lanes);
        rows.each(dh, pooled, |row, dh| {
            dh.iter_mut().zip(&h[row * pooled..]).for_each(|(dh, &h)| *dh /= h);
        });
        let filtered = s.filtered.row_len() * field.lanes;
        rows.each(da, filtered, |row, da| {
            pool::pool_gradient_row(cpu, s, dh, row, &a[row * filtered..][..filtered], da);
        });
    }

    /// Adds to `dx` (the input's size) what `da` gives back through the encoder.
    pub fn filtering_gradient(&self, cpu: Cpu, acts: &Activations, dx: &mut [f32]) {
        let Activations { rows, field, da, .. } = acts;
        rows.each(dx, ROWS_AT_ONCE * field.pitch, |number, dx| {
            self.give_back(cpu, *field, Weights::Encoder, da, number * ROWS_AT_ONCE, dx);
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
        dx: Option<&mut [f32]>,
        update: &impl WeightUpdate,
    ) {
        let (maps, row_len) =
            (self.shape.filtered.channels, self.shape.filtered.row_len() * acts.field.lanes);
        let Activations { rows, field, a, da, residual, .. } = acts;
        let field = *field;
        rows.each(da, row_len, |row, da| {
            let (a, residual) = (&a[row * row_len..][..row_len], self.seen(field, row, residual));
            let mut block = self.blocks[row].write().expect("no replica panics");
            let Block { decoder, decoder_sums, .. } = &mut *block;
            self.by_few(field, decoder, decoder_sums, da.len(), |few, weights, sums, gradient| {
                let (a, da, residual) = (&a[few.units.clone()], &mut da[few.units], &residual[few.start..]);
                filter::respond_and_weight_gradient(cpu, field, maps, weights, residual, da, a, gradient);
                self.update_each(weights, sums, gradient, |maps, w, sums, g| {
                    update.decoder(maps, w, sums, g)
                });
            });
        });
        if let Some(dx) = dx {
            self.filtering_gradient(cpu, acts, dx);
        }
        let Activations { rows, da, .. } = acts;
        rows.each(da, row_len, |row, da| {
            let input = self.seen(field, row, input);
            let mut block = self.blocks[row].write().expect("no replica panics");
            let Block { encoder, encoder_sums, .. } = &mut *block;
            self.by_few(field, encoder, encoder_sums, da.len(), |few, weights, sums, gradient| {
                filter::weight_gradient(cpu, field, maps, &input[few.start..], &da[few.units], gradient);
                self.update_each(weights, sums, gradient, |maps, w, sums, g| {
                    update.encoder(maps, w, sums, g)
                });
            });
        });
    }

    /// Calls `work` with some positions of a row at a time, their weights and sums, and room for their gradient.
    fn by_few(
        &self,
        field: Field,
        weights: &mut [f32],
        sums: &mut [f32],
        units: usize,
        mut work: impl FnMut(Few, &mut [f32], &mut [f32], &mut [f32]),
    ) {
        let (len, cell) = (self.position_len(), units / self.shape.filtered.cols);
        with_scratch([TOGETHER.min(self.shape.filtered.cols) * len], |[gradient]| {
            for first in (0..self.shape.filtered.cols).step_by(TOGETHER) {
                let last = (first + TOGETHER).min(self.shape.filtered.cols);
                let few = Few { start: first * field.step * field.lanes, units: first * cell..last * cell };
                let sums = if sums.is_empty() { &mut [] } else { &mut sums[first * len..last * len] };
                work(few, &mut weights[first * len..last * len], sums, &mut gradient[..(last - first) * len]);
            }
        });
    }

    /// Calls `update` with the number of maps, the weights, the sums and the gradient of each position.
    fn update_each(
        &self,
        weights: &mut [f32],
        sums: &mut [f32],
        gradient: &mut [f32],
        update: impl Fn(usize, &mut [f32], &mut [f32], &mut [f32]),
    ) {
        let (len, maps) = (self.position_len(), self.padded_maps());
        let positions = weights.chunks_exact_mut(len).zip(gradient.chunks_exact_mut(len));
        for (position, (weights, gradient)) in positions.enumerate() {
            let sums = if sums.is_empty() { &mut [] } else { &mut sums[position * len..][..len] };
            update(maps, weights, sums, gradient);
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
        (0..s.filtered.rows).for_each(|row| self.for_each_weight(which, row, |weight| out.push(weight)));
        Array::from_shape_vec(side, out).expect("all positions were visited")
    }

    /// Calls `visit` with every weight of a row of positions, in the order of [`Stage::weights`].
    pub fn for_each_weight(&self, which: Weights, row: usize, mut visit: impl FnMut(f32)) {
        let block = self.blocks[row].read().expect("no replica panics");
        for weights in block.array(which).chunks_exact(self.position_len()) {
            self.places_in_files(|place| visit(weights[place]));
        }
    }

    /// Takes the weights of a row of positions in the order of [`Stage::weights`].
    pub fn set_weights(&self, which: Weights, row: usize, mut values: impl Iterator<Item = f32>) {
        let mut block = self.blocks[row].write().expect("no replica panics");
        for weights in block.array_mut(which).chunks_exact_mut(self.position_len()) {
            self.places_in_files(|place| {
                weights[place] = values.next().expect("as many values as weights");
            });
        }
    }

    /// Where the weights of a position lie, in the order of files: `[map, channel, dy, dx]`.
    fn places_in_files(&self, mut visit: impl FnMut(usize)) {
        let (side, channels, padded) = (self.shape.field, self.shape.input.channels, self.padded_maps());
        for map in 0..self.shape.filtered.channels {
            for channel in 0..channels {
                for tap in 0..side * side {
                    visit((tap * channels + channel) * padded + map);
                }
            }
        }
    }
}
