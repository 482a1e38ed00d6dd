//! The weights of a stage, in blocks behind locks.
//!
//! A block holds the filters of positions side by side in a row, behind a reader-writer lock: replicas on threads read and update
//! them in place, asynchronously and without a data race. Nothing of the size of the weights exists beside them but the
//! sums of the optimiser.

use std::ops::Range;
use std::sync::{RwLockReadGuard, RwLockWriteGuard};

use ndarray::{Array, Array3, Ix6};
use ndarray_rand::rand_distr::{Distribution, StandardNormal};
use rand::Rng;
use rayon::prelude::*;

use super::Unit;
use super::shared::Shared;
use crate::config::Precision;
use crate::geometry::StageShape;
use crate::kernels::filter::{MAP_PAD, TOGETHER};
use crate::kernels::stored::{self, Stored};
use crate::kernels::{Cpu, Rows};
use crate::rng;

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

/// The weights of one position in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Number of the stage, from 0.
    pub stage: usize,
    /// Number of the block in it.
    pub block: usize,
    /// Number of the position in the block.
    pub position: usize,
    /// [`Weights::Encoder`] or [`Weights::Decoder`].
    pub which: Weights,
    /// The decoder is the encoder.
    pub tied: bool,
}

impl At {
    /// What bf16 weights are rounded by in the update `number`.
    pub fn key(&self, number: u64) -> u32 {
        let At { stage, block, position, which, .. } = *self;
        stored::key(&[number, stage as u64 + 1, block as u64, which as u64, position as u64])
    }
}

/// Turns the gradient of one position into new weights.
pub trait WeightUpdate: Sync {
    /// Arrays are `[tap, map]` with `maps` (padded by zeros) filters; the gradient may be used as scratch.
    fn update(&self, at: At, maps: usize, weights: &mut [f32], sums: &mut [f32], gradient: &mut [f32]);
    /// A number that is another for each update of a run: what bf16 weights are rounded by.
    fn number(&self) -> u64 {
        0
    }
}

/// The filters that a block holds: all those of positions side by side, or some of those of one position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Row of the positions.
    pub row: usize,
    /// Their columns.
    pub cols: Range<usize>,
    /// Their maps.
    pub maps: Range<usize>,
}

/// Weights that are read and updated together, each array `[column, tap, map]`, taps `(dy, dx, channel)`, with maps padded by
/// zeros to [`MAP_PAD`].
pub struct Arrays {
    /// W1.
    pub encoder: Stored,
    /// W2; empty if it is tied to W1.
    pub decoder: Stored,
    /// What the optimiser remembers of each encoder weight; empty if nothing.
    pub encoder_sums: Stored,
    /// What the optimiser remembers of each decoder weight; empty if nothing.
    pub decoder_sums: Stored,
}

impl Arrays {
    /// One of them.
    pub fn get(&self, which: Weights) -> &Stored {
        match which {
            Weights::Encoder => &self.encoder,
            Weights::Decoder if self.decoder.is_empty() => &self.encoder,
            Weights::Decoder => &self.decoder,
            Weights::EncoderSums => &self.encoder_sums,
            Weights::DecoderSums => &self.decoder_sums,
        }
    }

    /// Lets `work` change the weights of a position and what the optimiser remembers of them, arrays `[tap, map]` of `len`
    /// numbers; bf16 are rounded by chance, as `key` has it.
    pub fn edit(
        &mut self,
        cpu: Cpu,
        (which, position): (Weights, usize),
        len: usize,
        key: u32,
        work: impl FnOnce(&mut [f32], &mut [f32]),
    ) {
        let Arrays { encoder, decoder, encoder_sums, decoder_sums } = self;
        let (weights, sums) = match which {
            Weights::Encoder => (encoder, encoder_sums),
            _ => (decoder, decoder_sums),
        };
        let place = position * len..(position + 1) * len;
        let remembered = if sums.is_empty() { 0..0 } else { place.clone() };
        weights.edit(cpu, place, key, |weights| {
            sums.edit(cpu, remembered, !key, |sums| work(weights, sums));
        });
    }

    /// Appends the weights to `bytes`, as they are stored, and after them, if so wanted, what the optimiser remembers.
    pub fn write_to(&self, with_sums: bool, bytes: &mut Vec<u8>) {
        [&self.encoder, &self.decoder].into_iter().for_each(|array| array.write_to(bytes));
        if with_sums {
            [&self.encoder_sums, &self.decoder_sums].into_iter().for_each(|array| array.write_to(bytes));
        }
    }

