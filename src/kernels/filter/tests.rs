//! Tests of [`super`]: against plain f64 definitions, over random shapes.

use super::*;
use crate::config::Precision;
use crate::geometry::{MapShape, Windows};
use crate::kernels::lanes_for;
use crate::kernels::stored::Stored;
use crate::rng;
use proptest::prelude::*;
use rand::Rng;

/// Positions side by side in a random small stage, with random numbers in every array.
struct Case {
    shape: StageShape,
    field: Field,
    /// Where the first field begins in the input.
    base: usize,
    at: (usize, usize),
    positions: usize,
    weights: Vec<f32>,
    input: Vec<f32>,
    response: Vec<f32>,
}

impl Case {
    fn new(windows: Windows, channels: usize, size: (usize, usize), batch: usize, seed: u64) -> Case {
        let stride = windows.stride;
        let (rows, cols) = (windows.field + size.0, windows.field + size.1);
        let shape = StageShape::new(1, MapShape { channels, rows, cols }, windows).unwrap();
        let field = Field::new(&shape, lanes_for(batch));
        let mut rng = rng::stream(seed, "kernel test", 0);
        let at = (rng.random_range(0..shape.filtered.rows), rng.random_range(0..shape.filtered.cols));
        let positions = rng.random_range(1..=shape.filtered.cols - at.1);
        let mut draw = |n: usize| (0..n).map(|_| rng.random_range(-1.0..1.0f32)).collect::<Vec<_>>();
        let (maps, lanes) = (windows.maps, field.lanes);
        let padded = maps.next_multiple_of(MAP_PAD);
        let mut weights = draw(positions * shape.taps() * padded);
        for row in weights.chunks_mut(padded) {
            row[maps..].fill(0.0);
        }
        let (input, response) = (draw(shape.input.len() * lanes), draw(positions * maps * lanes));
        let base = shape.input.place(0, at.0 * stride, at.1 * stride) * lanes;
        Case { shape, field, base, at, positions, weights, input, response }
    }

    /// Every `(position, tap, index of its lane 0 in the input)`, from the definition of a receptive field.
    fn places(&self) -> Vec<(usize, usize, usize)> {
        let (s, k, channels) = (&self.shape, self.shape.field, self.shape.input.channels);
        let taps = |position| {
            (0..s.taps()).map(move |t| {
                let (dy, dx, c) = (t / channels / k, t / channels % k, t % channels);
                let (y, x) = (self.at.0 * s.stride + dy, (self.at.1 + position) * s.stride + dx);
                (position, t, ((y * s.input.cols + x) * channels + c) * self.field.lanes)
            })
        };
        (0..self.positions).flat_map(taps).collect()
    }
}

