//! Linear classifiers by convex optimisation: softmax, or one logistic regression for each class against all others.
//!
//! Minimised is `mean loss + λ/2 ‖W‖²`, biases free: with n pictures, scikit-learn's `C` is `1/(λ n)`. It is done by L-BFGS, for all folds
//! of a cross-validation and for all pictures together at the same time: each pass over the features serves all of these models. λ goes
//! from strong to weak, each beginning where the last ended.

use std::cell::RefCell;

use argmin::core::{CostFunction, Executor, Gradient, State};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use faer::{Accum, MatRef};
use ndarray::{Array2, ArrayView2};
use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::labels::by_class;
use crate::error::{Error, Result};
use crate::kernels::product;
use crate::rng;

/// What is made of the numbers that a picture gets for each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Probabilities by softmax, learned together.
    Softmax,
    /// For each class by itself the probability that it is this and no other (one-versus-all).
    Logistic,
}

/// λ that are tried, from the strongest.
pub const LAMBDAS: [f64; 11] = [10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4];

/// How to fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Which classifier.
    pub method: Method,
    /// λ to try; of several the one with the best accuracy in cross-validation is taken. From the strongest it goes on only as long as that
    /// grows.
    pub lambdas: Vec<f64>,
    /// Parts of the pictures for cross-validation.
    pub folds: usize,
    /// Seed of these parts.
    pub seed: u64,
    /// Where a fit ends: the norm of the gradient as a share of that at weights 0.
    pub tolerance: f64,
    /// Most steps for each λ.
    pub steps: u64,
}

/// What a λ came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// It.
    pub lambda: f64,
    /// Accuracy on pictures that were not fitted, over all folds; none without folds.
    pub accuracy: Option<f64>,
    /// Mean negative logarithm of the true class's probability on them.
    pub log_loss: Option<f64>,
    /// What was minimised, of the model of all pictures.
    pub objective: f64,
    /// Steps of the optimiser.
    pub steps: u64,
    /// Whether it ended before the most steps.
    pub converged: bool,
}

/// A classifier, fitted.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// `[class, feature]`, of the features as they are.
    pub weights: Array2<f32>,
    /// `[class]`.
    pub bias: Vec<f32>,
    /// The λ taken.
    pub lambda: f64,
    /// All that were tried.
    pub tried: Vec<Tried>,
}

/// Probabilities of the classes from their numbers.
pub fn probabilities(method: Method, numbers: &mut [f32]) {
    let most = numbers.iter().copied().fold(f32::MIN, f32::max);
    let value = |x: f32| match method {
        Method::Softmax => (x - most).exp(),
        Method::Logistic => 1.0 / (1.0 + (-x).exp()),
    };
    numbers.iter_mut().for_each(|x| *x = value(*x));
    let sum: f32 = numbers.iter().sum::<f32>().max(f32::MIN_POSITIVE);
    numbers.iter_mut().for_each(|x| *x /= sum);
}

/// Fits classifiers to `features`, `[picture, feature]`, whose classes are `class`, numbers below `classes`. Features are brought to mean 0
/// and deviation 1 in place; the weights returned are for features as they were. `progress` is told of each λ done.
///
/// # Errors
/// A class has too few pictures for cross-validation, or the optimiser fails.
pub fn fit(
    features: &mut Array2<f32>,
    class: &[usize],
    classes: usize,
    settings: &Settings,
    progress: impl Fn(&Tried),
) -> Result<Fitted> {
    assert_eq!(features.nrows(), class.len(), "a class for each picture");
    let folds = if settings.lambdas.len() > 1 { folds(class, settings)? } else { Vec::new() };
    let (mean, scale) = standardise(features);
    let problem = Problem::new(features.view(), class, classes, settings, folds);
    let mut lambdas = settings.lambdas.clone();
    lambdas.sort_by(|a, b| b.total_cmp(a));
    let (mut tried, mut at) = (Vec::new(), vec![0.0; problem.len()]);
    let tolerance = settings.tolerance * norm(&problem.value(&at, 0.0).1);
    let mut best: Option<(f64, f64, Vec<f64>)> = None;
    let mut since_best = 0;
    for lambda in lambdas {
        let (found, outcome) = problem.minimise(lambda, at, (tolerance, settings.steps))?;
        progress(&outcome);
        tried.push(outcome);
        at = found;
        let score = outcome.accuracy.unwrap_or(0.0);
        since_best += 1;
        if best.as_ref().is_none_or(|(most, ..)| score > *most) {
            best = Some((score, lambda, problem.of_all(&at)));
            since_best = 0;
        }
        if since_best == 2 {
            break;
        }
    }
    let (_, lambda, weights) = best.expect("at least one λ");
    let (width, mut bias) = (features.ncols(), vec![0.0; classes]);
    let mut scaled = Array2::zeros((classes, width));
    for class in 0..classes {
        let mut shift = weights[width * classes + class];
        for feature in 0..width {
            let weight = weights[feature * classes + class] * f64::from(scale[feature]);
            shift -= weight * mean[feature];
            scaled[[class, feature]] = weight as f32;
        }
        bias[class] = shift as f32;
    }
    Ok(Fitted { weights: scaled, bias, lambda, tried })
}

