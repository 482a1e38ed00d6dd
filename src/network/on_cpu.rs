//! The arithmetic of a stage on the CPU, rows of maps or blocks of weights shared out among threads.

use std::ops::Range;

use super::stage::{Activations, Stage, StageKernels};
use super::strip::rows_of;
use super::weights::{At, Place, WeightUpdate, Weights};
use crate::kernels::filter::{self, Field, Soon, TOGETHER};
use crate::kernels::lcn::Within;
use crate::kernels::stored::Slice;
use crate::kernels::{Cpu, pool, with_scratch};

/// Rows of the input that a thread fills at once: few enough to stay in its cache, enough to make use of each position's
/// responses.
const ROWS_AT_ONCE: usize = 8;

impl StageKernels for Cpu {
    fn filter(&self, stage: &Stage, input: &[f32], acts: &mut Activations) {
        let Activations { rows, field, a, .. } = acts;
        let blocks = stage.blocks.all();
        let start = |number| stage.blocks.first_unit(number) * field.lanes;
        let made = rows_of(a, &stage.strip.filtered, stage.shape.filtered.row_len() * field.lanes);
        rows.each_of(made, stage.held(), &start, &|number, a| {
            let block = &blocks[number];
            let (arrays, input) = (block.read(), seen(stage, *field, &block.place, input));
            a.fill(0.0);
            filter::respond(*self, *field, block.maps().0, arrays.encoder.all(), input, a);
        });
    }

    fn pool(&self, stage: &Stage, acts: &mut Activations) {
        let Activations { rows, field, a, h, .. } = acts;
        let s = &stage.shape;
        stage.strip.fill_windows(a, s.filtered.row_len() * field.lanes);
        rows.each_in(h, s.pooled.row_len() * field.lanes, &stage.strip.pooled, |row, h| {
            pool::pool_row(*self, s, stage.settings.epsilon as f32, a, row, h);
        });
    }

    fn normalise(&self, stage: &Stage, acts: &mut Activations, pictures: usize) {
        let Activations { rows, lcn, h, y, lcn_scratch, field, .. } = acts;
        let (made, row) = (&stage.strip.pooled, stage.shape.pooled.row_len() * field.lanes);
        match lcn {
            Some(lcn) => {
                let fill = |map: &mut [f32], len| stage.strip.fill_contrast(map, len);
                let within = Within { rows: *rows, made, fill: &fill };
                lcn.normalise(*self, &within, h, y, lcn_scratch);
            }
            None => rows_of(y, made, row).copy_from_slice(rows_of(h, made, row)),
        }
        if pictures < field.lanes {
            let y = rows_of(y, made, row);
            y.chunks_exact_mut(field.lanes).for_each(|lanes| lanes[pictures..].fill(0.0));
        }
    }

    fn decode(&self, stage: &Stage, input: &[f32], acts: &mut Activations) {
        let Activations { rows, field, a, residual, .. } = acts;
        let (strip, reach, pitch) = (&stage.strip, stage.strip.reach(), field.pitch);
        let at_once = rows.at_once(reach.len(), ROWS_AT_ONCE);
        let compare = |first: usize, residual: &mut [f32]| {
            divide_by_coverage(stage, first, residual, field.lanes);
            residual.iter_mut().zip(&input[first * pitch..]).for_each(|(r, x)| *r -= x);
        };
        rows.each(rows_of(residual, &reach, pitch), at_once * pitch, |number, residual| {
            let first = reach.start + number * at_once;
            residual.fill(0.0);
            give_back(*self, stage, *field, Weights::Decoder, a, first, residual);
            if strip.is_whole() {
                compare(first, residual);
            }
        });
        if !strip.is_whole() {
            strip.add_fields(residual, pitch);
            rows.each_in(residual, pitch, &strip.input, compare);
        }
    }

    fn residual_gradient(
        &self,
        stage: &Stage,
        acts: &mut Activations,
        pictures: usize,
        dx: Option<&mut [f32]>,
    ) {
        let Activations { rows, field, residual, .. } = acts;
        let (scale, pitch, made) = (2.0 / pictures as f32, field.pitch, &stage.strip.input);
        if let Some(dx) = dx {
            rows.each_in(dx, pitch, made, |row, dx| {
                dx.iter_mut().zip(&residual[row * pitch..]).for_each(|(dx, r)| *dx = -scale * r);
            });
        }
        rows.each_in(residual, pitch, made, |row, residual| {
            residual.iter_mut().for_each(|r| *r *= scale);
            divide_by_coverage(stage, row, residual, field.lanes);
        });
        stage.strip.fill_fields(residual, pitch);
    }

