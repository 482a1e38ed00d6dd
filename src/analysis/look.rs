//! Which units fire for a picture: those that answer it as they answer few frames.

use image::{DynamicImage, RgbImage};
use ndarray::Array2;
use serde::Serialize;

use super::features::features;
use super::invariance::{Moments, moments, shown};
use super::neighbours::nearest_of;
use super::top::Answer;
use super::{Progress, UnitName};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::geometry::{Kind, MapShape};
use crate::network::Workspace;
use crate::network::checkpoint::Checkpoint;
use crate::network::preprocess::Inputs;
use crate::picture::pixel_tile;

/// A network that looks at pictures, and what its units usually answer.
pub struct Viewer {
    /// The network.
    pub checkpoint: Checkpoint,
    /// The frames that are usual.
    pub frames: Dataset,
    /// The stage, from 0, by which frames are compared, and which values of all units are looked at.
    pub group: (usize, Kind),
    /// Over the frames, `[stage][unit]`.
    usual: Vec<Vec<Moments>>,
    /// What the units of that stage say of the frames, [frame, unit].
    features: Array2<f32>,
}

/// A unit, and how unusual its answer to a picture is.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Firing {
    /// Which unit.
    #[serde(flatten)]
    pub name: UnitName,
    /// Its value.
    pub value: f32,
    /// `(value - mean) / deviation` over the frames; 0 of a unit that does not vary.
    pub above: f64,
    /// By how many deviations it is not what the unit answers to the mean frame, which explanations begin at.
    pub from_rest: f64,
}

/// What a network makes of a picture.
#[derive(Debug, Clone, Serialize)]
pub struct Look {
    /// For each stage, the first one first, all units, those that answer the most unusually first.
    pub stages: Vec<Vec<Firing>>,
    /// The frames most like it by the values of the stage's units; their cosines.
    pub neighbours: Vec<Answer>,
}

impl Look {
    /// The units of a stage, from 0, to explain first: those that answer the most unusually, but not as they answer to the mean frame, for
    /// then there is nothing to explain.
    pub fn to_explain(&self, stage: usize) -> impl Iterator<Item = UnitName> {
        let says_something = |firing: &&Firing| firing.from_rest > 0.25;
        self.stages[stage].iter().filter(says_something).map(|firing| firing.name)
    }
}

impl Viewer {
    /// Shows the network all `frames`.
    ///
    /// # Errors
    /// Their features do not fit in memory.
    pub fn new(
        checkpoint: Checkpoint,
        frames: Dataset,
        group: (usize, Kind),
        progress: &Progress,
    ) -> Result<Viewer> {
        let Checkpoint { network, whitening, .. } = &checkpoint;
        let all: Vec<usize> = (0..frames.len()).collect();
        let inputs = Inputs::new(&frames, whitening, 0);
        progress.begin("what is usual", all.len());
        let usual = moments(network, group.1, &inputs, &all, |count| progress.add(count));
        progress.begin("features", all.len());
        let features = features(network, &inputs, &all, group, |count| progress.add(count))?;
        Ok(Viewer { checkpoint, frames, group, usual, features })
    }

    /// What the network sees of a picture: 8-bit pixels `[channel, row, column]`, of its input size.
    pub fn seen(&self, picture: &DynamicImage) -> Vec<u8> {
        shown(picture, self.checkpoint.network.input, self.checkpoint.config.input.margin)
    }

    /// These as a picture.
    pub fn tile(&self, pixels: &[u8]) -> RgbImage {
        let MapShape { channels, rows, cols } = self.checkpoint.network.input;
        pixel_tile(pixels, channels, rows, cols)
    }

    /// Looks at what the network sees of a picture, and names `keep` frames.
    pub fn look(&self, pixels: &[u8], keep: usize) -> Look {
        let Checkpoint { network, whitening, .. } = &self.checkpoint;
        let mut work = network.workspace(2);
        work.start(2);
        work.load_picture(0, whitening.apply(pixels).into_iter());
        work.load_picture(1, std::iter::repeat_n(0.0, pixels.len()));
        let top = network.stages.len() - 1;
        network.forward(&mut work, top);
        let values = work.values(network, self.group.0, self.group.1);
        let units = values.len() / 2;
        let values = values.into_shape_with_order((2, units)).expect("two rows");
        let query = values.slice(ndarray::s![..1, ..]);
        let neighbours = nearest_of(query, self.features.view(), keep).swap_remove(0);
        Look { stages: (0..=top).map(|stage| self.firing(&work, stage)).collect(), neighbours }
    }