fn norm(gradient: &[f64]) -> f64 {
    gradient.iter().map(|g| g * g).sum::<f64>().sqrt()
}

/// The fold of each picture: each class is dealt out evenly.
fn folds(class: &[usize], settings: &Settings) -> Result<Vec<usize>> {
    let mut fold = vec![0; class.len()];
    for (number, mut of_class) in by_class(class).into_iter().enumerate() {
        if of_class.len() == 1 {
            let problem =
                "a class has only one picture: cross-validation needs two of each, or give --lambda";
            return Err(Error::Mismatch(problem.into()));
        }
        of_class.shuffle(&mut rng::stream(settings.seed, "folds", number as u64));
        of_class.into_iter().enumerate().for_each(|(at, picture)| fold[picture] = at % settings.folds);
    }
    Ok(fold)
}

/// Brings each column to mean 0 and deviation 1; one that does not vary becomes 0. Returns what was subtracted, and then multiplied by.
fn standardise(features: &mut Array2<f32>) -> (Vec<f64>, Vec<f32>) {
    let (rows, width) = (features.nrows(), features.ncols());
    let all = features.as_slice_mut().expect("rows one after the other");
    let sums = |of: &(dyn Fn(usize, f32) -> f64 + Sync), all: &[f32]| {
        let add = |mut sums: Vec<f64>, row: &[f32]| {
            sums.iter_mut().zip(row).enumerate().for_each(|(at, (sum, &x))| *sum += of(at, x));
            sums
        };
        // A fixed number of parts, so that sums do not depend on threads.
        let part = rows.div_ceil(PARTS) * width;
        let parts: Vec<Vec<f64>> =
            all.par_chunks(part).map(|part| part.chunks_exact(width).fold(vec![0.0; width], add)).collect();
        let total = |mut sums: Vec<f64>, part: Vec<f64>| {
            sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
            sums
        };
        parts.into_iter().fold(vec![0.0; width], total)
    };
    let mean: Vec<f64> = sums(&|_, x| f64::from(x), all).iter().map(|sum| sum / rows as f64).collect();
    let squares = sums(&|at, x| (f64::from(x) - mean[at]).powi(2), all);
    let inverse = |(square, mean): (f64, &f64)| {
        let deviation = (square / rows as f64).sqrt();
        if deviation > 1e-6 * mean.abs().max(1e-30) { (1.0 / deviation) as f32 } else { 0.0 }
    };
    let scale: Vec<f32> = squares.into_iter().zip(&mean).map(inverse).collect();
    all.par_chunks_exact_mut(width).for_each(|row| {
        let values = row.iter_mut().zip(&mean).zip(&scale);
        values.for_each(|((x, mean), scale)| *x = (f64::from(*x) - mean) as f32 * scale);
    });
    (mean, scale)
}

/// Parts that pictures are summed in.
const PARTS: usize = 16;

/// Pictures that are worked on at a time: enough that the weights of all models, which each such piece reads and whose gradient it adds to,
/// pass by seldom; few enough that features stay in the cache between the two products that need them.
const TOGETHER: usize = 128;

/// The models of all folds, and that of all pictures, which is the last.
struct Problem<'a> {
    features: ArrayView2<'a, f32>,
    class: &'a [usize],
    classes: usize,
    method: Method,
    /// The fold of each picture; none without cross-validation.
    fold: Vec<usize>,
    models: usize,
    /// Pictures that each model is fitted to.
    counts: Vec<usize>,
}

