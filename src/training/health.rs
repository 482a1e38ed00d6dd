//! Whether a run is well: losses that are numbers and do not jump, and frames that there is something to learn from.

use crate::config::RunConfig;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::network::objective::Loss;
use crate::rng;

/// Steps before a jump can be told from the first, fast changes.
const SETTLING: u64 = 50;

/// Part of a new loss in the running mean.
const NEW: f64 = 0.02;

/// Watches the losses of the stages that learn.
#[derive(Default)]
pub struct Health {
    steps: u64,
    means: Vec<f64>,
}

impl Health {
    /// Takes the losses of a step, of the stages from `first` (from 0) on.
    ///
    /// # Errors
    /// [`Error::Diverged`] if one is no number, or `jump` times its running mean (`jump` 0: never).
    pub fn check(&mut self, losses: &[Loss], first: usize, step: u64, jump: f64) -> Result<()> {
        if self.means.len() != losses.len() {
            *self = Health { steps: 0, means: losses.iter().map(Loss::total).collect() };
        }
        for (number, (loss, mean)) in (first + 1..).zip(losses.iter().zip(&mut self.means)) {
            let loss = loss.total();
            if !loss.is_finite() {
                return Err(Error::Diverged {
                    stage: number,
                    what: "is no number any more".into(),
                    step,
                    good: None,
                });
            }
            if jump > 0.0 && self.steps >= SETTLING && loss > jump * *mean {
                let what = format!("jumped from {mean:.3} to {loss:.3}");
                return Err(Error::Diverged { stage: number, what, step, good: None });
            }
            *mean += NEW * (loss - *mean);
        }
        self.steps += 1;
        Ok(())
    }
}

/// Frames that are looked at for being alike.
const LOOKED_AT: usize = 500;

/// What a user should know about the frames before training on them.
///
/// # Errors
/// There is nothing to learn from: each frame is of one colour.
pub fn check_frames(config: &RunConfig, frames: &Dataset) -> Result<Vec<String>> {
    let count = frames.len();
    let flat = |index: usize| {
        let pixels = frames.kept_pixels(index);
        pixels.iter().all(|pixel| *pixel == pixels[0])
    };
    if (0..count).all(flat) {
        let problem = format!("each of the {count} frames is of one colour: there is nothing to learn from");
        return Err(Error::Mismatch(problem));
    }
    let mut warnings = Vec::new();
    let weights = config.shapes().iter().map(|shape| shape.taps()).max().unwrap_or(0);
    if count < weights {
        warnings.push(format!(
            "{count} frames are few: a filter has up to {weights} weights, and will remember them rather than learn"
        ));
    }
    let mut chosen =
        rand::seq::index::sample(&mut rng::stream(0, "alike", 0), count, count.min(LOOKED_AT)).into_vec();
    chosen.sort_unstable();
    let some: Vec<_> = chosen.iter().map(|&index| frames.kept_pixels(index)).collect();
    if 10 * frames.copies() > count {
        let share = 100 * frames.copies() / count;
        warnings.push(format!("{share} % of the frames are copies of others: sample with --drop duplicates"));
    }
    // Neighbours in an order that has nothing to do with the pictures.
    let difference = |(a, b): (&[u8], &[u8])| {
        a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
    };
    let pairs: Vec<f64> = some.iter().zip(some.iter().skip(1)).map(|(a, b)| difference((a, b))).collect();
    let mean = pairs.iter().sum::<f64>() / pairs.len().max(1) as f64;
    if !pairs.is_empty() && mean < 4.0 {
        warnings.push(format!(
            "the frames are much alike: a pixel differs by {mean:.1} of 255 from one frame to another"
        ));
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::MapShape;

    fn loss(value: f64) -> [Loss; 1] {
        [Loss { reconstruction: value, ..Loss::default() }]
    }

    #[test]
    fn a_loss_that_is_no_number_or_jumps_names_its_stage_and_step() {
        for (bad, what) in
            [(f64::NAN, "is no number"), (f64::INFINITY, "is no number"), (21.0, "jumped from 2.0")]
        {
            let mut health = Health::default();
            for step in 0..60 {
                health.check(&loss(2.0), 1, step, 10.0).unwrap();
            }
            let error = health.check(&loss(bad), 1, 60, 10.0).unwrap_err().to_string();
            assert!(
                error.contains("stage 2") && error.contains(what) && error.contains("step 60"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_loss_that_falls_or_is_unsteady_at_the_beginning_is_well() {
        let mut health = Health::default();
        for step in 0..1000 {
            let value = if step < 20 { 1000.0 * (step % 7) as f64 + 1.0 } else { 1e4 / step as f64 };
            health.check(&loss(value), 0, step, 10.0).unwrap();
        }
        let mut never = Health::default();
        for step in 0..100 {
            never.check(&loss(if step == 80 { 1e9 } else { 1.0 }), 0, step, 0.0).unwrap();
        }
    }

    #[test]
    fn frames_too_few_too_alike_or_copied_are_told() {
        let shape = MapShape { channels: 1, rows: 24, cols: 24 };
        let config = RunConfig::load("configs/tiny.toml".as_ref(), &[]).unwrap();
        let of = |frames: usize, pixel: &dyn Fn(usize, usize) -> u8| {
            let pixels = (0..frames).flat_map(|frame| (0..576).map(move |place| (frame, place)));
            let pixels = pixels.map(|(frame, place)| pixel(frame, place)).collect();
            check_frames(&config, &Dataset::from_pixels(shape, pixels)).map(|warnings| warnings.join("; "))
        };
        let noise = |frame: usize, place: usize| {
            (rng::stable_hash(&(frame * 1000 + place).to_le_bytes()) >> 32) as u8
        };
        assert_eq!(of(400, &noise).unwrap(), "");
        assert!(of(9, &noise).unwrap().contains("9 frames are few"));
        assert!(of(400, &|frame, place| noise(frame / 2, place)).unwrap().contains("copies"));
        let alike = of(400, &|frame, place| 100 + noise(frame, place) % 4).unwrap();
        assert!(alike.contains("much alike"), "{alike}");
        assert!(of(9, &|frame, _| frame as u8).unwrap_err().to_string().contains("of one colour"));
    }
}
