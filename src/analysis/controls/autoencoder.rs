//! A deep autoencoder with fully connected layers, for comparison with local receptive fields, pooling and contrast normalisation
//! (paper §4.3).
//!
//! `depth` layers of one width encode a picture and as many decode it, none sharing weights. Hidden units are tanh, the output is
//! linear. It learns by Adam to give back what it was shown.

use std::ops::Range;
use std::path::Path;

use faer::{Accum, MatRef};
use ndarray_rand::rand_distr::{Distribution, Normal};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::model;
use crate::error::Result;
use crate::kernels::{Cpu, Kernel, Simd, product};
use crate::rng;

/// Adam's step; of the many that work the usual one.
const RATE: f64 = 1e-3;

/// Adam's decay of the mean and of the mean square of gradients, and what keeps it from dividing by zero.
const DECAY: (f64, f64) = (0.9, 0.999);
const ROUNDING: f64 = 1e-8;

/// Pictures of a minibatch that a thread takes at a time.
const PICTURES: usize = 48;

/// Weights whose gradient a thread makes at a time, about: few enough to stay in its cache until they have moved.
const WEIGHTS: usize = 1 << 15;

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

/// Some rows of it.
struct Part<'a> {
    weights: &'a mut [f32],
    mean: &'a mut [f32],
    square: &'a mut [f32],
}

impl Layer {
    /// All of it in parts of so many weights.
    fn parts_of(&mut self, len: usize) -> impl IndexedParallelIterator<Item = Part<'_>> {
        let [weights, mean, square] =
            [&mut self.weights, &mut self.mean, &mut self.square].map(|values| values.par_chunks_mut(len));
        weights.zip(mean).zip(square).map(|((weights, mean), square)| Part { weights, mean, square })
    }

    fn tensors(&self) -> [(&'static str, &Vec<f32>); 3] {
        [("weights", &self.weights), ("mean", &self.mean), ("square", &self.square)]
    }
}

/// The step of some weights.
struct Adam<'a, 'b> {
    rate: f32,
    root: f32,
    part: &'a mut Part<'b>,
    gradient: &'a [f32],
}

impl Kernel for Adam<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (mean, square) = (DECAY.0 as f32, DECAY.1 as f32);
        let Part { weights, mean: means, square: squares } = self.part;
        let values = weights.iter_mut().zip(means.iter_mut()).zip(squares.iter_mut()).zip(self.gradient);
        for (((w, m), s), &g) in values {
            *m = mean * *m + (1.0 - mean) * g;
            *s = square * *s + (1.0 - square) * g * g;
            *w -= self.rate * *m / (s.sqrt() * self.root + ROUNDING as f32);
        }
    }
}

/// Replaces values by their hyperbolic tangents, to within 3e-7: with the standard library's a step of six layers takes half as long again.
struct Tanh<'a>(&'a mut [f32]);

impl Kernel for Tanh<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        // Added to a number, it leaves the nearest integer in the low bits.
        const INTEGERS: f32 = (3 << 22) as f32;
        for value in self.0 {
            // exp(2 value) = 2^whole · exp(rest), |rest| <= ln 2 / 2.
            let power = (2.0 * std::f32::consts::LOG2_E * *value).clamp(-40.0, 40.0);
            let whole = power + INTEGERS;
            let rest = std::f32::consts::LN_2 * (power - (whole - INTEGERS));
            let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
            let exp = series.iter().fold(0.0, |sum, term| sum * rest + term);
            let exp = exp * f32::from_bits((whole.to_bits() << 23).wrapping_add(1f32.to_bits()));
            *value = 1.0 - 2.0 / (1.0 + exp);
        }
    }
}

/// An autoencoder, however far it has learned.
pub struct Autoencoder {
    /// What it is made from.
    pub plan: Plan,
    /// Minibatches that it has learned from.
    pub step: u64,
    layers: Vec<Layer>,
    cpu: Cpu,
}

