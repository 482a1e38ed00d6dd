//! `striate probe ntk`: the tangent kernel while a network learns labels, and what a linear model in that kernel would do (Jacot et al. 2018).
//!
//! A network whose kernel stays as it is learns as kernel regression does. One that learns features moves its kernel towards the labels.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use super::regression::{Ridge, Spectrum, right, targets};
use super::tangent::{Rates, Tangent, tangent};
use crate::classify::tune::{Lesson, Settings, Tuner};
use crate::dataset::{Dataset, available_memory};
use crate::error::{Error, Result};
use crate::network::Network;
use crate::network::preprocess::{Inputs, Whitening};

/// A place in the spectrum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Number of the eigenvalue, the largest is 1.
    pub rank: usize,
    /// It, as a share of all together.
    pub eigenvalue: f64,
    /// Share of the centred labels that lies along the eigenvectors up to this.
    pub labels: f64,
}

/// How good an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Right {
    /// Of the pictures that were learned from.
    pub train: f64,
    /// Of others, if there are any.
    pub test: Option<f64>,
}

/// The kernel at one moment of learning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Steps done.
    pub step: u64,
    /// The network's own answers.
    pub network: Right,
    /// What kernel regression in the kernel of this moment answers.
    pub regression: Ridge,
    /// Share of the kernel's trace that comes from the head; the rest comes from encoders.
    pub head_share: f64,
    /// `<Θ, y yᵀ> / (‖Θ‖ ‖y yᵀ‖)` with centred labels y.
    pub alignment: f64,
    /// `‖Θ − Θ₀‖ / ‖Θ₀‖`: how far it is from that of the beginning.
    pub drift: f64,
    /// `1 − <Θ, Θ₀> / (‖Θ‖ ‖Θ₀‖)`: how much of that is not only growth.
    pub turn: f64,
    /// `exp` of the entropy of the eigenvalues' shares.
    pub effective_rank: f64,
    /// Eigenvalues at ranks that grow by about a third.
    pub spectrum: Vec<Place>,
}

/// What to do.
pub struct Plan<'a> {
    /// How to tune.
    pub settings: &'a Settings,
    /// Deviation of the classes' numbers before the first step. Theory has 1: the larger it is, the more encoders count, and the less the
    /// kernel moves. With 0 the first kernel is that of the head alone.
    pub deviation: f32,
    /// Kernels that are made.
    pub moments: usize,
}

