//! A deep autoencoder with fully connected layers, for comparison with local receptive fields, pooling and contrast normalisation
//! (paper §4.3).
//!
//! `depth` layers of one width encode a picture and as many decode it, none sharing weights. Hidden units are tanh, the output is
//! linear. It learns by Adam to give back what it was shown.

use std::ops::Range;
use std::path::Path;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray_rand::rand_distr::{Distribution, Normal};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::model;
use crate::error::Result;
use crate::rng;

/// Adam's step; of the many that work the usual one.
const RATE: f64 = 1e-3;

/// Adam's decay of the mean and of the mean square of gradients, and what keeps it from dividing by zero.
const DECAY: (f64, f64) = (0.9, 0.999);
const ROUNDING: f64 = 1e-8;

/// Parts of a minibatch that threads share out.
const PARTS: usize = 4;

/// What an autoencoder is made from. One that lies on the disk is used, or gone on with, only if all of it is the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Values of a picture.
    pub inputs: usize,
    /// Layers that encode.
    pub depth: usize,
    /// Units of each.
    pub width: usize,
    /// Minibatches to learn from.
    pub steps: u64,
    /// Pictures in each.
    pub batch: usize,
    /// Seed of weights and order.
    pub seed: u64,
    /// The checkpoint of the network that it is compared with.
    pub checkpoint: String,
}

impl Plan {
    /// Weights and biases of all layers.
    pub fn weights(&self) -> u64 {
        self.layers().map(|(from, to)| ((from + 1) * to) as u64).sum()
    }

    /// The width at which `depth` layers each way have about so many weights.
    pub fn width_for(inputs: usize, depth: usize, weights: u64) -> usize {
        // 2 d w weights at the ends and 2 (depth - 1) w² between, and a bias for each unit.
        let (square, line) = (2.0 * (depth as f64 - 1.0), 2.0 * inputs as f64 + 2.0 * depth as f64 - 1.0);
        let rest = weights as f64 - inputs as f64;
        let width = if square > 0.0 {
            ((line * line + 4.0 * square * rest).max(0.0).sqrt() - line) / (2.0 * square)
        } else {
            rest / line
        };
        (width.round() as usize).max(1)
    }

    /// Inputs and units of each layer.
    fn layers(&self) -> impl Iterator<Item = (usize, usize)> {
        let (all, inputs, width) = (2 * self.depth, self.inputs, self.width);
        let size = move |number: usize| if number == 0 || number == all { inputs } else { width };
        (0..all).map(move |number| (size(number), size(number + 1)))
    }

    /// Share of the full rate at a step: full for 60 % of the steps, then falling to 5 %, as the network's.
    fn schedule(&self, step: u64) -> f64 {
        let past = (step as f64 / self.steps as f64 - 0.6) / 0.4;
        1.0 - 0.95 * past.clamp(0.0, 1.0)
    }
}