/// What a pass over all pictures gives.
struct Pass {
    /// Loss of each model on its pictures, a sum.
    losses: Vec<f64>,
    /// `[feature and bias, model, class]`.
    gradient: Vec<f32>,
    /// Of pictures that were not fitted: those that are right, and the sum of their log-losses.
    right: usize,
    log_loss: f64,
}

impl<'a> Problem<'a> {
    fn new(
        features: ArrayView2<'a, f32>,
        class: &'a [usize],
        classes: usize,
        settings: &Settings,
        fold: Vec<usize>,
    ) -> Problem<'a> {
        let of_fold = |number: usize| class.len() - fold.iter().filter(|&&fold| fold == number).count();
        let folds = fold.iter().max().map_or(0, |most| most + 1);
        let counts: Vec<usize> = (0..folds).map(of_fold).chain([class.len()]).collect();
        let (method, models) = (settings.method, counts.len());
        Problem { features, class, classes, method, fold, models, counts }
    }

    /// Numbers of all models: `[feature and bias, model, class]`.
    fn len(&self) -> usize {
        (self.features.ncols() + 1) * self.models * self.classes
    }

    /// Those of the model of all pictures.
    fn of_all(&self, numbers: &[f64]) -> Vec<f64> {
        let row = self.models * self.classes;
        numbers.chunks_exact(row).flat_map(|row| row[row.len() - self.classes..].to_vec()).collect()
    }

    fn pass(&self, numbers: &[f32]) -> Pass {
        let (width, across) = (self.features.ncols(), self.models * self.classes);
        let all = self.features.as_slice().expect("rows one after the other");
        let rows = self.class.len().div_ceil(PARTS);
        let parts: Vec<Pass> = (0..PARTS)
            .into_par_iter()
            .map(|part| {
                let (first, last) =
                    ((part * rows).min(self.class.len()), ((part + 1) * rows).min(self.class.len()));
                let mut pass = Pass {
                    losses: vec![0.0; self.models],
                    gradient: vec![0.0; (width + 1) * across],
                    right: 0,
                    log_loss: 0.0,
                };
                let mut values = Vec::new();
                for from in (first..last).step_by(TOGETHER) {
                    let count = TOGETHER.min(last - from);
                    let features =
                        MatRef::from_row_major_slice(&all[from * width..][..count * width], count, width);
                    values.clear();
                    (0..count).for_each(|_| values.extend_from_slice(&numbers[width * across..]));
                    let weights = MatRef::from_row_major_slice(&numbers[..width * across], width, across);
                    product(&mut values, (count, across), Accum::Add, features, weights);
                    for (at, values) in values.chunks_exact_mut(across).enumerate() {
                        self.compare(from + at, values, &mut pass);
                    }
                    let differences = MatRef::from_row_major_slice(&values, count, across);
                    let (of_weights, of_bias) = pass.gradient.split_at_mut(width * across);
                    product(of_weights, (width, across), Accum::Add, features.transpose(), differences);
                    for row in values.chunks_exact(across) {
                        of_bias.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                    }
                }
                pass
            })
            .collect();
        let add = |mut sum: Pass, part: Pass| {
            sum.losses.iter_mut().zip(part.losses).for_each(|(sum, x)| *sum += x);
            sum.gradient.par_iter_mut().zip(part.gradient).for_each(|(sum, x)| *sum += x);
            sum.right += part.right;
            sum.log_loss += part.log_loss;
            sum
        };
        parts.into_iter().reduce(add).expect("there are parts")
    }

    /// Turns a picture's numbers into the gradient with respect to them, of each model's mean loss; adds to the losses.
    fn compare(&self, picture: usize, values: &mut [f32], pass: &mut Pass) {
        let class = self.class[picture];
        for (model, numbers) in values.chunks_exact_mut(self.classes).enumerate() {
            if self.fold.get(picture) == Some(&model) {
                let rival = (0..numbers.len()).filter(|&other| other != class).map(|other| numbers[other]);
                pass.right += usize::from(rival.fold(f32::MIN, f32::max) < numbers[class]);
                probabilities(self.method, numbers);
                pass.log_loss -= f64::from(numbers[class].max(1e-30)).ln();
                numbers.fill(0.0);
                continue;
            }
            let share = 1.0 / self.counts[model] as f32;
            match self.method {
                Method::Softmax => {
                    let most = numbers.iter().copied().fold(f32::MIN, f32::max);
                    let of_class = f64::from(numbers[class] - most);
                    numbers.iter_mut().for_each(|x| *x = (*x - most).exp());
                    let sum: f32 = numbers.iter().sum();
                    pass.losses[model] += f64::from(sum).ln() - of_class;
                    numbers.iter_mut().for_each(|x| *x *= share / sum);
                    numbers[class] -= share;
                }
                Method::Logistic => {
                    for (other, x) in numbers.iter_mut().enumerate() {
                        let is_it = other == class;
                        // ln(1 + exp(∓x)), without overflow.
                        let margin = if is_it { -*x } else { *x };
                        pass.losses[model] += f64::from(margin.max(0.0) + (-margin.abs()).exp().ln_1p());
                        *x = share * (1.0 / (1.0 + (-*x).exp()) - f32::from(u8::from(is_it)));
                    }
                }
            }
        }
    }

    /// What is minimised for all models together, the gradient of it, and what else the pass gives.
    fn value(&self, numbers: &[f64], lambda: f64) -> (f64, Vec<f64>, Pass) {
        let rounded: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
        let pass = self.pass(&rounded);
        let weights = self.features.ncols() * self.models * self.classes;
        let square: f64 = numbers[..weights].iter().map(|x| x * x).sum();
        let losses = pass.losses.iter().zip(&self.counts);
        let loss = losses.map(|(loss, &count)| loss / count as f64).sum::<f64>() + lambda / 2.0 * square;
        let decay = |(at, (&g, &x)): (usize, (&f32, &f64))| {
            f64::from(g) + if at < weights { lambda * x } else { 0.0 }
        };
        (loss, pass.gradient.iter().zip(numbers).enumerate().map(decay).collect(), pass)
    }

    fn minimise(
        &self,
        lambda: f64,
        start: Vec<f64>,
        (tolerance, steps): (f64, u64),
    ) -> Result<(Vec<f64>, Tried)> {
        let failed = |e: argmin::core::Error| Error::Mismatch(format!("the fit at λ = {lambda} failed: {e}"));
        let solver = LBFGS::new(MoreThuenteLineSearch::new(), 10);
        let solver =
            solver.with_tolerance_grad(tolerance).and_then(|solver| solver.with_tolerance_cost(1e-12));
        let objective = Objective { problem: self, lambda, last: RefCell::new(None) };
        let run = Executor::new(objective, solver.map_err(failed)?)
            .configure(|state| state.param(start).max_iters(steps))
            .run()
            .map_err(failed)?;
        let found = run.state().get_best_param().expect("it began somewhere").clone();
        let (_, _, pass) = self.value(&found, lambda);
        let last = self.of_all(&found);
        let square: f64 = last[..self.features.ncols() * self.classes].iter().map(|x| x * x).sum();
        let all = pass.losses[self.models - 1] / self.class.len() as f64;
        let share = |sum: f64| (self.models > 1).then(|| sum / self.class.len() as f64);
        let tried = Tried {
            lambda,
            accuracy: share(pass.right as f64),
            log_loss: share(pass.log_loss),
            objective: all + lambda / 2.0 * square,
            steps: run.state().get_iter(),
            converged: run.state().get_iter() < steps,
        };
        Ok((found, tried))
    }
}

/// For argmin, which asks for value and gradient of one point by turns: both are made at once.
struct Objective<'a, 'b> {
    problem: &'a Problem<'b>,
    lambda: f64,
    last: RefCell<Option<Point>>,
}

struct Point {
    at: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

impl Objective<'_, '_> {
    fn at<T>(&self, point: &[f64], take: impl FnOnce(&Point) -> T) -> T {
        let mut last = self.last.borrow_mut();
        if last.as_ref().is_none_or(|known| known.at != point) {
            let (value, gradient, _) = self.problem.value(point, self.lambda);
            *last = Some(Point { at: point.to_vec(), value, gradient });
        }
        take(last.as_ref().expect("just made"))
    }
}

impl CostFunction for Objective<'_, '_> {
    type Param = Vec<f64>;
    type Output = f64;
    fn cost(&self, point: &Vec<f64>) -> Result<f64, argmin::core::Error> {
        Ok(self.at(point, |point| point.value))
    }
}

impl Gradient for Objective<'_, '_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;
    fn gradient(&self, point: &Vec<f64>) -> Result<Vec<f64>, argmin::core::Error> {
        Ok(self.at(point, |point| point.gradient.clone()))
    }
}

#[cfg(test)]
mod tests;
