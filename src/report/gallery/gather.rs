//! Looks for the frames that drive units most and least, and for their stimuli.

use ndarray::Array3;

use super::{Choice, Norm, SIGNATURE_FRAMES};
use crate::analysis::Progress;
use crate::analysis::responses::{Probe, Responses, Shown};
use crate::analysis::statistics::{Statistics, statistics};
use crate::analysis::stimulus::{Effort, Search, Sign, Start, Stimulus, Wanted, best_stimuli};
use crate::analysis::top::{Answer, Ranking, top_frames};
use crate::error::Result;
use crate::geometry::Kind;
use crate::network::preprocess::{Inputs, Whitening};
use crate::network::{Network, Unit};
use crate::picture::spread;

/// What was found of a unit.
pub(super) struct Gathered {
    /// The frames that drive it most, as many as are shown or averaged, and least.
    pub(super) top: Vec<Answer>,
    pub(super) bottom: Vec<Answer>,
    pub(super) over_frames: Statistics,
    pub(super) signature: Vec<i8>,
    pub(super) stimuli: Vec<Found>,
}

/// What looks for the frames and stimuli of some units of a stage.
pub(super) struct Gathering<'a> {
    pub(super) network: &'a Network,
    pub(super) whitening: &'a Whitening,
    pub(super) inputs: &'a Inputs<'a>,
    pub(super) choice: &'a Choice,
    /// Norms of the stimuli, in the order asked for.
    pub(super) norms: &'a [f32],
    pub(super) progress: &'a Progress,
}

impl Gathering<'_> {
    /// What is found of each of these units.
    pub(super) fn run(&self, stage: usize, units: &[Unit], what: &str) -> Result<(Vec<Gathered>, Effort)> {
        let Gathering { network, whitening, inputs, choice, norms, progress } = *self;
        let at = (stage, choice.kind);
        let ranked = |ranking| top_frames(network, inputs, at, units, ranking, |n| progress.add(n));
        progress.begin(&format!("{what}: frames"), 3 * inputs.len());
        let as_they_are = |sign, keep| ranked(Ranking { sign, norm: None, keep });
        let tops = as_they_are(Sign::Positive, choice.top.max(choice.mean));
        let tops = tops.into_iter().zip(as_they_are(Sign::Negative, choice.top));
        let over_frames = statistics(network, inputs, at, units, |n| progress.add(n));
        let signatures = signatures(network, inputs, at, units);
        let mut gathered: Vec<Gathered> = tops
            .zip(over_frames.into_iter().zip(signatures))
            .map(|((top, bottom), (over_frames, signature))| Gathered {
                top,
                bottom,
                over_frames,
                signature,
                stimuli: Vec::new(),
            })
            .collect();
        let mut all = Effort::default();
        for (&asked, &norm) in choice.norms.iter().zip(norms) {
            for &sign in &choice.signs {
                progress.begin(&format!("{what}: frames of norm {norm:.3}"), inputs.len());
                let frames = ranked(Ranking { sign, norm: Some(norm), keep: choice.from_frames.max(1) });
                let starts = frames
                    .iter()
                    .map(|top| starting_pictures(inputs, &top[..choice.from_frames.min(top.len())]));
                let starts: Vec<_> = units.iter().copied().zip(starts).collect();
                let search = Search {
                    method: choice.method,
                    evaluations: choice.evaluations,
                    view: choice.view,
                    ..Search::new(norm)
                };
                let (optima, repulsion) = (choice.optima, choice.repulsion);
                let wanted = Wanted { sign, restarts: choice.restarts, optima, repulsion, seed: choice.seed };
                let searches = (choice.restarts + choice.from_frames) * units.len() * optima.max(1);
                progress.begin(&format!("{what}: searches at norm {norm:.3}"), searches);
                let (stimuli, effort) =
                    best_stimuli(network, whitening, at, &starts, &search, &wanted, |n| progress.add(n))?;
                all += effort;
                for ((unit, stimuli), top) in gathered.iter_mut().zip(stimuli).zip(&frames) {
                    let best_frame = top.first().map(|answer| answer.value);
                    unit.stimuli.extend((1..).zip(stimuli).map(|(optimum, (stimulus, start))| Found {
                        asked,
                        norm,
                        optimum,
                        stimulus,
                        start,
                        best_frame,
                    }));
                }
            }
        }
        Ok((gathered, all))
    }
}

/// See [`UnitPage::signature`].
fn signatures(
    network: &Network,
    inputs: &Inputs,
    (stage, kind): (usize, Kind),
    units: &[Unit],
) -> Vec<Vec<i8>> {
    let frames = spread((0..inputs.len()).collect(), SIGNATURE_FRAMES);
    let probes: Vec<Probe> = units.iter().map(|&unit| Probe { stage, kind, unit }).collect();
    let responses = Responses::new(network, &[Shown { inputs, pictures: &frames }], &probes, |_| ());
    let mut values = Vec::new();
    let of_unit = |number: usize| {
        responses.of(number, &mut values);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let largest = values.iter().fold(0f32, |most, value| most.max((value - mean).abs()));
        let scale = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        values.iter().map(|value| ((value - mean) * scale).round() as i8).collect()
    };
    (0..units.len()).map(of_unit).collect()
}

/// A stimulus of a unit.
pub(super) struct Found {
    pub(super) asked: Norm,
    pub(super) norm: f32,
    pub(super) optimum: usize,
    pub(super) stimulus: Stimulus,
    pub(super) start: Start,
    /// The most extreme value of a frame of this norm.
    pub(super) best_frame: Option<f32>,
}

/// Frames as the network takes them, but those that are zero everywhere.
fn starting_pictures(inputs: &Inputs, answers: &[Answer]) -> Vec<Array3<f32>> {
    let frames = answers.iter().map(|answer| inputs.picture(answer.frame));
    frames.filter(|frame| frame.iter().any(|&x| x != 0.0)).collect()
}
