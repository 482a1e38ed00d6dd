//! The convolution that whitens pictures of any size, its transpose, and its inverse for display.
//!
//! Pictures go on mirrored outside. [`convolve`] is done for every picture of every minibatch where whitened pictures do not
//! fit in memory, so it is written for vectors and allocates nothing in the steady state.

use ndarray::{Array3, Array4, ArrayView3, Axis};

use crate::geometry::MapShape;
use crate::kernels::{Cpu, Kernel, LANES, Simd, with_scratch};
use crate::network::preprocess::CPU;

/// Vectors of columns in a register block: with three channels nine sums, three inputs and a weight.
const VECTORS: usize = 3;

/// Convolves a picture `[channel, row, column]` with `filter` `[channel out, channel in, row, column]`, whose side is odd;
/// `out` is as large as `x`.
pub(super) fn convolve(filter: &Array4<f32>, shape: MapShape, x: &[f32], out: &mut [f32]) {
    convolve_on(*CPU, filter, shape, x, out);
}

fn convolve_on(cpu: Cpu, filter: &Array4<f32>, shape: MapShape, x: &[f32], out: &mut [f32]) {
    let MapShape { channels, rows, cols } = shape;
    let side = filter.len_of(Axis(2));
    let half = side / 2;
    assert_eq!(filter.dim(), (channels, channels, 2 * half + 1, 2 * half + 1), "a filter of other pictures");
    assert!(x.len() == shape.len() && out.len() == shape.len(), "a picture of another size");
    // Vectors at the end of a row reach past its last column.
    let (height, pitch) = (rows + 2 * half, cols.next_multiple_of(LANES) + 2 * half);
    with_scratch([channels * height * pitch], |[padded]| {
        for (at, row) in padded.chunks_exact_mut(pitch).enumerate() {
            let (channel, y) = (at / height, mirror(at % height, half, rows));
            let source = &x[(channel * rows + y) * cols..][..cols];
            row[half..half + cols].copy_from_slice(source);
            for at in (0..half).chain(half + cols..cols + 2 * half) {
                row[at] = source[mirror(at, half, cols)];
            }
        }
        let weights = filter.as_slice().expect("a filter is contiguous");
        cpu.run(Convolve { weights, side, shape, padded, height, pitch, out });
    });
}

/// Where a row or column of a picture padded by `half` is mirrored to.
fn mirror(at: usize, half: usize, len: usize) -> usize {
    let last = len as isize - 1;
    let at = (at as isize - half as isize).abs();
    (if at > last { 2 * last - at } else { at }) as usize
}

struct Convolve<'a> {
    weights: &'a [f32],
    side: usize,
    shape: MapShape,
    /// `[channel, row, column]` with `height` rows of `pitch` numbers.
    padded: &'a [f32],
    height: usize,
    pitch: usize,
    out: &'a mut [f32],
}

impl Kernel for Convolve<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let MapShape { channels, rows, .. } = self.shape;
        for y in 0..rows {
            let mut to = 0;
            while to + 3 <= channels {
                self.row::<S, 3>(to, y);
                to += 3;
            }
            while to < channels {
                self.row::<S, 1>(to, y);
                to += 1;
            }
        }
    }
}

impl Convolve<'_> {
    /// Row `y` of the channels `to..to + TO`.
    #[inline(always)]
    fn row<S: Simd, const TO: usize>(&mut self, to: usize, y: usize) {
        let mut x = 0;
        while x + VECTORS * S::WIDTH <= self.shape.cols {
            self.block::<S, TO, VECTORS>(to, y, x);
            x += VECTORS * S::WIDTH;
        }
        while x < self.shape.cols {
            self.block::<S, TO, 1>(to, y, x);
            x += S::WIDTH;
        }
    }

    /// `V` vectors of it from column `x`; only the last may reach past the end of the row.
    #[inline(always)]
    fn block<S: Simd, const TO: usize, const V: usize>(&mut self, to: usize, y: usize, x: usize) {
        let MapShape { channels, rows, cols } = self.shape;
        let taps = channels * self.side * self.side;
        let mut sums = [[unsafe { S::zero() }; V]; TO];
        // SAFETY: the caller has the instruction set. Weights are `channels * taps`. Sources end at most `side - 1` columns
        // after a multiple of `WIDTH` that covers `cols`, inside `pitch`; rows go to `rows - 1 + side - 1 < height`.
        unsafe {
            let weights = self.weights.as_ptr().add(to * taps);
            let mut tap = 0;
            for from in 0..channels {
                for dy in 0..self.side {
                    let source = self.padded.as_ptr().add((from * self.height + y + dy) * self.pitch + x);
                    for dx in 0..self.side {
                        let mut values = [S::zero(); V];
                        for (v, value) in values.iter_mut().enumerate() {
                            *value = S::load(source.add(dx + v * S::WIDTH));
                        }
                        for (t, sums) in sums.iter_mut().enumerate() {
                            let weight = S::splat(weights.add(t * taps + tap));
                            for (sum, value) in sums.iter_mut().zip(values) {
                                *sum = S::mul_add(weight, value, *sum);
                            }
                        }
                        tap += 1;
                    }
                }
            }
        }
        for (t, sums) in sums.into_iter().enumerate() {
            let row = &mut self.out[((to + t) * rows + y) * cols..][..cols];
            for (v, sum) in sums.into_iter().enumerate() {
                let mut values = [0.0; LANES];
                // SAFETY: `WIDTH` is at most `LANES`.
                unsafe { S::store(values.as_mut_ptr(), sum) };
                let at = x + v * S::WIDTH;
                let len = S::WIDTH.min(cols - at);
                row[at..at + len].copy_from_slice(&values[..len]);
            }
        }
    }
}

