//! Local contrast normalisation of pictures: the arithmetic of the stages, with pictures as its lanes.

use ndarray::Array4;
use rayon::prelude::*;

use crate::config;
use crate::geometry::MapShape;
use crate::kernels::lcn::{Lcn, LcnScratch, Within};
use crate::kernels::{Buffer, Cpu, LANES, Rows};

use super::CPU;

/// Smallest divisor, where a picture's own contrast is 1: what is flatter than a tenth of it, such as sky with the noise of a
/// camera or of JPEG, stays flatter.
const LOCAL_FLOOR: f32 = 0.1;

/// Memory that the normalisation works in: [`LANES`] pictures at a time, however many there are.
#[derive(Default)]
pub(super) struct Room {
    /// Pictures before and after, `[row, column, channel, lane]`.
    before: Buffer,
    after: Buffer,
    lcn: LcnScratch,
}

/// The window that `input` asks for, on pictures of `shape`; at the border, what lies inside counts for more.
pub(crate) fn window(input: &config::Input, shape: MapShape) -> Lcn {
    Lcn::new(shape, LANES, input.lcn_side(), LOCAL_FLOOR, true)
}

/// Normalises pictures `[picture, channel, row, column]` and multiplies them by `scale`. The threads of the pool share the
/// rows, so that one room is enough.
pub(super) fn normalise(
    window: &Lcn,
    shape: MapShape,
    scale: f32,
    pictures: &[f32],
    out: &mut [f32],
    room: &mut Room,
) {
    normalise_on(*CPU, window, shape, scale, pictures, out, room);
}

fn normalise_on(
    cpu: Cpu,
    window: &Lcn,
    shape: MapShape,
    scale: f32,
    pictures: &[f32],
    out: &mut [f32],
    room: &mut Room,
) {
    let (len, plane, cols) = (shape.len(), shape.rows * shape.cols, shape.cols);
    assert!(pictures.len() == out.len() && pictures.len().is_multiple_of(len), "pictures of another size");
    if room.before.len() != len * LANES {
        let (before, after) = (Buffer::zeros(len * LANES), Buffer::zeros(len * LANES));
        *room = Room { before, after, lcn: LcnScratch::new(shape, LANES) };
    }
    let Room { before, after, lcn } = room;
    let row_len = shape.row_len() * LANES;
    // Lanes without a picture keep one of an earlier group: nobody looks at what becomes of them.
    for (group, out) in pictures.chunks(LANES * len).zip(out.chunks_mut(LANES * len)) {
        Rows::Shared.each(before, row_len, |row, places| {
            for (lane, picture) in group.chunks_exact(len).enumerate() {
                for channel in 0..shape.channels {
                    let values = &picture[channel * plane + row * cols..][..cols];
                    let places = places[channel * LANES + lane..].iter_mut().step_by(shape.channels * LANES);
                    places.zip(values).for_each(|(place, value)| *place = *value);
                }
            }
        });
        let within = Within { rows: Rows::Shared, made: &(0..shape.rows), fill: &|_, _| () };
        window.normalise(cpu, &within, before, after, lcn);
        out.par_chunks_exact_mut(len).enumerate().for_each(|(lane, picture)| {
            for (channel, values) in picture.chunks_exact_mut(plane).enumerate() {
                let places = after[channel * LANES + lane..].iter().step_by(shape.channels * LANES);
                values.iter_mut().zip(places).for_each(|(value, place)| *value = scale * place);
            }
        });
    }
}

/// What the normalisation does before it divides, as a convolution: a pixel less the mean around it. At the border a picture
/// here goes on mirrored.
pub(super) fn subtraction(window: &Lcn, channels: usize) -> Array4<f32> {
    let gaussian = window.gaussian();
    let (side, half) = (gaussian.len(), gaussian.len() / 2);
    Array4::from_shape_fn((channels, channels, side, side), |(to, from, y, x)| {
        let itself = f32::from(u8::from(to == from && (y, x) == (half, half)));
        itself - gaussian[y] * gaussian[x] / channels as f32
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use rand::Rng;

    /// The definition, in f64, for one picture.
    fn plain(shape: MapShape, side: usize, x: &[f32]) -> Vec<f64> {
        let MapShape { channels, rows, cols } = shape;
        let half = (side / 2) as isize;
        let bell = |u: isize| (-0.5 * (u as f64 / (0.25 * side as f64)).powi(2)).exp();
        let mean = |z: &[f64], y: usize, x: usize| {
            let (mut sum, mut weights) = (0.0, 0.0);
            for (dy, dx) in (-half..=half).flat_map(|dy| (-half..=half).map(move |dx| (dy, dx))) {
                let (y, x) = (y as isize + dy, x as isize + dx);
                if (0..rows as isize).contains(&y) && (0..cols as isize).contains(&x) {
                    let at = y as usize * cols + x as usize;
                    let all = (0..channels).map(|c| z[c * rows * cols + at]).sum::<f64>() / channels as f64;
                    sum += bell(dy) * bell(dx) * all;
                    weights += bell(dy) * bell(dx);
                }
            }
            sum / weights
        };
        let place = |at: usize| (at / cols % rows, at % cols);
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let of_place = |z: &[f64], at: usize| mean(z, place(at).0, place(at).1);
        let g: Vec<f64> = (0..x.len()).map(|at| x[at] - of_place(&x, at)).collect();
        let squares: Vec<f64> = g.iter().map(|g| g * g).collect();
        (0..g.len()).map(|at| g[at] / of_place(&squares, at).sqrt().max(f64::from(LOCAL_FLOOR))).collect()
    }

    #[test]
    fn pictures_in_lanes_match_the_definition_on_every_instruction_set() {
        for (channels, rows, cols, side) in [(1, 9, 7, 7), (3, 12, 17, 9), (3, 5, 6, 3)] {
            let shape = MapShape { channels, rows, cols };
            let input =
                config::Input { channels, height: rows, width: cols, lcn_size: side, ..Default::default() };
            let window = window(&input, shape);
            let mut rng = rng::stream(4, "local", rows as u64);
            // More than one group, the last not full; some pictures flatter than the floor.
            let size = |picture: usize| if picture.is_multiple_of(4) { 0.05 } else { 1.0 };
            let pictures: Vec<f32> = (0..37 * shape.len())
                .map(|at| size(at / shape.len()) * rng.random_range(-1.0f32..1.0))
                .collect();
            for cpu in Cpu::available() {
                let (mut out, mut room) = (vec![f32::NAN; pictures.len()], Room::default());
                normalise_on(cpu, &window, shape, 3.0, &pictures, &mut out, &mut room);
                for (got, x) in out.chunks(shape.len()).zip(pictures.chunks(shape.len())) {
                    for (&got, want) in got.iter().zip(plain(shape, side, x)) {
                        assert!((f64::from(got) - 3.0 * want).abs() < 1e-4, "{cpu:?}: {got}, {want}");
                    }
                }
            }
        }
    }
}
