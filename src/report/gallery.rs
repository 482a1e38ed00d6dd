//! `RUN/visualize`: pictures of first-stage filters, and for units of every stage the preferred stimulus and the frames
//! that drive it most.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use ndarray::Array3;
use serde::{Deserialize, Serialize};

use crate::analysis::stimulus::{Ascent, Start, Stimulus, best_stimuli};
use crate::analysis::top::{Answer, top_frames};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::geometry::Kind;
use crate::network::checkpoint::Checkpoint;
use crate::network::preprocess::{Inputs, Whitening};
use crate::network::{Network, Unit, Weights};
use crate::picture::{filters, grid, pixel_tile, save_png, signed_tile, spread};

/// What to visualise, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Choice {
    /// Units of each stage, evenly spread over all; 0 for all.
    pub units: usize,
    /// Stages, from 1; none for all.
    pub stages: Vec<usize>,
    /// Which value of a unit.
    pub kind: Kind,
    /// Norms of the stimuli.
    pub norms: Vec<Norm>,
    /// Most steps of a search.
    pub steps: usize,
    /// Searches from different noise for each unit; the best of all searches is kept.
    pub restarts: usize,
    /// Searches from the frames that drive the unit most.
    pub from_frames: usize,
    /// Frames shown for each unit.
    pub top: usize,
    /// Seed of the noise.
    pub seed: u64,
}

impl Choice {
    /// Refuses stages that a network of `count` stages does not have.
    ///
    /// # Errors
    /// Names the stage.
    pub fn check(&self, count: usize) -> Result<()> {
        match self.stages.iter().find(|stage| !(1..=count).contains(*stage)) {
            None => Ok(()),
            Some(bad) => {
                let (key, got, want) =
                    ("--stage".into(), bad.to_string(), format!("a stage from 1 to {count}"));
                Err(Error::Setting { key, got, want })
            }
        }
    }
}

/// Norm of a stimulus.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// A number; the paper's is 1.
    Fixed(f32),
    /// The mean norm of preprocessed training frames.
    Natural,
}

impl std::str::FromStr for Norm {
    type Err = String;
    fn from_str(text: &str) -> Result<Norm, String> {
        match text.parse::<f32>() {
            _ if text == "natural" => Ok(Norm::Natural),
            Ok(norm) if norm.is_finite() && norm > 0.0 => Ok(Norm::Fixed(norm)),
            _ => Err("expected a number above 0, or `natural`".into()),
        }
    }
}

/// `RUN/visualize/units.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Gallery {
    /// How it was made.
    pub choice: Choice,
    /// Where the frames are from.
    pub frames: PathBuf,
    /// Frames that were looked at.
    pub frame_count: usize,
    /// Number of units in each stage.
    pub stage_units: Vec<usize>,
    /// True if stimuli were mapped back through the inverse whitening.
    pub whitened: bool,
    /// The units, stage after stage.
    pub units: Vec<UnitPage>,
}

/// What was found out about one unit.
#[derive(Debug, Serialize, Deserialize)]
pub struct UnitPage {
    /// Its stage, from 1.
    pub stage: usize,
    /// The unit.
    pub unit: Unit,
    /// Preferred stimuli, one for each norm.
    pub stimuli: Vec<StimulusPage>,
    /// The frames that drive it most.
    pub top: Vec<TopFrame>,
    /// PNG of those frames in a row, relative to the folder.
    pub top_picture: PathBuf,
}

/// One preferred stimulus.
#[derive(Debug, Serialize, Deserialize)]
pub struct StimulusPage {
    /// Norm of the picture.
    pub norm: f64,
    /// The unit's value for it.
    pub value: f32,
    /// Where the search began that found it.
    pub start: Start,
    /// The unit's value at that start.
    pub start_value: f32,
    /// The highest value of any frame scaled to this norm, of those in the top row.
    pub best_frame_value: Option<f32>,
    /// Steps of the search.
    pub steps: usize,
    /// True if there was no gradient to climb.
    pub flat: bool,
    /// PNG as pixels, relative to the folder.
    pub pixels: PathBuf,
    /// PNG as the network sees it.
    pub preprocessed: PathBuf,
}

/// One of the frames that drive a unit most.
#[derive(Debug, Serialize, Deserialize)]
pub struct TopFrame {
    /// Its key in the frame set.
    pub key: String,
    /// The unit's value.
    pub value: f32,
}

