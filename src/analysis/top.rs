//! The frames that drive each unit most (paper §4.4).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::geometry::Kind;
use crate::network::preprocess::Inputs;
use crate::network::{Network, Unit};

/// Pictures that go through the network together.
const BATCH: usize = 96;

/// A frame and how a unit answers it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Number of the frame in its dataset.
    pub frame: usize,
    /// The unit's value.
    pub value: f32,
}

/// The `keep` frames with the highest value of each of `units`, from the highest; `progress` is told how many frames
/// have been seen. Memory does not grow with the number of frames.
pub fn top_frames(
    network: &Network,
    inputs: &Inputs,
    stage: usize,
    kind: Kind,
    units: &[Unit],
    keep: usize,
    progress: impl Fn(usize) + Sync,
) -> Vec<Vec<Answer>> {
    let frames: Vec<usize> = (0..inputs.len()).collect();
    let of_batch = |work: &mut _, indices: &[usize]| -> Vec<Vec<Answer>> {
        inputs.load(indices, work);
        network.forward(work, stage);
        progress(indices.len());
        let best = |unit: &Unit| {
            let values = work.unit_values(network, stage, kind, *unit);
            let answers = indices.iter().zip(values).map(|(&frame, &value)| Answer { frame, value });
            highest(answers.collect(), keep)
        };
        units.iter().map(best).collect()
    };
    let merge = |a: Vec<Vec<Answer>>, b: Vec<Vec<Answer>>| {
        a.into_iter().zip(b).map(|(a, b)| highest([a, b].concat(), keep)).collect()
    };
    frames
        .par_chunks(BATCH)
        .map_init(|| network.workspace(BATCH), of_batch)
        .reduce(|| vec![Vec::new(); units.len()], merge)
}

/// The highest answers; of equal ones the earlier frame, so that the result does not depend on the order of threads.
fn highest(mut answers: Vec<Answer>, keep: usize) -> Vec<Answer> {
    answers.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.frame.cmp(&b.frame)));
    answers.truncate(keep);
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use crate::dataset::Dataset;
    use crate::network::preprocess::{Transform, Whitening};
    use crate::rng;
    use rand::Rng;

    #[test]
    fn the_top_frames_are_those_of_a_full_sort() {
        let text = "[input]\nheight = 8\nwidth = 8\npreprocess = \"none\"\n[[stages]]\nmaps = 3\nfield = 5\npool = 2\n\
                    lcn = 3\n[training]\nsteps = [1]\n";
        let config = RunConfig::parse(text, &[]).unwrap();
        let network = Network::new(&config, 2).unwrap();
        let mut rng = rng::stream(1, "top", 0);
        // More frames than one batch, and every frame twice: ties go to the earlier one.
        let once: Vec<u8> = (0..120 * 64).map(|_| rng.random()).collect();
        let dataset = Dataset::from_pixels(network.input, [once.clone(), once].concat());
        let whitening = Whitening { shape: network.input, transform: Transform::None };
        let inputs = Inputs::new(&dataset, &whitening, usize::MAX);
        let units = network.units(0, Kind::Y);
        let tops = top_frames(&network, &inputs, 0, Kind::Y, &units, 4, |_| ());

        let mut work = network.workspace(1);
        for (unit, top) in units.iter().zip(tops).step_by(7) {
            let mut all: Vec<Answer> = (0..dataset.len())
                .map(|frame| {
                    inputs.load(&[frame], &mut work);
                    network.forward(&mut work, 0);
                    Answer { frame, value: work.unit_values(&network, 0, Kind::Y, *unit)[0] }
                })
                .collect();
            all.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.frame.cmp(&b.frame)));
            assert_eq!(top, all[..4]);
            assert_eq!(top[1].frame, top[0].frame + 120);
        }
    }
}