fn assert_close(got: &[f32], want: &[f64], terms: usize, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (&g, &w) in got.iter().zip(want) {
        let bound = (terms + 2) as f64 * f64::from(f32::EPSILON) * (terms as f64).sqrt().max(1.0);
        assert!((f64::from(g) - w).abs() <= bound, "{what}: {g} instead of {w}, bound {bound:e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]
    #[test]
    fn every_cpu_level_matches_the_definition(
        field in 1usize..=20, maps in 1usize..=128, stride in 1usize..=4, channels in 1usize..=9,
        size in (0usize..5, 0usize..9), batch in 1usize..=100, seed in any::<u64>(),
    ) {
        // Large fields with many maps and lanes add nothing but time.
        prop_assume!(field * field * channels * maps * batch < 1_000_000);
        let windows = Windows { maps, field, stride, pool: 1, pool_stride: 1, lcn: 0 };
        let case = Case::new(windows, channels, size, batch, seed);
        let (lanes, taps, padded) = (case.field.lanes, case.shape.taps(), maps.next_multiple_of(MAP_PAD));
        let w = |p: usize, t: usize, m: usize| f64::from(case.weights[(p * taps + t) * padded + m]);
        let x = |index: usize| f64::from(case.input[index]);
        let r = |p: usize, m: usize, b: usize| f64::from(case.response[(p * maps + m) * lanes + b]);

        let mut responses = vec![0.0; case.response.len()];
        let mut gradient = vec![0.0; case.weights.len()];
        let mut given_back: Vec<f64> = case.input.iter().map(|&x| f64::from(x)).collect();
        for (p, t, at) in case.places() {
            for m in 0..maps {
                for b in 0..lanes {
                    responses[(p * maps + m) * lanes + b] += w(p, t, m) * x(at + b);
                    gradient[(p * taps + t) * padded + m] += x(at + b) * r(p, m, b);
                    given_back[at + b] += w(p, t, m) * r(p, m, b);
                }
            }
        }
        let (field, input) = (case.field, &case.input[case.base..]);
        let terms = maps * field.rows * field.rows * case.positions; // no place is seen more often
        for cpu in Cpu::available() {
            let mut got = vec![0.0; case.response.len()];
            respond(cpu, field, maps, case.weights[..].into(), input, &mut got);
            assert_close(&got, &responses, taps, cpu.name());

            let mut got = vec![f32::NAN; case.weights.len()];
            let (weights, response) = (case.weights[..].into(), &case.response);
            let soon = [weights, Slice::F32(&[])];
            weight_gradient(cpu, field, maps, input, response, soon, &mut got);
            assert_close(&got, &gradient, lanes, cpu.name());

            let (mut got, mut other) = (vec![0.0; case.response.len()], vec![f32::NAN; case.weights.len()]);
            respond_and_weight_gradient(cpu, field, maps, weights, input, &mut got, response, soon, &mut other);
            assert_close(&got, &responses, taps, cpu.name());
            assert_close(&other, &gradient, lanes, cpu.name());

            let mut got = case.input.clone();
            scatter(cpu, field, 0..field.rows, maps, weights, response, &mut got[case.base..]);
            assert_close(&got, &given_back, terms, cpu.name());

            // Two halves of the fields' rows, one after the other, are the whole.
            let mut got = case.input.clone();
            for rows in [0..field.rows / 2, field.rows / 2..field.rows] {
                if rows.is_empty() {
                    continue;
                }
                let first = case.base + rows.start * field.pitch;
                scatter(cpu, field, rows, maps, weights, response, &mut got[first..]);
            }
            assert_close(&got, &given_back, terms, cpu.name());
        }
    }

    /// Weights stored as bf16 give what the same weights give as f32, bit for bit.
    #[test]
    fn how_weights_are_stored_does_not_matter(
        field in 1usize..=20, maps in 1usize..=40, stride in 1usize..=4, batch in 1usize..=100, seed in any::<u64>(),
    ) {
        let windows = Windows { maps, field, stride, pool: 1, pool_stride: 1, lcn: 0 };
        let case = Case::new(windows, 3, (3, 7), batch, seed);
        let mut half = Stored::zeros(case.weights.len(), Precision::Bf16);
        case.weights.iter().enumerate().for_each(|(at, &weight)| half.set(at, weight));
        let whole: Vec<f32> = (0..half.len()).map(|at| half.get(at)).collect();
        let (field, input, response) = (case.field, &case.input[case.base..], &case.response);
        for cpu in Cpu::available() {
            let all = |weights: Slice| {
                let (mut forward, mut both) = (vec![0.0; response.len()], vec![0.0; response.len()]);
                let (mut gradient, mut back) = (vec![0.0; weights.len()], case.input.clone());
                respond(cpu, field, maps, weights, input, &mut forward);
                let soon = [weights; 2];
                respond_and_weight_gradient(cpu, field, maps, weights, input, &mut both, response, soon, &mut gradient);
                scatter(cpu, field, 0..field.rows, maps, weights, response, &mut back[case.base..]);
                (forward, both, gradient, back)
            };
            prop_assert!(all(half.all()) == all(whole[..].into()), "{}", cpu.name());
        }
    }

    /// `⟨respond(x), r⟩ = ⟨x, scatter(r)⟩` for all x and r.
    #[test]
    fn scatter_is_the_adjoint_of_respond(
        field in 1usize..=9, maps in 1usize..=20, stride in 1usize..=3, seed in any::<u64>(),
    ) {
        let windows = Windows { maps, field, stride, pool: 1, pool_stride: 1, lcn: 0 };
        let case = Case::new(windows, 2, (3, 7), 16, seed);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        for cpu in Cpu::available() {
            let mut forward = vec![0.0; case.response.len()];
            let mut back = vec![0.0; case.input.len()];
            let (base, r, rows) = (case.base, &case.response, 0..case.field.rows);
            respond(cpu, case.field, maps, case.weights[..].into(), &case.input[base..], &mut forward);
            scatter(cpu, case.field, rows, maps, case.weights[..].into(), r, &mut back[base..]);
            let (left, right) = (dot(&forward, &case.response), dot(&case.input, &back));
            prop_assert!((left - right).abs() < 1e-3 * (1.0 + left.abs()), "{}: {left} != {right}", cpu.name());
        }
    }
}