/// Weights of a layer, `[input, unit]` with a last row of biases, and what Adam remembers of them.
struct Layer {
    weights: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Layer {
    fn parts(&self) -> [(&'static str, &Vec<f32>); 3] {
        [("weights", &self.weights), ("mean", &self.mean), ("square", &self.square)]
    }
}

/// An autoencoder, however far it has learned.
pub struct Autoencoder {
    /// What it is made from.
    pub plan: Plan,
    /// Minibatches that it has learned from.
    pub step: u64,
    layers: Vec<Layer>,
}

/// Adds up `rows` of `left · right` into `out` or puts them there; all matrices lie row by row.
fn product(
    out: &mut [f32],
    (rows, cols): (usize, usize),
    accumulate: Accum,
    left: MatRef<f32>,
    right: MatRef<f32>,
) {
    matmul(
        MatMut::from_row_major_slice_mut(out, rows, cols),
        accumulate,
        left,
        right,
        1.0,
        // Threads share out the pictures: a product of one minibatch is too small for them.
        Par::Seq,
    );
}

impl Autoencoder {
    /// With random weights.
    pub fn new(plan: Plan) -> Autoencoder {
        let layer = |(number, (from, to)): (usize, (usize, usize))| {
            let mut rng = rng::stream(plan.seed, "autoencoder", number as u64);
            let normal = Normal::new(0.0, (2.0 / (from + to) as f32).sqrt()).expect("a finite deviation");
            let mut weights: Vec<f32> = (0..from * to).map(|_| normal.sample(&mut rng)).collect();
            weights.resize((from + 1) * to, 0.0);
            let zeros = vec![0.0; weights.len()];
            Layer { weights, mean: zeros.clone(), square: zeros }
        };
        let layers = plan.layers().enumerate().map(layer).collect();
        Autoencoder { plan, step: 0, layers }
    }

    /// Units that encode: those of all such layers.
    pub fn units(&self) -> usize {
        self.plan.depth * self.plan.width
    }

    /// What all layers up to the last of `count` make of `pictures`, one a row; first the pictures themselves.
    fn forward(&self, pictures: &[f32], count: usize) -> Vec<Vec<f32>> {
        let rows = pictures.len() / self.plan.inputs;
        let mut all = vec![pictures.to_vec()];
        for (number, ((from, to), layer)) in self.plan.layers().zip(&self.layers).take(count).enumerate() {
            let (weights, biases) = layer.weights.split_at(from * to);
            let mut out = biases.repeat(rows);
            let left = MatRef::from_row_major_slice(&all[number], rows, from);
            let right = MatRef::from_row_major_slice(weights, from, to);
            product(&mut out, (rows, to), Accum::Add, left, right);
            if number + 1 < 2 * self.plan.depth {
                out.iter_mut().for_each(|value| *value = value.tanh());
            }
            all.push(out);
        }
        all
    }

    /// Values of some of the encoding units, numbered layer after layer, `[unit, picture]`, for pictures one a row.
    pub fn encode(&self, pictures: &[f32], units: Range<usize>) -> Vec<f32> {
        let (rows, width) = (pictures.len() / self.plan.inputs, self.plan.width);
        let layers = self.forward(pictures, units.end.div_ceil(width));
        let value = |unit: usize, row: usize| layers[1 + unit / width][row * width + unit % width];
        units
            .flat_map(|unit| (0..rows).map(move |row| (unit, row)))
            .map(|(unit, row)| value(unit, row))
            .collect()
    }

    /// Squared distance from pictures, one a row, to what is made of them, as a share of their own squares.
    pub fn unexplained(&self, pictures: &[f32]) -> f64 {
        let all = self.forward(pictures, self.layers.len());
        let square =
            |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
        let output = all.last().expect("at least the pictures");
        square(&mut output.iter().zip(pictures).map(|(out, x)| out - x))
            / square(&mut pictures.iter().copied())
    }

    /// Squared distance from pictures to what is made of them, mean over pictures, and its gradient by layer. Of parts of the
    /// minibatch that do not depend on the number of threads.
    fn gradients(&self, pictures: &[f32]) -> (f64, Vec<Vec<f32>>) {
        let rows = pictures.len() / self.plan.inputs;
        let parts = pictures.par_chunks(rows.div_ceil(PARTS) * self.plan.inputs);
        let parts: Vec<(f64, Vec<Vec<f32>>)> = parts.map(|part| self.gradients_of(part, rows)).collect();
        let add = |(error, mut sums): (f64, Vec<Vec<f32>>), (more, gradients): (f64, Vec<Vec<f32>>)| {
            sums.par_iter_mut().zip(gradients).for_each(|(sum, gradient)| {
                sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
            });
            (error + more, sums)
        };
        parts.into_iter().reduce(add).expect("at least one picture")
    }

    /// What some pictures of a minibatch of `all` add to both.
    fn gradients_of(&self, pictures: &[f32], all: usize) -> (f64, Vec<Vec<f32>>) {
        let rows = pictures.len() / self.plan.inputs;
        let values = self.forward(pictures, self.layers.len());
        let output = values.last().expect("at least the pictures");
        let mut delta: Vec<f32> = output.iter().zip(pictures).map(|(out, x)| out - x).collect();
        let error = delta.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>() / all as f64;
        delta.iter_mut().for_each(|d| *d *= 2.0 / all as f32);
        let sizes: Vec<(usize, usize)> = self.plan.layers().collect();
        let mut gradients = vec![Vec::new(); sizes.len()];
        for (number, &(from, to)) in sizes.iter().enumerate().rev() {
            let mut gradient = vec![0.0; (from + 1) * to];
            let (weights, biases) = gradient.split_at_mut(from * to);
            let below = MatRef::from_row_major_slice(&values[number], rows, from);
            let back = MatRef::from_row_major_slice(&delta, rows, to);
            product(weights, (from, to), Accum::Replace, below.transpose(), back);
            delta.chunks_exact(to).for_each(|row| biases.iter_mut().zip(row).for_each(|(b, d)| *b += d));
            gradients[number] = gradient;
            if number > 0 {
                let weights =
                    MatRef::from_row_major_slice(&self.layers[number].weights[..from * to], from, to);
                let mut next = vec![0.0; rows * from];
                product(&mut next, (rows, from), Accum::Replace, back, weights.transpose());
                next.iter_mut().zip(&values[number]).for_each(|(d, h)| *d *= 1.0 - h * h);
                delta = next;
            }
        }
        (error, gradients)
    }

    /// Learns from a minibatch, pictures one a row; returns the error before, mean squared distance of a picture.
    pub fn learn(&mut self, pictures: &[f32]) -> f64 {
        let (error, gradients) = self.gradients(pictures);
        self.step += 1;
        let (mean, square) = DECAY;
        let unbiased = |decay: f64| 1.0 - decay.powf(self.step as f64);
        let rate = RATE * self.plan.schedule(self.step) / unbiased(mean);
        let (root, mean, square) = (1.0 / unbiased(square).sqrt(), mean as f32, square as f32);
        for (layer, gradient) in self.layers.iter_mut().zip(gradients) {
            let values =
                layer.weights.par_iter_mut().zip(&mut layer.mean).zip(&mut layer.square).zip(gradient);
            values.with_min_len(4096).for_each(|(((w, m), s), g)| {
                *m = mean * *m + (1.0 - mean) * g;
                *s = square * *s + (1.0 - square) * g * g;
                *w -= rate as f32 * *m / (s.sqrt() * root as f32 + ROUNDING as f32);
            });
        }
        error
    }

    /// True if it has learned from all minibatches.
    pub fn is_done(&self) -> bool {
        self.step >= self.plan.steps
    }

    /// Writes it to a file, with all that is needed to go on.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for (number, ((from, to), layer)) in self.plan.layers().zip(&self.layers).enumerate() {
            for (what, values) in layer.parts() {
                tensors.push((format!("layer{}.{what}", number + 1), vec![from + 1, to], &values[..]));
            }
        }
        model::save(path, &self.plan, self.step, &tensors)
    }

