//! The frames that drive each unit most (paper §4.4).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::BATCH;
use super::stimulus::Sign;
use crate::geometry::Kind;
use crate::network::preprocess::Inputs;
use crate::network::{Network, Unit, Workspace};

/// A frame and how a unit answers it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Number of the frame in its dataset.
    pub frame: usize,
    /// The unit's value.
    pub value: f32,
}

/// Which frames are looked for.
#[derive(Debug, Clone, Copy)]
pub struct Ranking {
    /// Those that drive a unit most, or least.
    pub sign: Sign,
    /// As they are, or scaled to this norm after preprocessing, as stimuli are.
    pub norm: Option<f32>,
    /// How many.
    pub keep: usize,
}

/// The frames with the most extreme values of each of `units`, from the most extreme; `progress` is told how many frames have been
/// seen. Memory does not grow with the number of frames.
pub fn top_frames(
    network: &Network,
    inputs: &Inputs,
    (stage, kind): (usize, Kind),
    units: &[Unit],
    ranking: Ranking,
    progress: impl Fn(usize) + Sync,
) -> Vec<Vec<Answer>> {
    let frames: Vec<usize> = (0..inputs.len()).collect();
    let of_batch = |work: &mut Workspace, indices: &[usize]| -> Vec<Vec<Answer>> {
        inputs.load(indices, work);
        if let Some(norm) = ranking.norm {
            work.scale_to(norm);
        }
        network.forward_to(work, stage, kind);
        progress(indices.len());
        let best = |unit: &Unit| {
            let values = work.unit_values(network, stage, kind, *unit);
            let answers = indices.iter().zip(values).map(|(&frame, &value)| Answer { frame, value });
            most(answers.collect(), ranking)
        };
        units.iter().map(best).collect()
    };
    let merge = |a: Vec<Vec<Answer>>, b: Vec<Vec<Answer>>| {
        a.into_iter().zip(b).map(|(a, b)| most([a, b].concat(), ranking)).collect()
    };
    frames
        .par_chunks(BATCH)
        .map_init(|| network.workspace(BATCH), of_batch)
        .reduce(|| vec![Vec::new(); units.len()], merge)
}

/// The most extreme answers; of equal ones the earlier frame, so that the result does not depend on the order of threads.
pub(super) fn most(mut answers: Vec<Answer>, Ranking { sign, keep, .. }: Ranking) -> Vec<Answer> {
    let extreme = |answer: &Answer| sign.factor() * answer.value;
    answers.sort_by(|a, b| extreme(b).total_cmp(&extreme(a)).then(a.frame.cmp(&b.frame)));
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
        let mut work = network.workspace(1);
        for (sign, norm) in [(Sign::Positive, None), (Sign::Negative, None), (Sign::Positive, Some(3.0))] {
            let ranking = Ranking { sign, norm, keep: 4 };
            let tops = top_frames(&network, &inputs, (0, Kind::Y), &units, ranking, |_| ());
            for (unit, top) in units.iter().zip(tops).step_by(7) {
                let mut all: Vec<Answer> = (0..dataset.len())
                    .map(|frame| {
                        let picture = inputs.picture(frame);
                        let length = picture.iter().map(|x| x * x).sum::<f32>().sqrt();
                        let scale = norm.map_or(1.0, |norm| norm / length);
                        work.start(1);
                        work.load_picture(0, picture.iter().map(|x| x * scale));
                        network.forward(&mut work, 0);
                        Answer { frame, value: work.unit_values(&network, 0, Kind::Y, *unit)[0] }
                    })
                    .collect();
                let sign = sign.factor();
                all.sort_by(|a, b| (sign * b.value).total_cmp(&(sign * a.value)).then(a.frame.cmp(&b.frame)));
                let close = |(got, want): (&Answer, &Answer)| (got.value - want.value).abs() < 1e-5;
                assert!(top.iter().zip(&all).all(close), "{top:?} {:?}", &all[..4]);
                assert!(norm.is_some() || top == all[..4]);
                assert_eq!(top[1].frame, top[0].frame + 120);
            }
        }
    }
}