    fn normalisation_gradient(&self, stage: &Stage, acts: &mut Activations) {
        let Activations { rows, lcn, field, y, dy, dh, lcn_scratch, .. } = acts;
        let (made, row) = (&stage.strip.pooled, stage.shape.pooled.row_len() * field.lanes);
        match lcn {
            Some(lcn) => {
                let fill = |map: &mut [f32], len| stage.strip.fill_contrast(map, len);
                let within = Within { rows: *rows, made, fill: &fill };
                lcn.gradient(*self, &within, y, dy, dh, lcn_scratch);
            }
            None => {
                let dh = rows_of(dh, made, row).iter_mut();
                dh.zip(rows_of(dy, made, row)).for_each(|(dh, dy)| *dh += *dy);
            }
        }
    }

    fn pooling_gradient(&self, stage: &Stage, acts: &mut Activations) {
        let Activations { rows, field, a, h, dh, da, .. } = acts;
        let (s, pooled) = (&stage.shape, stage.shape.pooled.row_len() * field.lanes);
        rows.each_in(dh, pooled, &stage.strip.pooled, |row, dh| {
            pool::divide(*self, dh, &h[row * pooled..]);
        });
        stage.strip.fill_pools(dh, pooled);
        let filtered = s.filtered.row_len() * field.lanes;
        rows.each_in(da, filtered, &stage.strip.filtered, |row, da| {
            pool::pool_gradient_row(*self, s, dh, row, &a[row * filtered..][..filtered], da);
        });
    }

    fn filtering_gradient(&self, stage: &Stage, acts: &Activations, dx: &mut [f32]) {
        let Activations { rows, field, da, .. } = acts;
        let (strip, reach, pitch) = (&stage.strip, stage.strip.reach(), field.pitch);
        let at_once = rows.at_once(reach.len(), ROWS_AT_ONCE);
        strip.clear_fields(dx, pitch);
        rows.each(rows_of(dx, &reach, pitch), at_once * pitch, |number, dx| {
            give_back(*self, stage, *field, Weights::Encoder, da, reach.start + number * at_once, dx);
        });
        strip.add_fields(dx, pitch);
    }

    fn learn(
        &self,
        stage: &Stage,
        input: &[f32],
        acts: &mut Activations,
        dx: Option<&mut [f32]>,
        update: &dyn WeightUpdate,
    ) {
        let cpu = *self;
        let Activations { rows, field, a, da, residual, .. } = acts;
        let (rows, field, blocks, tied) = (*rows, *field, stage.blocks.all(), stage.blocks.is_tied());
        let start = |number| stage.blocks.first_unit(number) * field.lanes;
        let (made, row) = (&stage.strip.filtered, stage.shape.filtered.row_len() * field.lanes);
        rows.each_of(rows_of(da, made, row), stage.held(), &start, &|number, da| {
            let (block, a) = (&blocks[number], &a[start(number)..][..da.len()]);
            let (maps, residual) = (block.maps().0, seen(stage, field, &block.place, residual));
            if tied {
                filter::respond(cpu, field, maps, block.read().encoder.all(), residual, da);
                return;
            }
            let gradient = |few: Few, [weights, sums]: Soon, gradient: &mut [f32]| {
                let (a, da, residual) = (&a[few.units.clone()], &mut da[few.units], &residual[few.input..]);
                filter::respond_and_weight_gradient(
                    cpu,
                    field,
                    maps,
                    weights,
                    residual,
                    da,
                    a,
                    [sums, Slice::F32(&[])],
                    gradient,
                );
            };
            learn_block(cpu, stage, field, (number, Weights::Decoder), gradient, update);
        });
        if let Some(dx) = dx {
            self.filtering_gradient(stage, acts, dx);
        }
        learn_encoder(cpu, stage, input, acts, tied, update);
    }

    fn learn_encoder(&self, stage: &Stage, input: &[f32], acts: &mut Activations, update: &dyn WeightUpdate) {
        learn_encoder(*self, stage, input, acts, false, update);
    }
}

/// Turns the gradient of W1 by way of `da` into new weights; with what comes `by_residual` as well, where W1 is the decoder too.
fn learn_encoder(
    cpu: Cpu,
    stage: &Stage,
    input: &[f32],
    acts: &mut Activations,
    by_residual: bool,
    update: &dyn WeightUpdate,
) {
    let Activations { rows, field, a, da, residual, .. } = acts;
    let (field, blocks) = (*field, stage.blocks.all());
    let start = |number| stage.blocks.first_unit(number) * field.lanes;
    let made = rows_of(da, &stage.strip.filtered, stage.shape.filtered.row_len() * field.lanes);
    rows.each_of(made, stage.held(), &start, &|number, da| {
        let place = &blocks[number].place;
        let (maps, input) = (blocks[number].maps().0, seen(stage, field, place, input));
        let (a, residual) = (&a[start(number)..][..da.len()], seen(stage, field, place, residual));
        let gradient = |few: Few, soon: Soon, gradient: &mut [f32]| {
            let Few { units, input: first } = few;
            filter::weight_gradient(cpu, field, maps, &input[first..], &da[units.clone()], soon, gradient);
            if by_residual {
                with_scratch([gradient.len()], |[more]| {
                    filter::weight_gradient(cpu, field, maps, &residual[first..], &a[units], soon, more);
                    gradient.iter_mut().zip(more.iter()).for_each(|(g, more)| *g += more);
                });
            }
        };
        learn_block(cpu, stage, field, (number, Weights::Encoder), gradient, update);
    });
}

