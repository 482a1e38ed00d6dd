//! Read-outs that learn by gradients, together with the network or without it: what they make of a minibatch's maps, and the gradients.
//!
//! All see one sublayer, maps `[row, column, channel, lane]`, each channel brought to mean 0 and deviation 1. A *full* head has a weight for
//! each class and value. A *mean* head sees the mean of each map. An *attention* head sees a weighted mean of the positions: position p
//! weighs `softmax over p of v · tanh(U x_p + b)` (additive attention, Bahdanau et al. 2015, with one query that is learned), so what it
//! looks at can be seen.

use faer::{Accum, MatRef};
use ndarray_rand::rand_distr::{Distribution, StandardNormal};
use rand::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::geometry::MapShape;
use crate::kernels::filter::MAP_PAD;
use crate::kernels::product;
use crate::network::{At, WeightUpdate, Weights};
use crate::rng;

/// How a head puts the positions of a map together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Each position has weights of its own.
    Full,
    /// Their mean.
    Mean,
    /// Their mean, weighted by attention with so many hidden units.
    Attention(usize),
}

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// The negative logarithm of the true class's probability by softmax.
    Softmax,
    /// `Σ |f − t|^p / p` over the classes' numbers f, with target t 1 for the true class and 0 for others, and this p.
    Power(f64),
}

/// Weights of a head, `[input, output]` with outputs padded by zeros, and what belongs to each.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Its name in files.
    pub name: &'static str,
    /// Inputs.
    pub inputs: usize,
    /// Outputs, without padding.
    pub outputs: usize,
    /// `[input, output]`.
    pub values: Vec<f32>,
    /// Of the minibatch.
    pub gradient: Vec<f32>,
    /// What the optimiser remembers.
    sums: Vec<f32>,
}

impl Parameter {
    fn zeros(name: &'static str, inputs: usize, outputs: usize) -> Parameter {
        let zeros = vec![0.0; inputs * outputs.next_multiple_of(MAP_PAD)];
        Parameter { name, inputs, outputs, values: zeros.clone(), gradient: zeros.clone(), sums: zeros }
    }

    /// Draws its values from a normal distribution of this deviation.
    fn draw(&mut self, deviation: f32, rng: &mut impl Rng) {
        let padded = self.padded();
        for row in self.values.chunks_exact_mut(padded) {
            for value in &mut row[..self.outputs] {
                let draw: f32 = StandardNormal.sample(rng);
                *value = deviation * draw;
            }
        }
    }

    /// Outputs with padding.
    pub fn padded(&self) -> usize {
        self.outputs.next_multiple_of(MAP_PAD)
    }

    fn matrix(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.values, self.inputs, self.padded())
    }

    fn update(&mut self, number: usize, step: &dyn WeightUpdate) {
        let at = At { stage: 0, block: 0, position: number, which: Weights::Encoder, tied: false };
        let padded = self.padded();
        step.update(at, padded, &mut self.values, &mut self.sums, &mut self.gradient);
    }
}

/// A head and its memory for a minibatch.
pub struct Head {
    /// How it puts positions together.
    pub kind: Kind,
    /// The maps that it sees.
    pub shape: MapShape,
    /// Classes.
    pub classes: usize,
    /// What it minimises.
    pub criterion: Criterion,
    /// Mean of each channel, and the inverse of its deviation.
    pub standard: Vec<(f32, f32)>,
    /// Its weights.
    pub parameters: Vec<Parameter>,
    /// Standardised maps.
    x: Vec<f32>,
    /// Gradient with respect to them.
    dx: Vec<f32>,
    /// What the classes' weights see: `[input, lane]`.
    seen: Vec<f32>,
    dseen: Vec<f32>,
    /// `[class, lane]`: numbers, then probabilities, then gradients.
    numbers: Vec<f32>,
    /// `[position, hidden, lane]`.
    hidden: Vec<f32>,
    /// `[position, lane]`.
    attention: Vec<f32>,
}

/// What a minibatch came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss {
    /// Mean of what is minimised.
    pub value: f64,
    /// Share that is right.
    pub accuracy: f64,
}

const CLASSES: usize = 0;
const BIAS: usize = 1;
const HIDDEN: usize = 2;
const HIDDEN_BIAS: usize = 3;
const QUERY: usize = 4;