/// [`convolve`] of an array.
fn convolved(filter: &Array4<f32>, x: &Array3<f32>) -> Array3<f32> {
    let (channels, rows, cols) = x.dim();
    let mut out = Array3::zeros(x.raw_dim());
    let (from, to) = (x.as_slice().expect("contiguous"), out.as_slice_mut().expect("contiguous"));
    convolve(filter, MapShape { channels, rows, cols }, from, to);
    out
}

/// The transpose of [`convolve`].
pub(super) fn convolve_transposed(filter: &Array4<f32>, z: ArrayView3<f32>) -> Array3<f32> {
    let (channels, rows, cols) = z.dim();
    let half = filter.len_of(Axis(2)) / 2;
    let mut padded = Array3::zeros((channels, rows + 2 * half, cols + 2 * half));
    for ((to, from, dy, dx), &weight) in filter.indexed_iter() {
        let mut target = padded.slice_mut(ndarray::s![from, dy..dy + rows, dx..dx + cols]);
        target.scaled_add(weight, &z.index_axis(Axis(0), to));
    }
    let mut out = Array3::zeros(z.raw_dim());
    for ((c, y, x), &value) in padded.indexed_iter() {
        out[(c, mirror(y, half, rows), mirror(x, half, cols))] += value;
    }
    out
}

/// Solves `convolve(filter, x) = values` for x by conjugate gradients on the damped normal equations.
pub(super) fn deconvolve(filter: &Array4<f32>, values: ArrayView3<f32>) -> Array3<f32> {
    const STEPS: usize = 40;
    const DAMPING: f32 = 1e-4;
    let normal = |x: &Array3<f32>| convolve_transposed(filter, convolved(filter, x).view()) + &(x * DAMPING);
    let dot = |a: &Array3<f32>, b: &Array3<f32>| (a * b).sum();
    let mut residual = convolve_transposed(filter, values);
    let mut x = Array3::zeros(residual.raw_dim());
    let mut direction = residual.clone();
    let mut size = dot(&residual, &residual);
    let small = 1e-10 * size;
    for _ in 0..STEPS {
        if size <= small {
            break;
        }
        let image = normal(&direction);
        let step = size / dot(&direction, &image);
        x.scaled_add(step, &direction);
        residual.scaled_add(-step, &image);
        let next = dot(&residual, &residual);
        direction = &residual + &(&direction * (next / size));
        size = next;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use rand::Rng;

    fn drawn(dims: &[usize], index: u64) -> Vec<f32> {
        let mut rng = rng::stream(2, "convolution", index);
        (0..dims.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// The definition, in f64.
    fn plain(filter: &Array4<f32>, x: &Array3<f32>) -> Array3<f64> {
        let (_, rows, cols) = x.dim();
        let half = filter.len_of(Axis(2)) / 2;
        Array3::from_shape_fn(x.raw_dim(), |(to, y, x0)| {
            let tap = |((from, dy, dx), &weight): ((usize, usize, usize), &f32)| {
                let value = x[(from, mirror(y + dy, half, rows), mirror(x0 + dx, half, cols))];
                f64::from(weight) * f64::from(value)
            };
            filter.index_axis(Axis(0), to).indexed_iter().map(tap).sum()
        })
    }

    #[test]
    fn every_instruction_set_matches_the_definition() {
        // Widths below, at and above whole vectors and blocks; the largest filter that a picture takes.
        for (index, (channels, rows, cols, side)) in
            [(1, 7, 5, 5), (1, 9, 16, 9), (2, 6, 49, 3), (3, 11, 24, 9), (3, 5, 77, 1), (4, 8, 203, 7)]
                .into_iter()
                .enumerate()
        {
            let filter = drawn(&[channels, channels, side, side], index as u64);
            let filter = Array4::from_shape_vec((channels, channels, side, side), filter).unwrap();
            let x = drawn(&[channels, rows, cols], 100 + index as u64);
            let wanted = plain(&filter, &Array3::from_shape_vec((channels, rows, cols), x.clone()).unwrap());
            let bound = 2.0 * f64::from(f32::EPSILON) * (channels * side * side) as f64;
            for cpu in Cpu::available() {
                let mut out = vec![f32::NAN; x.len()];
                convolve_on(cpu, &filter, MapShape { channels, rows, cols }, &x, &mut out);
                for (&got, &want) in out.iter().zip(&wanted) {
                    assert!((f64::from(got) - want).abs() <= bound, "{cpu:?} {cols} columns: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn the_transposed_convolution_is_the_adjoint() {
        let filter = Array4::from_shape_vec((3, 3, 9, 9), drawn(&[3, 3, 9, 9], 7)).unwrap();
        let draw = |index| Array3::from_shape_vec((3, 12, 10), drawn(&[3, 12, 10], index)).unwrap();
        let (x, z) = (draw(8), draw(9));
        let left = (&convolved(&filter, &x) * &z).sum();
        let right = (&x * &convolve_transposed(&filter, z.view())).sum();
        assert!((left - right).abs() < 1e-3 * (1.0 + left.abs()), "{left} != {right}");
    }
}