/// Labelled pictures: those to learn from, and others to test on.
pub struct Pictures<'a> {
    /// The pictures to learn from with their classes.
    pub train: (&'a Dataset, &'a [usize], &'a [usize]),
    /// Others.
    pub test: Option<(&'a Dataset, &'a [usize], &'a [usize])>,
    /// Number of classes.
    pub classes: usize,
}

/// When the kernel is made: before the first step, and then at steps each three times the one before, the last when all are done.
pub fn moments(steps: u64, count: usize) -> Vec<u64> {
    let mut moments: Vec<u64> = (0..count as u32 - 1).map(|at| steps / 3u64.saturating_pow(at)).collect();
    moments.push(0);
    moments.reverse();
    moments.dedup();
    moments
}

/// Tunes a network on some pictures, each given by its number in a dataset and with the class of all of that dataset, and makes its kernel at
/// some moments. `network` changes in place, and needs room for the optimiser's sums, all 0. `progress` is told of steps done and of
/// moments. None if `stop` is set before the end.
///
/// # Errors
/// There is not enough memory, the head has attention, or the loss is no number any more.
pub fn probe(
    network: &Network,
    whitening: &Whitening,
    pictures: &Pictures,
    plan: &Plan,
    (stop, mut progress): (&AtomicUsize, impl FnMut(u64, Option<&Moment>)),
) -> Result<Option<Vec<Moment>>> {
    let Plan { settings, deviation, moments: count } = *plan;
    let (mut pixels, mut class) = (Vec::new(), Vec::new());
    let parts = [Some(pictures.train), pictures.test];
    for (dataset, chosen, classes) in parts.into_iter().flatten() {
        chosen.iter().for_each(|&picture| pixels.extend_from_slice(&dataset.pixels(picture)));
        class.extend(chosen.iter().map(|&picture| classes[picture]));
    }
    let (all, cols) = (Dataset::from_pixels(network.input, pixels), pictures.train.1.len());
    let inputs = Inputs::new(&all, whitening, (available_memory() / 4) as usize);
    let train: Vec<usize> = (0..cols).collect();
    let lesson = Lesson::new(&all, &train, (&class, pictures.classes), settings)?;
    let mut tuner = Tuner::new(network, whitening, &lesson, settings);
    tuner.head.draw(deviation, settings.seed);
    let rates = Rates {
        network: settings.network_rate,
        head: settings.rate / tuner.head.parameters[0].inputs as f64,
    };
    let (mut found, mut first): (Vec<Moment>, Option<Tangent>) = (Vec::new(), None);
    for moment in moments(settings.steps, count) {
        while tuner.number < moment {
            if stop.load(Ordering::Relaxed) != 0 {
                return Ok(None);
            }
            tuner.step()?;
            progress(tuner.number, None);
        }
        let kernel = tangent(network, &mut tuner.head, settings.group, &inputs, cols, rates)?;
        if !kernel.values.iter().all(|value| value.is_finite()) {
            let problem = format!(
                "the kernel is no number any more at step {moment}: a lower --rate or --network-rate may help"
            );
            return Err(Error::Mismatch(problem));
        }
        let at = look(&kernel, first.as_ref(), &class, moment);
        progress(moment, Some(&at));
        found.push(at);
        first.get_or_insert(kernel);
    }
    Ok(Some(found))
}

/// What is to be said of a kernel, beside that of the beginning.
fn look(kernel: &Tangent, first: Option<&Tangent>, class: &[usize], step: u64) -> Moment {
    let (cols, classes) = (kernel.cols, kernel.classes);
    let spectrum = Spectrum::of(kernel);
    let targets = targets(&class[..cols], classes);
    let total: f64 = spectrum.values.iter().sum();
    let mut sum = 0.0;
    let labels: Vec<f64> = spectrum
        .of_targets(&targets)
        .into_iter()
        .map(|share| {
            sum += share;
            sum
        })
        .collect();
    let place =
        |rank: usize| Place { rank, eigenvalue: spectrum.values[rank - 1] / total, labels: labels[rank - 1] };
    let square = (cols * classes).pow(2);
    let first = &first.unwrap_or(kernel).values[..square];
    let own = &kernel.values[..square];
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (norm, of_first) = (product(own, own).sqrt(), product(first, first).sqrt());
    let change: f64 = own.iter().zip(first).map(|(a, b)| (a - b).powi(2)).sum();
    let answers = |pictures: std::ops::Range<usize>| {
        let numbers = &kernel.numbers[pictures.start * classes..pictures.end * classes];
        right(numbers.iter().map(|&x| f64::from(x)), &class[pictures], classes)
    };
    Moment {
        step,
        network: Right {
            train: answers(0..cols),
            test: (kernel.rows > cols).then(|| answers(cols..kernel.rows)),
        },
        regression: spectrum.regression(kernel, class),
        head_share: kernel.head_share,
        alignment: spectrum.alignment(&targets),
        drift: change.sqrt() / of_first,
        turn: (1.0 - product(own, first) / (norm * of_first)).max(0.0),
        effective_rank: spectrum.effective_rank(),
        spectrum: ranks(spectrum.values.len()).into_iter().map(place).collect(),
    }
}

/// Numbers from 1 to `last`, each about a third more than the one before.
fn ranks(last: usize) -> Vec<usize> {
    let next = |&rank: &usize| (rank < last).then(|| (rank + 1).max(rank * 4 / 3).min(last));
    std::iter::successors(Some(1), next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_at_the_beginning_the_end_and_thirds_between() {
        assert_eq!(moments(900, 5), [0, 33, 100, 300, 900]);
        assert_eq!(moments(900, 2), [0, 900]);
        assert_eq!(moments(2, 9), [0, 2]);
        assert_eq!(ranks(10), [1, 2, 3, 4, 5, 6, 8, 10]);
    }
}