impl Head {
    /// All weights 0, but for those of attention, which are drawn from `seed`: small, so that it begins as a mean.
    pub fn new(kind: Kind, shape: MapShape, classes: usize, standard: Vec<(f32, f32)>, seed: u64) -> Head {
        assert_eq!(standard.len(), shape.channels, "a mean and a deviation of each channel");
        let inputs = if kind == Kind::Full { shape.len() } else { shape.channels };
        let mut parameters =
            vec![Parameter::zeros("classes", inputs, classes), Parameter::zeros("bias", 1, classes)];
        if let Kind::Attention(hidden) = kind {
            let mut rng = rng::stream(seed, "attention", 0);
            let mut drawn = |name, inputs: usize, outputs: usize, scale: f32| {
                let mut parameter = Parameter::zeros(name, inputs, outputs);
                parameter.draw(scale, &mut rng);
                parameter
            };
            let scale = (shape.channels as f32).powf(-0.5);
            parameters.push(drawn("hidden", shape.channels, hidden, scale));
            parameters.push(Parameter::zeros("hidden_bias", 1, hidden));
            parameters.push(drawn("query", 1, hidden, 0.1 * (hidden as f32).powf(-0.5)));
        }
        Head {
            kind,
            shape,
            classes,
            criterion: Criterion::Softmax,
            standard,
            parameters,
            x: Vec::new(),
            dx: Vec::new(),
            seen: Vec::new(),
            dseen: Vec::new(),
            numbers: Vec::new(),
            hidden: Vec::new(),
            attention: Vec::new(),
        }
    }

    /// Draws the classes' weights anew, so that their numbers vary by about `deviation` for standardised values that know nothing of each
    /// other.
    pub fn draw(&mut self, deviation: f32, seed: u64) {
        let of_classes = &mut self.parameters[CLASSES];
        let scale = deviation * (of_classes.inputs as f32).powf(-0.5);
        of_classes.draw(scale, &mut rng::stream(seed, "head", 0));
    }

    fn positions(&self) -> usize {
        self.shape.rows * self.shape.cols
    }

    /// Multiplications and additions of a step for each picture.
    pub fn flops(&self) -> u64 {
        let of = |parameter: &Parameter| {
            let times = if parameter.name == "hidden" { self.positions() } else { 1 };
            6 * (parameter.inputs * parameter.outputs * times) as u64
        };
        self.parameters.iter().map(of).sum()
    }

    /// Numbers of the classes, `[class, lane]`, from maps of so many lanes; keeps what [`gradient`](Self::gradient) needs.
    pub fn forward(&mut self, maps: &[f32], lanes: usize) -> &[f32] {
        let (channels, positions) = (self.shape.channels, self.positions());
        assert_eq!(maps.len(), self.shape.len() * lanes, "maps of another size");
        self.x.resize(maps.len(), 0.0);
        let standard = &self.standard;
        let rows = self.x.par_chunks_exact_mut(channels * lanes).zip(maps.par_chunks_exact(channels * lanes));
        rows.for_each(|(x, maps)| {
            let channels = x.chunks_exact_mut(lanes).zip(maps.chunks_exact(lanes)).zip(standard);
            channels.for_each(|((x, maps), &(mean, inverse))| {
                x.iter_mut().zip(maps).for_each(|(x, value)| *x = (value - mean) * inverse);
            });
        });
        match self.kind {
            Kind::Full => {}
            Kind::Mean => {
                self.attention.clear();
                self.attention.resize(positions * lanes, 1.0 / positions as f32);
            }
            Kind::Attention(_) => self.attend(lanes),
        }
        if self.kind != Kind::Full {
            self.seen.clear();
            self.seen.resize(channels * lanes, 0.0);
            let positions = self.x.chunks_exact(channels * lanes).zip(self.attention.chunks_exact(lanes));
            for (x, weights) in positions {
                for (sum, x) in self.seen.chunks_exact_mut(lanes).zip(x.chunks_exact(lanes)) {
                    sum.iter_mut().zip(x).zip(weights).for_each(|((sum, x), weight)| *sum += weight * x);
                }
            }
        }
        let seen = if self.kind == Kind::Full { &self.x } else { &self.seen };
        let (parameter, bias) = (&self.parameters[CLASSES], &self.parameters[BIAS]);
        let padded = parameter.padded();
        self.numbers.clear();
        bias.values.iter().for_each(|&bias| self.numbers.extend(std::iter::repeat_n(bias, lanes)));
        // Pieces of the inputs, a fixed number: sums do not depend on threads.
        let piece = parameter.inputs.div_ceil(PIECES).max(1);
        let pieces: Vec<Vec<f32>> = parameter
            .values
            .par_chunks(piece * padded)
            .zip(seen.par_chunks(piece * lanes))
            .map(|(weights, seen)| {
                let (rows, mut out) = (seen.len() / lanes, vec![0.0; padded * lanes]);
                let weights = MatRef::from_row_major_slice(weights, rows, padded);
                let seen = MatRef::from_row_major_slice(seen, rows, lanes);
                product(&mut out, (padded, lanes), Accum::Replace, weights.transpose(), seen);
                out
            })
            .collect();
        for piece in pieces {
            self.numbers.iter_mut().zip(piece).for_each(|(sum, x)| *sum += x);
        }
        &self.numbers[..self.classes * lanes]
    }

