//! How a unit's values are spread over frames: a unit that answers few of them strongly, and most hardly at all, is selective.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::BATCH;
use crate::geometry::Kind;
use crate::network::preprocess::Inputs;
use crate::network::{Network, Unit, Workspace};

/// Batches whose sums are held at a time.
const TOGETHER: usize = 8;

/// A unit's values over frames.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub deviation: f64,
    /// The mean cube of `(value - mean) / deviation`: above 0 if the strong answers lie above the mean.
    pub skewness: f64,
    /// The mean fourth power of it, less 3: 0 for a Gaussian, large for a unit that is silent most of the time and then strong
    /// ("lifetime kurtosis", Willmore & Tolhurst 2001).
    pub kurtosis: f64,
}

impl Statistics {
    /// From the sums of the first four powers of `count` values.
    fn new(sums: [f64; 4], count: f64) -> Statistics {
        let [mean, square, cube, fourth] = sums.map(|sum| sum / count);
        let variance = (square - mean * mean).max(0.0);
        // What rounding leaves of values that are all the same is no variance.
        if variance <= 1e-12 * square {
            return Statistics { mean, deviation: 0.0, skewness: 0.0, kurtosis: 0.0 };
        }
        let third = cube - 3.0 * mean * square + 2.0 * mean.powi(3);
        let fourth = fourth - 4.0 * mean * cube + 6.0 * mean * mean * square - 3.0 * mean.powi(4);
        Statistics {
            mean,
            deviation: variance.sqrt(),
            skewness: third / variance.powf(1.5),
            kurtosis: fourth / (variance * variance) - 3.0,
        }
    }
}

/// Statistics of `units` over all frames of `inputs`, whatever the number of threads. `progress` is told how many frames have been
/// seen; memory does not grow with their number.
pub fn statistics(
    network: &Network,
    inputs: &Inputs,
    (stage, kind): (usize, Kind),
    units: &[Unit],
    progress: impl Fn(usize) + Sync,
) -> Vec<Statistics> {
    let frames: Vec<usize> = (0..inputs.len()).collect();
    let of_batch = |work: &mut Workspace, batch: &[usize]| -> Vec<[f64; 4]> {
        inputs.load(batch, work);
        network.forward_to(work, stage, kind);
        progress(batch.len());
        let sums = |unit: &Unit| {
            let mut sums = [0.0; 4];
            for &value in work.unit_values(network, stage, kind, *unit) {
                let value = f64::from(value);
                let square = value * value;
                let powers = [value, square, square * value, square * square];
                sums.iter_mut().zip(powers).for_each(|(sum, power)| *sum += power);
            }
            sums
        };
        units.iter().map(sums).collect()
    };
    let mut totals = vec![[0.0; 4]; units.len()];
    for group in frames.chunks(TOGETHER * BATCH) {
        let sums: Vec<Vec<[f64; 4]>> =
            group.par_chunks(BATCH).map_init(|| network.workspace(BATCH), of_batch).collect();
        for (total, sums) in sums.into_iter().flat_map(|sums| (0..).zip(sums)) {
            totals[total].iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
    }
    totals.into_iter().map(|sums| Statistics::new(sums, inputs.len() as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use crate::dataset::Dataset;
    use crate::network::Weights;
    use crate::network::preprocess::{Transform, Whitening};

    /// A unit whose value is a pixel, which is 255 in one of 500 frames and 0 in the others: of `n` values of which one is 1,
    /// deviation² = p (1 - p), skewness = (1 - 2p) / deviation, kurtosis = (1 - 6 p (1 - p)) / (p (1 - p)).
    #[test]
    fn a_unit_that_answers_one_frame_of_many_has_the_moments_of_a_rare_event() {
        let text = "[input]\nheight = 4\nwidth = 4\npreprocess = \"none\"\n[[stages]]\nmaps = 1\nfield = 4\npool = 1\n\
                    lcn = 0\n[training]\nsteps = [1]\n";
        let network = Network::new(&RunConfig::parse(text, &[]).unwrap(), 2).unwrap();
        let filter = (0..16).map(|tap| if tap == 5 { 1.0 } else { 0.0 });
        network.stages[0].set_weights(Weights::Encoder, 0, filter);
        let mut pixels = vec![0; 500 * 16];
        pixels[7 * 16 + 5] = 255;
        let dataset = Dataset::from_pixels(network.input, pixels);
        let whitening = Whitening { shape: network.input, transform: Transform::None };
        let inputs = Inputs::new(&dataset, &whitening, usize::MAX);
        let units = network.units(0, Kind::A);
        let of = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| statistics(&network, &inputs, (0, Kind::A), &units, |_| ()))[0]
        };
        let (found, p) = (of(1), 1.0 / 500.0);
        assert_eq!(found, of(3));
        let variance: f64 = p * (1.0 - p);
        let want = [p, variance.sqrt(), (1.0 - 2.0 * p) / variance.sqrt(), (1.0 - 6.0 * variance) / variance];
        let got = [found.mean, found.deviation, found.skewness, found.kurtosis];
        got.iter().zip(want).for_each(|(got, want)| assert!((got / want - 1.0).abs() < 1e-6, "{got} {want}"));
    }
}