    /// Takes what [`write_to`](Self::write_to) wrote of arrays of the same sizes; none if `bytes` is something else.
    pub fn read_from(&mut self, with_sums: bool, bytes: &[u8]) -> Option<()> {
        let Arrays { encoder, decoder, encoder_sums, decoder_sums } = self;
        let mut rest = decoder.read_from(encoder.read_from(bytes)?)?;
        if with_sums {
            rest = decoder_sums.read_from(encoder_sums.read_from(rest)?)?;
        }
        rest.is_empty().then_some(())
    }

    /// Makes what the optimiser remembers 0.
    fn forget(&mut self) {
        for sums in [&mut self.encoder_sums, &mut self.decoder_sums] {
            (0..sums.len()).for_each(|at| sums.set(at, 0.0));
        }
    }

    fn get_mut(&mut self, which: Weights) -> &mut Stored {
        match which {
            Weights::Encoder => &mut self.encoder,
            Weights::Decoder => &mut self.decoder,
            Weights::EncoderSums => &mut self.encoder_sums,
            Weights::DecoderSums => &mut self.decoder_sums,
        }
    }
}

/// Some of a stage's filters and their lock.
pub struct Block {
    /// Which filters.
    pub place: Place,
    arrays: Shared<Arrays>,
}

impl Block {
    /// To read them.
    pub fn read(&self) -> RwLockReadGuard<'_, Arrays> {
        self.arrays.read()
    }

    /// To change them.
    pub fn write(&self) -> RwLockWriteGuard<'_, Arrays> {
        self.arrays.write()
    }

    /// Its maps, and as many as each tap has room for.
    pub fn maps(&self) -> (usize, usize) {
        (self.place.maps.len(), self.place.maps.len().next_multiple_of(MAP_PAD))
    }
}

/// All blocks of a stage, in the order of its units: rows, columns, maps.
pub struct Blocks {
    shape: StageShape,
    precision: Precision,
    tied: bool,
    blocks: Vec<Block>,
    /// Blocks of each row of positions.
    per_row: usize,
}

/// Rows that need not be divided: there are enough of them for the threads of any machine that this is for.
const MANY_ROWS: usize = 64;

/// Blocks that a stage should have, if need be of less than the positions that kernels work on together.
const ENOUGH_BLOCKS: usize = 16;

/// Columns and maps of each block.
fn division(shape: &StageShape) -> (usize, usize) {
    let (s, positions) = (&shape.filtered, shape.positions());
    if s.rows >= MANY_ROWS {
        (s.cols, s.channels)
    } else if s.rows * s.cols.div_ceil(TOGETHER) >= ENOUGH_BLOCKS {
        (TOGETHER, s.channels)
    } else {
        let groups = ENOUGH_BLOCKS.div_ceil(positions);
        (1, s.channels.div_ceil(groups).next_multiple_of(MAP_PAD))
    }
}

impl Blocks {
    /// All weights 0; `tied` is a decoder that is the encoder, `sums` allocates what the optimiser remembers.
    pub fn zeros(shape: StageShape, precision: Precision, tied: bool, sums: bool) -> Blocks {
        let (cols, maps) = division(&shape);
        let (s, taps) = (shape.filtered, shape.taps());
        let parts = |all: usize, of: usize| (0..all).step_by(of).map(move |at| at..(at + of).min(all));
        let places = (0..s.rows).flat_map(|row| {
            let columns = parts(s.cols, cols);
            columns.flat_map(move |cols| {
                parts(s.channels, maps).map(move |maps| Place { row, cols: cols.clone(), maps })
            })
        });
        let places: Vec<Place> = places.collect();
        let size = |place: &Place| place.cols.len() * taps * place.maps.len().next_multiple_of(MAP_PAD);
        // One array of all blocks after the other: a processor that works on a block finds what it needs in few pages.
        let mut arrays = [true, !tied, sums, sums && !tied].map(|needed| {
            let lens = places.iter().map(|place| if needed { size(place) } else { 0 });
            Stored::zeros_together(lens, precision).into_iter()
        });
        let block = |place: Place| {
            let [encoder, decoder, encoder_sums, decoder_sums] =
                arrays.each_mut().map(|array| array.next().expect("one for each block"));
            Block { place, arrays: Shared::new(Arrays { encoder, decoder, encoder_sums, decoder_sums }) }
        };
        let per_row = s.cols.div_ceil(cols) * s.channels.div_ceil(maps);
        Blocks { shape, precision, tied, blocks: places.into_iter().map(block).collect(), per_row }
    }