    fn firing(&self, work: &Workspace, stage: usize) -> Vec<Firing> {
        let network = &self.checkpoint.network;
        let firing = |(unit, usual): (_, &Moments)| {
            let values = work.unit_values(network, stage, self.group.1, unit);
            let deviations = |difference: f64| {
                if usual.deviation > 0.0 { difference / usual.deviation } else { 0.0 }
            };
            Firing {
                name: UnitName { stage: stage + 1, unit },
                value: values[0],
                above: deviations(f64::from(values[0]) - usual.mean),
                from_rest: deviations(f64::from(values[0] - values[1]).abs()),
            }
        };
        let units = network.units(stage, self.group.1).into_iter().zip(&self.usual[stage]);
        let mut all: Vec<Firing> = units.map(firing).collect();
        all.sort_by(|a, b| b.above.total_cmp(&a.above).then(a.name.cmp(&b.name)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::neighbours::nearest;
    use crate::config::RunConfig;
    use crate::network::Network;
    use crate::network::preprocess::{Transform, Whitening};
    use crate::rng;
    use rand::Rng;

    #[test]
    fn units_fire_by_their_deviations_from_what_the_frames_give_and_a_frame_finds_itself() {
        let text = "[input]\nheight = 10\nwidth = 10\npreprocess = \"contrast\"\n[[stages]]\nmaps = 3\nfield = 5\npool = 2\nlcn = 3\n\
                    [[stages]]\nmaps = 2\nfield = 3\npool = 2\nlcn = 3\n[training]\nsteps = [1, 1]\n";
        let config = RunConfig::parse(text, &[]).unwrap();
        let network = Network::new(&config, 4).unwrap();
        let whitening = Whitening { shape: network.input, transform: Transform::Contrast { scale: 1.0 } };
        let mut rng = rng::stream(7, "look", 0);
        let frames = Dataset::from_pixels(network.input, (0..130 * 100).map(|_| rng.random()).collect());
        let all: Vec<usize> = (0..frames.len()).collect();
        let inputs = Inputs::new(&frames, &whitening, 0);
        let values: Vec<Array2<f32>> =
            [0, 1].map(|stage| features(&network, &inputs, &all, (stage, Kind::Y), |_| ()).unwrap()).into();
        let query = frames.pixels(41).into_owned();
        let row = values[1].slice(ndarray::s![41..42, ..]);
        let near = nearest(&network, &inputs, (1, Kind::Y), row, 5, |_| ());
        let units = [0, 1].map(|stage| network.units(stage, Kind::Y));
        let checkpoint = Checkpoint { config, network, whitening };
        let viewer = Viewer::new(checkpoint, frames, (1, Kind::Y), &Progress::none()).unwrap();
        let look = viewer.look(&query, 5);
        for (stage, firings) in look.stages.iter().enumerate() {
            assert_eq!(firings.len(), units[stage].len());
            assert!(firings.windows(2).all(|pair| pair[0].above >= pair[1].above));
            for firing in firings {
                let column = units[stage].iter().position(|unit| *unit == firing.name.unit).unwrap();
                let column: Vec<f64> = values[stage].column(column).iter().map(|&x| f64::from(x)).collect();
                let mean = column.iter().sum::<f64>() / 130.0;
                let variance = column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 130.0;
                let above = (column[41] - mean) / variance.sqrt();
                assert!((f64::from(firing.value) - column[41]).abs() < 1e-6, "{firing:?}");
                assert!((firing.above - above).abs() < 0.01 * (1.0 + above.abs()), "{firing:?}, not {above}");
            }
        }
        assert_eq!(look.neighbours, near[0]);
        // One grey is the mean frame after the removal of contrast: nothing to explain there, and what others are told apart from.
        let rest = viewer.look(&[128; 100], 5);
        assert_eq!(rest.to_explain(1).count(), 0);
        for firing in &look.stages[1] {
            let at_rest = rest.stages[1].iter().find(|other| other.name == firing.name).unwrap();
            let moved = (firing.above - at_rest.above).abs();
            assert!((firing.from_rest - moved).abs() < 1e-3 * (1.0 + moved), "{firing:?} {at_rest:?}");
            assert_eq!(look.to_explain(1).any(|name| name == firing.name), moved > 0.25, "{firing:?}");
        }
        assert!(look.neighbours[0].frame == 41 && look.neighbours[0].value > 0.999_999);
    }
}