impl fmt::Display for Gallery {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (stage, all) in (1..).zip(&self.stage_units) {
            let units: Vec<&UnitPage> = self.units.iter().filter(|page| page.stage == stage).collect();
            if units.is_empty() {
                continue;
            }
            let stimuli = || units.iter().flat_map(|page| &page.stimuli);
            let flat = stimuli().filter(|s| s.flat).count();
            write!(f, "stage {stage}: {} of {all} units, {} stimuli", units.len(), stimuli().count())?;
            if flat > 0 {
                write!(f, ", {flat} without a gradient at the start")?;
            }
            writeln!(f)?;
        }
        write!(f, "{} frames looked at", self.frame_count)
    }
}

/// Makes the pictures in the new folder `out`, which replaces an older one when complete. `progress` is told what is
/// being done, how much of it there is, and of every part done.
///
/// # Errors
/// A stage does not exist, or the folder cannot be written.
pub fn visualize(
    checkpoint: &Checkpoint,
    dataset: &Dataset,
    frames: &Path,
    choice: &Choice,
    out: &Path,
    progress: &Progress,
) -> Result<Gallery> {
    let Checkpoint { network, whitening, .. } = checkpoint;
    let count = network.stages.len();
    choice.check(count)?;
    let partial = out.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(Error::io(&partial, "remove"))?;
    }
    fs::create_dir_all(&partial).map_err(Error::io(&partial, "create"))?;

    let inputs = Inputs::new(dataset, whitening, (crate::dataset::available_memory() / 4) as usize);
    let natural = inputs.natural_norm();
    let norms: Vec<f32> = choice
        .norms
        .iter()
        .map(|norm| match norm {
            Norm::Fixed(norm) => *norm,
            Norm::Natural => natural,
        })
        .collect();
    for (name, which) in
        [("filters-encoder.png", Weights::Encoder), ("filters-decoder.png", Weights::Decoder)]
    {
        save_png(&filters(network, which), &partial.join(name))?;
    }
    let mut pages = Vec::new();
    for stage in (0..count).filter(|stage| choice.stages.is_empty() || choice.stages.contains(&(stage + 1))) {
        let units = spread(network.units(stage, choice.kind), choice.units);
        let what = format!("stage {}", stage + 1);
        progress.begin(&format!("{what}: frames"), inputs.len());
        let tops = top_frames(network, &inputs, stage, choice.kind, &units, choice.top, |n| progress.add(n));
        let mut stimuli: Vec<Vec<(Stimulus, Start)>> = Vec::new();
        for &norm in &norms {
            progress.begin(&format!("{what}: stimuli"), units.len());
            let ascent = Ascent { steps: choice.steps, step: 0.2, norm, adapt: true };
            let starts = |top: &Vec<Answer>| -> Vec<Array3<f32>> {
                let frames = top.iter().take(choice.from_frames).map(|answer| inputs.picture(answer.frame));
                frames.filter(|frame| frame.iter().any(|&x| x != 0.0)).collect()
            };
            let units: Vec<_> = units.iter().copied().zip(tops.iter().map(starts)).collect();
            let (kind, restarts, seed) = (choice.kind, choice.restarts.max(1), choice.seed);
            stimuli.push(best_stimuli(network, stage, kind, &units, &ascent, restarts, seed, |n| {
                progress.add(n)
            })?);
        }
        progress.begin(&format!("{what}: pictures"), units.len());
        let mut writer = Writer { folder: &partial, dataset, whitening, sheet: Vec::new() };
        for (index, (unit, top)) in units.iter().zip(&tops).enumerate() {
            let found: Vec<&(Stimulus, Start)> = stimuli.iter().map(|of_norm| &of_norm[index]).collect();
            let best = best_frame_values(network, &inputs, stage, choice.kind, *unit, top, &norms);
            pages.push(writer.page(stage + 1, *unit, &norms, &found, &best, top)?);
            progress.add(1);
        }
        writer.save_sheet(stage + 1, 2 * norms.len() + choice.top)?;
    }
    let gallery = Gallery {
        choice: choice.clone(),
        frames: frames.into(),
        frame_count: dataset.len(),
        stage_units: (0..count).map(|stage| network.shape(stage, choice.kind).len()).collect(),
        whitened: whitening.mixes_pixels(),
        units: pages,
    };
    let path = partial.join("units.json");
    let text = serde_json::to_string_pretty(&gallery).expect("pages are plain data");
    fs::write(&path, text).map_err(Error::io(&path, "write"))?;
    if out.exists() {
        fs::remove_dir_all(out).map_err(Error::io(out, "replace"))?;
    }
    fs::rename(&partial, out).map_err(Error::io(out, "move the finished pictures to"))?;
    Ok(gallery)
}