/// Row and column of the input where the first receptive field of positions side by side begins.
fn first_field(stage: &Stage, place: &Place) -> (usize, usize) {
    let (s, (row, col)) = (&stage.shape, stage.shape.origin);
    (row + place.row * s.stride, col + place.cols.start * s.stride)
}

/// What the receptive fields of positions side by side see of the input.
fn seen<'a>(stage: &Stage, field: Field, place: &Place, input: &'a [f32]) -> &'a [f32] {
    let (row, col) = first_field(stage, place);
    &input[row * field.pitch + col * stage.shape.input.channels * field.lanes..]
}

/// Adds to some rows of maps of the input's size, from row `first` on, what all units give back to them.
///
/// Every number of `out` gets its terms in the same order, however the rows are divided.
fn give_back(
    cpu: Cpu,
    stage: &Stage,
    field: Field,
    which: Weights,
    response: &[f32],
    first: usize,
    out: &mut [f32],
) {
    let (s, lanes, last) = (&stage.shape, field.lanes, first + out.len() / field.pitch);
    for number in stage.held() {
        let block = &stage.blocks.all()[number];
        let (Place { cols, maps, .. }, (top, left)) = (&block.place, first_field(stage, &block.place));
        let rows = top.max(first)..(top + s.field).min(last);
        if rows.is_empty() {
            continue;
        }
        let start = stage.blocks.first_unit(number) * lanes;
        let response = &response[start..][..cols.len() * maps.len() * lanes];
        let out = &mut out[(rows.start - first) * field.pitch + left * s.input.channels * lanes..];
        let (rows, arrays) = (rows.start - top..rows.end - top, block.read());
        filter::scatter(cpu, field, rows, maps.len(), arrays.get(which).all(), response, out);
    }
}

/// Divides rows of maps of the input's size, from row `first` on, by the number of receptive fields at each place, if
/// the settings say so.
fn divide_by_coverage(stage: &Stage, first: usize, maps: &mut [f32], lanes: usize) {
    let Some(inverse) = &stage.inverse_coverage else { return };
    let scales = &inverse[first * stage.shape.input.cols..];
    for (place, scale) in maps.chunks_exact_mut(stage.shape.input.channels * lanes).zip(scales) {
        place.iter_mut().for_each(|x| *x *= scale);
    }
}

/// A few positions side by side in a block.
struct Few {
    /// Their units, from the first of the block.
    units: Range<usize>,
    /// Where their first field begins in the maps, from the first of the block.
    input: usize,
}

/// Turns one of a block's arrays of weights into new ones, a few positions at a time: `gradient` writes their gradient, then
/// `update` is called for each position.
fn learn_block(
    cpu: Cpu,
    stage: &Stage,
    field: Field,
    (number, which): (usize, Weights),
    mut gradient: impl FnMut(Few, Soon, &mut [f32]),
    update: &dyn WeightUpdate,
) {
    let block = &stage.blocks.all()[number];
    let (maps, padded) = block.maps();
    let (cell, len) = (maps * field.lanes, field.taps() * padded);
    let positions = block.place.cols.len();
    let (tied, arrays) = (stage.blocks.is_tied(), &mut *block.write());
    let sums = if which == Weights::Encoder { Weights::EncoderSums } else { Weights::DecoderSums };
    with_scratch([TOGETHER.min(positions) * len], |[gradients]| {
        for first in (0..positions).step_by(TOGETHER) {
            let last = (first + TOGETHER).min(positions);
            let few = Few { units: first * cell..last * cell, input: first * field.step * field.lanes };
            let gradients = &mut gradients[..(last - first) * len];
            let soon = [which, sums].map(|array| {
                let (array, range) = (arrays.get(array), first * len..last * len);
                array.slice(if array.is_empty() { 0..0 } else { range })
            });
            gradient(few, soon, gradients);
            for (position, gradient) in (first..last).zip(gradients.chunks_exact_mut(len)) {
                let at = At { stage: stage.number - 1, block: number, position, which, tied };
                arrays.edit(cpu, (which, position), len, at.key(update.number()), |weights, sums| {
                    update.update(at, padded, weights, sums, gradient);
                });
            }
        }
    });
}