    /// The one in a file, if there is a file and it was made from `plan`.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn load(path: &Path, plan: &Plan) -> Result<Option<Autoencoder>> {
        let Some((step, mut tensors)) = model::load(path, plan)? else { return Ok(None) };
        let layer = |(number, (from, to)): (usize, (usize, usize))| -> Result<Layer> {
            let mut of = |what: &str| {
                model::take(path, &mut tensors, &format!("layer{}.{what}", number + 1), &[from + 1, to])
            };
            Ok(Layer { weights: of("weights")?, mean: of("mean")?, square: of("square")? })
        };
        let layers = plan.layers().enumerate().map(layer).collect::<Result<_>>()?;
        Ok(Some(Autoencoder { plan: plan.clone(), step, layers }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use std::fs;

    fn plan(inputs: usize, depth: usize, width: usize) -> Plan {
        Plan { inputs, depth, width, steps: 300, batch: 20, seed: 3, checkpoint: "c".into() }
    }

    fn pictures(count: usize, inputs: usize, number: u64) -> Vec<f32> {
        let mut rng = rng::stream(8, "autoencoder pictures", number);
        // Of two dimensions only.
        let picture = |rng: &mut rng::ChaCha8Rng| {
            let [a, b] = [0; 2].map(|_| rng.random_range(-1.0..1.0f32));
            (0..inputs).map(move |at| a * (at as f32).sin() + b * (0.7 * at as f32).cos()).collect::<Vec<_>>()
        };
        (0..count).flat_map(|_| picture(&mut rng)).collect()
    }

    #[test]
    fn it_has_the_weights_asked_for_within_5_per_cent() {
        for (inputs, depth, weights) in
            [(1024, 3, 526_336), (1024, 6, 526_336), (3072, 6, 9_000_000), (64, 1, 9_000)]
        {
            let width = Plan::width_for(inputs, depth, weights);
            let got = plan(inputs, depth, width).weights() as f64;
            assert!((got / weights as f64 - 1.0).abs() < 0.05, "{inputs} {depth}: {got} for {weights}");
        }
    }

    #[test]
    fn gradients_are_those_of_central_differences() {
        let mut net = Autoencoder::new(plan(5, 2, 4));
        let shown = pictures(3, 5, 0);
        let (_, gradients) = net.gradients(&shown);
        for (layer, gradient) in gradients.iter().enumerate() {
            let largest = gradient.iter().fold(0f32, |max, g| max.max(g.abs()));
            for (at, &got) in gradient.iter().enumerate() {
                let was = net.layers[layer].weights[at];
                let mut error = |change: f32| {
                    net.layers[layer].weights[at] = was + change;
                    net.gradients(&shown).0
                };
                let want = (error(1e-2) - error(-1e-2)) / 2e-2;
                net.layers[layer].weights[at] = was;
                assert!(
                    (f64::from(got) - want).abs() < 2e-3 * f64::from(largest),
                    "{layer} {at}: {got}, {want}"
                );
            }
        }
    }

    #[test]
    fn it_learns_and_goes_on_from_a_file_as_if_it_had_not_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let plan = plan(12, 3, 6);
        assert!(Autoencoder::load(&path, &plan).unwrap().is_none());
        let mut net = Autoencoder::new(plan.clone());
        let mut first = 0.0;
        for step in 0..300 {
            if step == 100 {
                net.save(&path).unwrap();
            }
            let error = net.learn(&pictures(20, 12, step));
            first = if step == 0 { error } else { first };
        }
        let test = pictures(50, 12, 1000);
        let last = net.gradients(&test).0;
        assert!(net.is_done() && last < 0.2 * first, "{first} {last}");
        let mut again = Autoencoder::load(&path, &plan).unwrap().unwrap();
        assert_eq!(again.step, 100);
        for step in 100..300 {
            again.learn(&pictures(20, 12, step));
        }
        assert_eq!(again.encode(&test, 0..18), net.encode(&test, 0..18));
        let all = net.encode(&test, 0..18);
        assert_eq!((all.len(), &all[5 * 50..9 * 50]), (18 * 50, &net.encode(&test, 5..9)[..]));
        assert!(net.unexplained(&test) < 0.2);
        // One made otherwise is not it; and a damaged one is said to be so.
        assert!(Autoencoder::load(&path, &Plan { seed: 4, ..plan.clone() }).unwrap().is_none());
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        let error = Autoencoder::load(&path, &plan).err().unwrap().to_string();
        assert!(error.contains("model.safetensors: damaged"), "{error}");
    }
}