/// Told of a new part: its name and how much there is to do.
pub type OnBegin = Box<dyn Fn(&str, usize) + Sync>;

/// Told of what is being done.
pub struct Progress {
    /// A new part begins: its name and how much there is to do.
    pub on_begin: OnBegin,
    /// So much more is done.
    pub on_add: Box<dyn Fn(usize) + Sync>,
}

impl Progress {
    fn begin(&self, what: &str, len: usize) {
        (self.on_begin)(what, len);
    }
    fn add(&self, count: usize) {
        (self.on_add)(count);
    }
}

/// For each norm the unit's highest value over its top frames scaled to that norm.
fn best_frame_values(
    network: &Network,
    inputs: &Inputs,
    stage: usize,
    kind: Kind,
    unit: Unit,
    top: &[Answer],
    norms: &[f32],
) -> Vec<Option<f32>> {
    if top.is_empty() {
        return vec![None; norms.len()];
    }
    let frames: Vec<Array3<f32>> = top.iter().map(|answer| inputs.picture(answer.frame)).collect();
    let mut work = network.workspace(frames.len());
    let best = |&norm: &f32| {
        work.start(frames.len());
        for (lane, frame) in frames.iter().enumerate() {
            let length = frame.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            work.load_picture(lane, frame.iter().map(|x| x * norm / length));
        }
        network.forward(&mut work, stage);
        work.unit_values(network, stage, kind, unit).iter().copied().reduce(f32::max)
    };
    norms.iter().map(best).collect()
}

/// Writes the pictures of one stage's units.
struct Writer<'a> {
    folder: &'a Path,
    dataset: &'a Dataset,
    whitening: &'a Whitening,
    /// All tiles, a row for each unit.
    sheet: Vec<RgbImage>,
}

impl Writer<'_> {
    fn page(
        &mut self,
        stage: usize,
        unit: Unit,
        norms: &[f32],
        stimuli: &[&(Stimulus, Start)],
        best: &[Option<f32>],
        top: &[Answer],
    ) -> Result<UnitPage> {
        let name = format!("map{:03}-row{:02}-col{:02}", unit.map, unit.row, unit.col);
        let folder = PathBuf::from(format!("stage{stage}"));
        let full = self.folder.join(&folder);
        fs::create_dir_all(&full).map_err(Error::io(&full, "create"))?;
        let mut pages = Vec::new();
        for (((number, (stimulus, start)), norm), best) in (1..).zip(stimuli).zip(norms).zip(best) {
            let views = [
                ("pixels", signed_tile(self.whitening.unwhiten(stimulus.image.view()).view())),
                ("preprocessed", signed_tile(stimulus.image.view())),
            ];
            let mut paths = Vec::new();
            for (view, tile) in views {
                let path = folder.join(format!("{name}-stimulus{number}-{view}.png"));
                save_png(&tile, &self.folder.join(&path))?;
                self.sheet.push(tile);
                paths.push(path);
            }
            let [pixels, preprocessed] = <[PathBuf; 2]>::try_from(paths).expect("two views");
            debug_assert!((norm_of(&stimulus.image) / f64::from(*norm) - 1.0).abs() < 1e-5);
            pages.push(StimulusPage {
                norm: norm_of(&stimulus.image),
                value: stimulus.value,
                start: *start,
                start_value: stimulus.start_value,
                best_frame_value: *best,
                steps: stimulus.steps,
                flat: stimulus.flat,
                pixels,
                preprocessed,
            });
        }
        let shape = self.dataset.shape;
        let tile =
            |a: &Answer| pixel_tile(&self.dataset.pixels(a.frame), shape.channels, shape.rows, shape.cols);
        let tiles: Vec<RgbImage> = top.iter().map(tile).collect();
        let top_picture = folder.join(format!("{name}-top.png"));
        save_png(&grid(&tiles, tiles.len(), 1), &self.folder.join(&top_picture))?;
        self.sheet.extend(tiles);
        let frame = |a: &Answer| TopFrame { key: self.dataset.keys[a.frame].clone(), value: a.value };
        Ok(UnitPage { stage, unit, stimuli: pages, top: top.iter().map(frame).collect(), top_picture })
    }

    /// A sheet of all units: a row each.
    fn save_sheet(&self, stage: usize, columns: usize) -> Result<()> {
        let width = self.sheet.first().map_or(1, |tile| tile.width());
        save_png(
            &grid(&self.sheet, columns, (64 / width).max(1)),
            &self.folder.join(format!("stage{stage}.png")),
        )
    }
}

fn norm_of(image: &Array3<f32>) -> f64 {
    image.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}
