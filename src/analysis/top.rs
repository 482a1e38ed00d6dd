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