    /// The weight of each position, `[position, lane]`, from standardised maps.
    fn attend(&mut self, lanes: usize) {
        let (channels, positions) = (self.shape.channels, self.positions());
        let [hidden, bias, query] = [HIDDEN, HIDDEN_BIAS, QUERY].map(|number| &self.parameters[number]);
        let padded = hidden.padded();
        self.hidden.resize(positions * padded * lanes, 0.0);
        self.attention.resize(positions * lanes, 0.0);
        let each = self.hidden.par_chunks_exact_mut(padded * lanes);
        let each = each
            .zip(self.attention.par_chunks_exact_mut(lanes))
            .zip(self.x.par_chunks_exact(channels * lanes));
        each.for_each(|((out, energy), x)| {
            let x = MatRef::from_row_major_slice(x, channels, lanes);
            product(out, (padded, lanes), Accum::Replace, hidden.matrix().transpose(), x);
            energy.fill(0.0);
            for ((row, bias), query) in out.chunks_exact_mut(lanes).zip(&bias.values).zip(&query.values) {
                row.iter_mut().zip(energy.iter_mut()).for_each(|(x, energy)| {
                    *x = (*x + bias).tanh();
                    *energy += query * *x;
                });
            }
        });
        let most = self.attention.chunks_exact(lanes).fold(vec![f32::MIN; lanes], |mut most, row| {
            most.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(*x));
            most
        });
        let mut sums = vec![0.0; lanes];
        for row in self.attention.chunks_exact_mut(lanes) {
            for ((x, most), sum) in row.iter_mut().zip(&most).zip(&mut sums) {
                *x = (*x - most).exp();
                *sum += *x;
            }
        }
        for row in self.attention.chunks_exact_mut(lanes) {
            row.iter_mut().zip(&sums).for_each(|(x, sum)| *x /= sum);
        }
    }

    /// The weight of each position, `[position, lane]`, in the last minibatch; none of a full head.
    pub fn weights_of_positions(&self) -> &[f32] {
        &self.attention
    }

    /// Loss of the minibatch that [`forward`](Self::forward) saw, of pictures in the first lanes with these classes; makes the gradients of
    /// all weights, and adds that with respect to the maps to `dmaps`, if it is given.
    pub fn gradient(&mut self, class: &[usize], lanes: usize, dmaps: Option<&mut [f32]>) -> Loss {
        let loss = self.compare(class, lanes);
        self.go_back(lanes, dmaps);
        loss
    }

    /// Adds to `dmaps` the derivative of one class's number with respect to the maps, for the picture of each lane by itself, after
    /// [`forward`](Self::forward).
    pub fn derivative(&mut self, class: usize, lanes: usize, dmaps: &mut [f32]) {
        self.numbers.fill(0.0);
        self.numbers[class * lanes..][..lanes].fill(1.0);
        self.go_back(lanes, Some(dmaps));
    }

    /// What the classes' weights see of the last minibatch, `[input, lane]`.
    pub fn seen(&self) -> &[f32] {
        if self.kind == Kind::Full { &self.x } else { &self.seen }
    }

    /// All gradients from that with respect to `numbers`.
    fn go_back(&mut self, lanes: usize, dmaps: Option<&mut [f32]>) {
        let (channels, padded) = (self.shape.channels, self.parameters[CLASSES].padded());
        let numbers = MatRef::from_row_major_slice(&self.numbers, padded, lanes);
        let bias = &mut self.parameters[BIAS].gradient;
        bias.iter_mut().zip(self.numbers.chunks_exact(lanes)).for_each(|(sum, row)| *sum = row.iter().sum());
        let seen = if self.kind == Kind::Full { &self.x } else { &self.seen };
        let full = self.kind == Kind::Full;
        let dseen = if full { &mut self.dx } else { &mut self.dseen };
        dseen.resize(seen.len(), 0.0);
        let Parameter { inputs, values, gradient, .. } = &mut self.parameters[CLASSES];
        let piece = inputs.div_ceil(PIECES).max(1);
        let pieces = gradient.par_chunks_mut(piece * padded).zip(seen.par_chunks(piece * lanes));
        let pieces = pieces.zip(values.par_chunks(piece * padded)).zip(dseen.par_chunks_mut(piece * lanes));
        let wanted = dmaps.is_some() || !full;
        pieces.for_each(|(((gradient, seen), weights), dseen)| {
            let rows = seen.len() / lanes;
            let seen = MatRef::from_row_major_slice(seen, rows, lanes);
            product(gradient, (rows, padded), Accum::Replace, seen, numbers.transpose());
            if wanted {
                let weights = MatRef::from_row_major_slice(weights, rows, padded);
                product(dseen, (rows, lanes), Accum::Replace, weights, numbers);
            }
        });
        if !full {
            self.spread(lanes, dmaps.is_some());
        }
        if let Some(dmaps) = dmaps {
            let standard = &self.standard;
            let rows =
                dmaps.par_chunks_exact_mut(channels * lanes).zip(self.dx.par_chunks_exact(channels * lanes));
            rows.for_each(|(dmaps, dx)| {
                let channels = dmaps.chunks_exact_mut(lanes).zip(dx.chunks_exact(lanes)).zip(standard);
                channels.for_each(|((dmaps, dx), &(_, inverse))| {
                    dmaps.iter_mut().zip(dx).for_each(|(sum, dx)| *sum += inverse * dx);
                });
            });
        }
    }

    /// Turns `numbers` into the gradient with respect to them of the mean loss; lanes without a picture have none.
    fn compare(&mut self, class: &[usize], lanes: usize) -> Loss {
        let (classes, count) = (self.classes, class.len());
        let mut loss = Loss::default();
        for lane in 0..lanes {
            let place = |class: usize| class * lanes + lane;
            let Some(&class) = class.get(lane) else {
                (0..self.numbers.len() / lanes).for_each(|row| self.numbers[place(row)] = 0.0);
                continue;
            };
            let rival =
                (0..classes).filter(|&c| c != class).map(|c| self.numbers[place(c)]).fold(f32::MIN, f32::max);
            let own = self.numbers[place(class)];
            loss.accuracy += f64::from(u8::from(own > rival)) / count as f64;
            let wanted = |c: usize| f32::from(u8::from(c == class));
            match self.criterion {
                Criterion::Softmax => {
                    let most = own.max(rival);
                    let sum: f32 = (0..classes).map(|c| (self.numbers[place(c)] - most).exp()).sum();
                    loss.value += (f64::from(sum).ln() - f64::from(own - most)) / count as f64;
                    for c in 0..classes {
                        let probability = (self.numbers[place(c)] - most).exp() / sum;
                        self.numbers[place(c)] = (probability - wanted(c)) / count as f32;
                    }
                }
                Criterion::Power(p) => {
                    for c in 0..classes {
                        let error = self.numbers[place(c)] - wanted(c);
                        loss.value += f64::from(error.abs()).powf(p) / p / count as f64;
                        let slope = error.abs().powf(p as f32 - 1.0).copysign(error);
                        self.numbers[place(c)] = slope / count as f32;
                    }
                }
            }
        }
        self.numbers[classes * lanes..].fill(0.0);
        loss
    }

    /// Gradients of attention, and of standardised maps if they are `wanted`, from that of what was seen.
    fn spread(&mut self, lanes: usize, wanted: bool) {
        let (channels, positions) = (self.shape.channels, self.positions());
        self.dx.resize(self.x.len(), 0.0);
        let (dseen, attention) = (&self.dseen, &self.attention);
        if wanted {
            let each = self.dx.par_chunks_exact_mut(channels * lanes).zip(attention.par_chunks_exact(lanes));
            each.for_each(|(dx, weights)| {
                for (dx, dseen) in dx.chunks_exact_mut(lanes).zip(dseen.chunks_exact(lanes)) {
                    let values = dx.iter_mut().zip(dseen).zip(weights);
                    values.for_each(|((dx, dseen), weight)| *dx = weight * dseen);
                }
            });
        }
        if !matches!(self.kind, Kind::Attention(_)) {
            return;
        }
        // With respect to each position's energy: its weight times by how much it is better than the mean.
        let mut denergy = vec![0.0; positions * lanes];
        let each = denergy.par_chunks_exact_mut(lanes).zip(self.x.par_chunks_exact(channels * lanes));
        each.for_each(|(out, x)| {
            for (x, dseen) in x.chunks_exact(lanes).zip(dseen.chunks_exact(lanes)) {
                out.iter_mut().zip(x).zip(dseen).for_each(|((sum, x), dseen)| *sum += x * dseen);
            }
        });
        let mut mean = vec![0.0; lanes];
        for (row, weights) in denergy.chunks_exact(lanes).zip(attention.chunks_exact(lanes)) {
            mean.iter_mut().zip(row).zip(weights).for_each(|((sum, x), weight)| *sum += x * weight);
        }
        for (row, weights) in denergy.chunks_exact_mut(lanes).zip(attention.chunks_exact(lanes)) {
            row.iter_mut().zip(&mean).zip(weights).for_each(|((x, mean), weight)| *x = weight * (*x - mean));
        }
        let padded = self.parameters[HIDDEN].padded();
        let mut dquery = vec![0.0; padded];
        for (hidden, denergy) in self.hidden.chunks_exact(padded * lanes).zip(denergy.chunks_exact(lanes)) {
            for (sum, hidden) in dquery.iter_mut().zip(hidden.chunks_exact(lanes)) {
                *sum += hidden.iter().zip(denergy).map(|(hidden, denergy)| hidden * denergy).sum::<f32>();
            }
        }
        // `hidden` becomes the gradient with respect to what the hyperbolic tangent was taken of.
        let query = &self.parameters[QUERY].values;
        let weights = self.parameters[HIDDEN].matrix();
        let each = self.hidden.par_chunks_exact_mut(padded * lanes).zip(denergy.par_chunks_exact(lanes));
        each.zip(self.dx.par_chunks_exact_mut(channels * lanes)).for_each(|((hidden, denergy), dx)| {
            for (hidden, query) in hidden.chunks_exact_mut(lanes).zip(query) {
                let values = hidden.iter_mut().zip(denergy);
                values.for_each(|(hidden, denergy)| *hidden = query * denergy * (1.0 - *hidden * *hidden));
            }
            if wanted {
                let hidden = MatRef::from_row_major_slice(hidden, padded, lanes);
                product(dx, (channels, lanes), Accum::Add, weights, hidden);
            }
        });
        let mut dhidden = vec![0.0; channels * padded];
        let mut dbias = vec![0.0; padded];
        let each = self.x.chunks_exact(channels * lanes).zip(self.hidden.chunks_exact(padded * lanes));
        for (x, hidden) in each {
            dbias
                .iter_mut()
                .zip(hidden.chunks_exact(lanes))
                .for_each(|(sum, row)| *sum += row.iter().sum::<f32>());
            let x = MatRef::from_row_major_slice(x, channels, lanes);
            let hidden = MatRef::from_row_major_slice(hidden, padded, lanes);
            product(&mut dhidden, (channels, padded), Accum::Add, x, hidden.transpose());
        }
        self.parameters[QUERY].gradient = dquery;
        self.parameters[HIDDEN].gradient = dhidden;
        self.parameters[HIDDEN_BIAS].gradient = dbias;
    }

    /// Changes all weights by their gradients; `step` is told their number as that of a position.
    pub fn update(&mut self, step: &dyn WeightUpdate) {
        let all = self.parameters.iter_mut().enumerate();
        all.for_each(|(number, parameter)| parameter.update(number, step));
    }
}

/// Pieces that the inputs of the classes' weights are divided into.
const PIECES: usize = 16;

#[cfg(test)]
mod tests;