    /// Encoder entries from N(0, 1/taps), decoder filters the same directions with norm 1; drawn from the streams
    /// `weights <number>` of `seed`. What the optimiser remembers becomes 0.
    pub fn draw(&self, number: usize, seed: u64) {
        let (maps, taps) = (self.shape.filtered.channels, self.shape.taps());
        let (scale, per_row) = ((taps as f32).powf(-0.5), self.per_row);
        self.blocks.par_chunks(per_row).enumerate().for_each(|(row, blocks)| {
            let mut rng = rng::stream(seed, &format!("weights {number}"), row as u64);
            let (mut filters, mut norms) = (vec![0f32; taps * maps], vec![0f32; maps]);
            for col in 0..self.shape.filtered.cols {
                norms.fill(0.0);
                for weights in filters.chunks_exact_mut(maps) {
                    for (weight, norm) in weights.iter_mut().zip(&mut norms) {
                        let draw: f32 = StandardNormal.sample(&mut rng);
                        *weight = scale * draw;
                        *norm += *weight * *weight;
                    }
                }
                for block in blocks.iter().filter(|block| block.place.cols.contains(&col)) {
                    let ((_, padded), Place { cols, maps: held, .. }) = (block.maps(), block.place.clone());
                    let mut arrays = block.write();
                    if arrays.encoder.is_empty() {
                        continue;
                    }
                    if col == cols.start {
                        arrays.forget();
                    }
                    for (tap, weights) in filters.chunks_exact(maps).enumerate() {
                        let first = ((col - cols.start) * taps + tap) * padded;
                        for map in held.clone() {
                            let at = first + map - held.start;
                            arrays.encoder.set(at, weights[map]);
                            if !arrays.decoder.is_empty() {
                                arrays.decoder.set(at, weights[map] / norms[map].sqrt());
                            }
                        }
                    }
                }
            }
        });
    }

    /// All of them.
    pub fn all(&self) -> &[Block] {
        &self.blocks
    }

    /// Those of a row of positions.
    pub fn of_row(&self, row: usize) -> &[Block] {
        &self.blocks[row * self.per_row..][..self.per_row]
    }

    /// The numbers of those of some rows of positions.
    pub fn of_rows(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.per_row..rows.end * self.per_row
    }

    /// Where the units of a block begin in maps `[row, column, map]`; up to the next block, they are all its.
    pub fn first_unit(&self, number: usize) -> usize {
        let Place { row, cols, maps } = &self.blocks[number].place;
        self.shape.filtered.place(maps.start, *row, cols.start)
    }

    /// How they are stored.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// True if the decoder is the encoder.
    pub fn is_tied(&self) -> bool {
        self.tied
    }