impl Autoencoder {
    /// With random weights.
    pub fn new(cpu: Cpu, plan: Plan) -> Autoencoder {
        let layer = |(number, (from, to)): (usize, (usize, usize))| {
            let mut rng = rng::stream(plan.seed, "autoencoder", number as u64);
            let normal = Normal::new(0.0, (2.0 / (from + to) as f32).sqrt()).expect("a finite deviation");
            let mut weights: Vec<f32> = (0..from * to).map(|_| normal.sample(&mut rng)).collect();
            weights.resize((from + 1) * to, 0.0);
            let zeros = vec![0.0; weights.len()];
            Layer { weights, mean: zeros.clone(), square: zeros }
        };
        let layers = plan.layers().enumerate().map(layer).collect();
        Autoencoder { plan, step: 0, layers, cpu }
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
            let right = MatRef::from_row_major_slice(weights, from, to);
            let mut out = biases.repeat(rows);
            let parts = out.par_chunks_mut(PICTURES * to).zip(all[number].par_chunks(PICTURES * from));
            parts.for_each(|(out, below)| {
                let rows = below.len() / from;
                let left = MatRef::from_row_major_slice(below, rows, from);
                product(out, (rows, to), Accum::Add, left, right);
                if number + 1 < 2 * self.plan.depth {
                    self.cpu.run(Tanh(out));
                }
            });
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

    /// Squared distance from pictures to what is made of them, mean over pictures. Hands the gradient of it, layer after layer from the
    /// last, to `take`: number of the layer, some of its weights, which may be changed as they are no longer needed, and their gradient.
    /// These parts do not depend on the number of threads.
    fn back(&mut self, pictures: &[f32], take: impl Fn(usize, &mut Part<'_>, &[f32]) + Sync) -> f64 {
        let rows = pictures.len() / self.plan.inputs;
        let values = self.forward(pictures, self.layers.len());
        let output = values.last().expect("at least the pictures");
        let mut delta: Vec<f32> = output.iter().zip(pictures).map(|(out, x)| out - x).collect();
        let error = delta.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>() / rows as f64;
        delta.iter_mut().for_each(|d| *d *= 2.0 / rows as f32);
        let sizes: Vec<(usize, usize)> = self.plan.layers().collect();
        for (number, &(from, to)) in sizes.iter().enumerate().rev() {
            let below = &values[number];
            let mut next = vec![0.0; if number > 0 { rows * from } else { 0 }];
            let weights = MatRef::from_row_major_slice(&self.layers[number].weights[..from * to], from, to);
            let parts = next.par_chunks_mut(PICTURES * from).zip(delta.par_chunks(PICTURES * to));
            parts.zip(below.par_chunks(PICTURES * from)).for_each(|((next, delta), values)| {
                let rows = delta.len() / to;
                let back = MatRef::from_row_major_slice(delta, rows, to);
                product(next, (rows, from), Accum::Replace, back, weights.transpose());
                next.iter_mut().zip(values).for_each(|(d, h)| *d *= 1.0 - h * h);
            });
            let (back, below) = (
                MatRef::from_row_major_slice(&delta, rows, to),
                MatRef::from_row_major_slice(below, rows, from).transpose(),
            );
            let height = (WEIGHTS / to).max(1);
            self.layers[number].parts_of(height * to).enumerate().for_each(|(part, mut layer)| {
                let first = part * height;
                let mut gradient = vec![0.0; layer.weights.len()];
                let high = height.min(from.saturating_sub(first));
                let (weights, biases) = gradient.split_at_mut(high * to);
                if high > 0 {
                    product(weights, (high, to), Accum::Replace, below.subrows(first, high), back);
                }
                // The last row of all.
                if !biases.is_empty() {
                    let add = |row: &[f32]| biases.iter_mut().zip(row).for_each(|(b, d)| *b += d);
                    delta.chunks_exact(to).for_each(add);
                }
                take(number, &mut layer, &gradient);
            });
            delta = next;
        }
        error
    }

    /// Learns from a minibatch, pictures one a row; returns the error before, mean squared distance of a picture.
    pub fn learn(&mut self, pictures: &[f32]) -> f64 {
        self.step += 1;
        let unbiased = |decay: f64| 1.0 - decay.powf(self.step as f64);
        let rate = (RATE * self.plan.schedule(self.step) / unbiased(DECAY.0)) as f32;
        let root = (1.0 / unbiased(DECAY.1).sqrt()) as f32;
        let cpu = self.cpu;
        self.back(pictures, |_, part, gradient| cpu.run(Adam { rate, root, part, gradient }))
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
            for (what, values) in layer.tensors() {
                tensors.push((format!("layer{}.{what}", number + 1), vec![from + 1, to], &values[..]));
            }
        }
        model::save(path, &self.plan, self.step, &tensors)
    }

    /// The one in a file, if there is a file and it was made from `plan`.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn load(cpu: Cpu, path: &Path, plan: &Plan) -> Result<Option<Autoencoder>> {
        let Some((step, mut tensors)) = model::load(path, plan)? else { return Ok(None) };
        let layer = |(number, (from, to)): (usize, (usize, usize))| -> Result<Layer> {
            let mut of = |what: &str| {
                model::take(path, &mut tensors, &format!("layer{}.{what}", number + 1), &[from + 1, to])
            };
            Ok(Layer { weights: of("weights")?, mean: of("mean")?, square: of("square")? })
        };
        let layers = plan.layers().enumerate().map(layer).collect::<Result<_>>()?;
        Ok(Some(Autoencoder { plan: plan.clone(), step, layers, cpu }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use std::fs;
    use std::sync::Mutex;

    fn cpu() -> Cpu {
        Cpu::detect().unwrap()
    }

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
    fn tanh_is_that_of_the_standard_library() {
        for cpu in Cpu::available() {
            let inputs: Vec<f32> =
                (-20_000..=20_000).map(|n| n as f32 * 1e-3).chain([-1e9, 0.0, 1e9]).collect();
            let mut got = inputs.clone();
            cpu.run(Tanh(&mut got));
            for (x, got) in inputs.iter().zip(got) {
                assert!((got - x.tanh()).abs() < 3e-7, "{cpu:?}: tanh {x} = {got}");
            }
        }
    }

    #[test]
    fn gradients_are_those_of_central_differences() {
        let mut net = Autoencoder::new(cpu(), plan(5, 2, 4));
        let shown = pictures(3, 5, 0);
        let gradients = Mutex::new(vec![Vec::new(); 4]);
        net.back(&shown, |layer, _, gradient| gradients.lock().unwrap()[layer].extend_from_slice(gradient));
        let gradients = gradients.into_inner().unwrap();
        for (layer, gradient) in gradients.iter().enumerate() {
            let largest = gradient.iter().fold(0f32, |max, g| max.max(g.abs()));
            for (at, &got) in gradient.iter().enumerate() {
                let was = net.layers[layer].weights[at];
                let mut error = |change: f32| {
                    net.layers[layer].weights[at] = was + change;
                    net.back(&shown, |_, _, _| ())
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
        assert!(Autoencoder::load(cpu(), &path, &plan).unwrap().is_none());
        let mut net = Autoencoder::new(cpu(), plan.clone());
        let mut first = 0.0;
        for step in 0..300 {
            if step == 100 {
                net.save(&path).unwrap();
            }
            let error = net.learn(&pictures(20, 12, step));
            first = if step == 0 { error } else { first };
        }
        let test = pictures(50, 12, 1000);
        let last = net.back(&test, |_, _, _| ());
        assert!(net.is_done() && last < 0.2 * first, "{first} {last}");
        let mut again = Autoencoder::load(cpu(), &path, &plan).unwrap().unwrap();
        assert_eq!(again.step, 100);
        for step in 100..300 {
            again.learn(&pictures(20, 12, step));
        }
        assert_eq!(again.encode(&test, 0..18), net.encode(&test, 0..18));
        let all = net.encode(&test, 0..18);
        assert_eq!((all.len(), &all[5 * 50..9 * 50]), (18 * 50, &net.encode(&test, 5..9)[..]));
        assert!(net.unexplained(&test) < 0.2);
        // One made otherwise is not it; and a damaged one is said to be so.
        assert!(Autoencoder::load(cpu(), &path, &Plan { seed: 4, ..plan.clone() }).unwrap().is_none());
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        let error = Autoencoder::load(cpu(), &path, &plan).err().unwrap().to_string();
        assert!(error.contains("model.safetensors: damaged"), "{error}");
    }
}