    /// The arrays of weights that there are, with their names in files.
    pub fn arrays(&self) -> &'static [(&'static str, Weights)] {
        let both = &[("W1", Weights::Encoder), ("W2", Weights::Decoder)];
        if self.tied { &both[..1] } else { both }
    }

    /// The arrays of what the optimiser remembers, if it does, with the names in files of the weights.
    pub fn sum_arrays(&self) -> &'static [(&'static str, Weights)] {
        let both = &[("W1", Weights::EncoderSums), ("W2", Weights::DecoderSums)];
        if self.tied { &both[..1] } else { both }
    }

    /// Numbers in each array of weights.
    pub fn count(&self) -> usize {
        self.shape.connections() as usize
    }

    /// True if every weight is a number.
    pub fn is_finite(&self) -> bool {
        self.blocks.par_iter().all(|block| {
            let arrays = block.read();
            arrays.encoder.is_finite() && arrays.decoder.is_finite()
        })
    }

    /// True if the optimiser's sums are kept.
    pub fn has_sums(&self) -> bool {
        self.blocks.iter().any(|block| !block.read().encoder_sums.is_empty())
    }

    /// Takes the weights, not what the optimiser remembers, of blocks of the same shape: each as it is at some moment.
    pub fn copy_from(&self, others: &Blocks, rows: Rows) {
        rows.each_number(self.blocks.len(), |number| {
            let (mut to, from) = (self.blocks[number].write(), others.blocks[number].read());
            to.encoder.copy_from(&from.encoder);
            to.decoder.copy_from(&from.decoder);
        });
    }

    /// A copy of the encoder's filters at the positions from `(row, col)` of this stage on, as many as `shape` has; it has no decoder
    /// and nothing for an optimiser.
    pub fn part(&self, shape: StageShape, (row, col): (usize, usize)) -> Blocks {
        let part = Blocks::zeros(shape, self.precision, true, false);
        let taps = shape.taps();
        part.blocks.par_iter().for_each(|block| {
            let mut arrays = block.write();
            let (Place { cols, maps, .. }, (_, padded)) = (&block.place, block.maps());
            for col_here in cols.clone() {
                let source_col = col + col_here;
                let holds = |source: &&Block| source.place.cols.contains(&source_col);
                for source in self.of_row(row + block.place.row).iter().filter(holds) {
                    let (from, (_, source_padded)) = (source.read(), source.maps());
                    let first = maps.start.max(source.place.maps.start);
                    let last = maps.end.min(source.place.maps.end);
                    for tap in 0..taps {
                        let to_tap = ((col_here - cols.start) * taps + tap) * padded;
                        let from_tap = ((source_col - source.place.cols.start) * taps + tap) * source_padded;
                        for map in first..last {
                            let weight = from.encoder.get(from_tap + map - source.place.maps.start);
                            arrays.encoder.set(to_tap + map - maps.start, weight);
                        }
                    }
                }
            }
        });
        part
    }

    /// Draws the encoder's filter of a unit, numbered in the order `[row, column, map]`, anew, as [`draw`](Self::draw) does, and
    /// its decoder's with it; what the optimiser remembers of both becomes 0.
    pub fn redraw(&self, unit: usize, rng: &mut impl Rng) {
        let number =
            (0..self.blocks.len()).rev().find(|&n| self.first_unit(n) <= unit).expect("a unit of this stage");
        let (block, taps) = (&self.blocks[number], self.shape.taps());
        let (maps, padded) = block.maps();
        let (col, map) = ((unit - self.first_unit(number)) / maps, (unit - self.first_unit(number)) % maps);
        let draw: Vec<f32> = StandardNormal.sample_iter(rng).take(taps).collect();
        let (scale, norm) = ((taps as f32).powf(-0.5), draw.iter().map(|x| x * x).sum::<f32>().sqrt());
        let arrays = &mut *block.write();
        if arrays.encoder.is_empty() {
            return;
        }
        for (tap, value) in draw.into_iter().enumerate() {
            let at = (col * taps + tap) * padded + map;
            arrays.encoder.set(at, scale * value);
            let others = [&mut arrays.decoder, &mut arrays.encoder_sums, &mut arrays.decoder_sums];
            for (array, value) in others.into_iter().zip([value / norm, 0.0, 0.0]) {
                if !array.is_empty() {
                    array.set(at, value);
                }
            }
        }
    }

    /// A copy of the weights in the layout of files: `[row, column, map, channel, dy, dx]`.
    pub fn weights(&self, which: Weights) -> Array<f32, Ix6> {
        let s = &self.shape;
        let side =
            (s.filtered.rows, s.filtered.cols, s.filtered.channels, s.input.channels, s.field, s.field);
        let mut out = Vec::with_capacity(self.count());
        (0..self.blocks.len())
            .for_each(|block| self.for_each_weight(which, block, |weight| out.push(weight)));
        Array::from_shape_vec(side, out).expect("all positions were visited")
    }

    /// The filter of one simple unit, `[channel, dy, dx]`.
    pub fn filter(&self, which: Weights, unit: Unit) -> Array3<f32> {
        let holds =
            |block: &&Block| block.place.cols.contains(&unit.col) && block.place.maps.contains(&unit.map);
        let block = self.of_row(unit.row).iter().find(holds).expect("a unit of this stage");
        let (channels, side, (_, padded)) = (self.shape.input.channels, self.shape.field, block.maps());
        let first = (unit.col - block.place.cols.start) * self.shape.taps();
        let arrays = block.read();
        Array3::from_shape_fn((channels, side, side), |(channel, dy, dx)| {
            let tap = (dy * side + dx) * channels + channel;
            arrays.get(which).get((first + tap) * padded + unit.map - block.place.maps.start)
        })
    }

    /// Where the weights of blocks side by side lie among all of an array, in the order of [`Blocks::weights`].
    pub fn in_files(&self, blocks: Range<usize>) -> Range<usize> {
        let per_unit = self.shape.taps();
        let start = |number| {
            if number < self.blocks.len() { self.first_unit(number) * per_unit } else { self.count() }
        };
        start(blocks.start)..start(blocks.end)
    }

    /// Calls `visit` with every weight of a block, in the order of [`Blocks::weights`].
    pub fn for_each_weight(&self, which: Weights, block: usize, mut visit: impl FnMut(f32)) {
        let block = &self.blocks[block];
        let arrays = block.read();
        let array = arrays.get(which);
        self.places_in_files(block, |place| visit(array.get(place)));
    }

    /// Takes the weights of a block in the order of [`Blocks::weights`].
    pub fn set_block(&self, which: Weights, block: usize, mut values: impl Iterator<Item = f32>) {
        let block = &self.blocks[block];
        let mut arrays = block.write();
        let array = arrays.get_mut(which);
        self.places_in_files(block, |place| {
            array.set(place, values.next().expect("as many values as weights"));
        });
    }

    /// Takes the weights of a row of positions in the order of [`Blocks::weights`].
    pub fn set_weights(&self, which: Weights, row: usize, mut values: impl Iterator<Item = f32>) {
        let blocks = row * self.per_row..(row + 1) * self.per_row;
        blocks.for_each(|block| self.set_block(which, block, &mut values));
    }

    /// Keeps only some blocks; the others hold nothing any more. Memory of theirs that was used goes back to the system with that of the rest.
    pub fn keep_only(&self, held: Range<usize>) {
        let others = self.blocks.iter().enumerate().filter(|(number, _)| !held.contains(number));
        for (_, block) in others {
            let arrays = &mut *block.write();
            let all = [
                &mut arrays.encoder,
                &mut arrays.decoder,
                &mut arrays.encoder_sums,
                &mut arrays.decoder_sums,
            ];
            all.into_iter().for_each(|array| *array = Stored::zeros(0, self.precision));
        }
    }

    /// Where the weights of a block lie, in the order of files.
    fn places_in_files(&self, block: &Block, mut visit: impl FnMut(usize)) {
        let (side, channels, (maps, padded)) = (self.shape.field, self.shape.input.channels, block.maps());
        for col in 0..block.place.cols.len() {
            for map in 0..maps {
                for channel in 0..channels {
                    for tap in 0..side * side {
                        visit((col * self.shape.taps() + tap * channels + channel) * padded + map);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{MapShape, Windows};

    fn shape(maps: usize, field: usize, input: usize) -> StageShape {
        let windows = Windows { maps, field, stride: 1, pool: 1, pool_stride: 1, lcn: 0 };
        StageShape::new(1, MapShape { channels: 2, rows: input, cols: input }, windows).unwrap()
    }

    #[test]
    fn blocks_tile_the_units_in_order_and_there_are_enough_of_them() {
        for (shape, least) in [
            (shape(4, 2, 70), 64),  // a row each
            (shape(10, 3, 15), 16), // a few positions each
            (shape(5, 3, 7), 16),   // one position each
            (shape(65, 3, 4), 8),   // some maps of one of four positions each: of 17 maps, so of 24
            (shape(200, 3, 3), 13), // some maps of the only position
            (shape(8, 3, 3), 1),    // nothing to divide
        ] {
            let blocks = Blocks::zeros(shape, Precision::F32, false, false);
            assert!(blocks.all().len() >= least, "{} blocks for {shape:?}", blocks.all().len());
            let mut units = 0;
            for (number, block) in blocks.all().iter().enumerate() {
                assert_eq!(blocks.first_unit(number), units, "{:?} of {shape:?}", block.place);
                units += block.place.cols.len() * block.place.maps.len();
            }
            assert_eq!(units, shape.filtered.len());
        }
    }

    #[test]
    fn files_have_the_same_order_however_the_weights_are_divided() {
        for shape in [shape(4, 2, 70), shape(10, 3, 15), shape(65, 3, 4)] {
            for precision in [Precision::F32, Precision::Bf16] {
                let blocks = Blocks::zeros(shape, precision, false, true);
                let value = |at: usize| (at % 251) as f32;
                let row_len = blocks.count() / shape.filtered.rows;
                for row in 0..shape.filtered.rows {
                    let values = (0..row_len).map(|at| value(row * row_len + at));
                    blocks.set_weights(Weights::DecoderSums, row, values);
                }
                let read = blocks.weights(Weights::DecoderSums);
                assert!(read.iter().enumerate().all(|(at, &weight)| weight == value(at)));
                assert!(blocks.weights(Weights::Encoder).iter().all(|&weight| weight == 0.0));
            }
        }
    }
}
