//! `RUN/visualize`: pictures of first-stage filters, and for units of every stage the preferred stimulus and the frames
//! that drive it most.

mod gather;
mod writer;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::analysis::statistics::Statistics;
use crate::analysis::stimulus::{Effort, Ended, Method, Parameters, Sign, Start, View};
use crate::analysis::{self, Progress, UnitName};
use crate::dataset::{Dataset, available_memory};
use crate::error::{Error, Result};
use crate::files;
use crate::geometry::Kind;
use crate::network::checkpoint::Checkpoint;
use crate::network::preprocess::Inputs;
use crate::network::{Network, Unit, Weights};
use crate::picture::{filters, save_png, spread};
use gather::Gathering;
use writer::Writer;

/// Units on the sheet of a stage: more would be too large a picture to open.
const SHEET_UNITS: usize = 512;

/// Frames on which units are compared with each other.
pub const SIGNATURE_FRAMES: usize = 256;

/// What to visualise, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Units of each stage, evenly spread over all; 0 for all.
    pub units: usize,
    /// Further units, such as the best detectors of something.
    pub also: Vec<UnitName>,
    /// Stages, from 1; none for all.
    pub stages: Vec<usize>,
    /// Which value of a unit.
    pub kind: Kind,
    /// Norms of the stimuli.
    pub norms: Vec<Norm>,
    /// Which ways each unit is driven.
    pub signs: Vec<Sign>,
    /// How a search climbs.
    pub method: Method,
    /// Most evaluations of one search.
    pub evaluations: usize,
    /// What is moved, and charged for.
    pub view: View,
    /// Searches from different noise for each unit; the best of all searches is kept.
    pub restarts: usize,
    /// Searches from the frames that drive the unit most, of those scaled to the stimulus's norm.
    pub from_frames: usize,
    /// Different stimuli of each unit.
    pub optima: usize,
    /// What keeps them apart, see [`Wanted`](crate::analysis::stimulus::Wanted).
    pub repulsion: f32,
    /// Frames shown for each unit.
    pub top: usize,
    /// Of so many top frames the mean is shown; 0 for none.
    pub mean: usize,
    /// Seed of the noise.
    pub seed: u64,
}

impl Choice {
    /// The stages chosen, from 0, of a network of `count`; refuses charges for pixels where there are none.
    ///
    /// # Errors
    /// Names the flag.
    pub fn check(&self, count: usize) -> Result<Vec<usize>> {
        let View { parameters, total_variation, pixel_box, .. } = self.view;
        for (key, charge) in [("--total-variation", total_variation), ("--pixel-box", pixel_box)] {
            if charge > 0.0 && parameters == Parameters::Input {
                let (key, got) = (key.into(), charge.to_string());
                let want = "0, as there are no pixels to charge for without --parameters pixels or fourier";
                return Err(Error::Setting { key, got, want: want.into() });
            }
        }
        analysis::stages(&self.stages, count)
    }

    /// The units of a stage of this choice, in the network's order.
    fn units_of(&self, network: &Network, stage: usize) -> Vec<Unit> {
        let all = network.units(stage, self.kind);
        let mut chosen = vec![false; all.len()];
        spread((0..all.len()).collect(), self.units).into_iter().for_each(|at| chosen[at] = true);
        for name in self.also.iter().filter(|name| name.stage == stage + 1) {
            all.iter().position(|unit| *unit == name.unit).into_iter().for_each(|at| chosen[at] = true);
        }
        all.into_iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(unit, _)| unit).collect()
    }

    /// Units that are searched for together, so that their pictures, of so many values, take no more than an eighth of the free memory:
    /// for each search its start and what was found before, and what is found for each norm and way.
    fn units_at_once(&self, values: usize) -> usize {
        let optima = self.optima.max(1);
        let searches = (self.restarts + self.from_frames) * (1 + optima);
        let pictures = searches + 2 * optima * self.norms.len() * self.signs.len();
        let units = available_memory() / 8 / (4 * values * pictures.max(1)) as u64;
        units.clamp(64, 1 << 20) as usize
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
    /// See [`identity`](crate::network::checkpoint::identity).
    pub checkpoint: String,
    /// How it was made.
    pub choice: Choice,
    /// Where the frames are from.
    pub frames: PathBuf,
    /// Frames that were looked at.
    pub frame_count: usize,
    /// Number of units in each stage.
    pub stage_units: Vec<usize>,
    /// What the search for the stimuli of each stage took.
    pub searched: Vec<Effort>,
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
    /// Preferred stimuli: for each norm and way those found, the best first.
    pub stimuli: Vec<StimulusPage>,
    /// The frames that drive it most.
    pub top: Vec<TopFrame>,
    /// PNG of those frames in a row, relative to the folder.
    pub top_picture: PathBuf,
    /// The mean of the frames that drive it most, if it was asked for.
    pub mean: Option<MeanFrame>,
    /// The frames with its lowest values, from the lowest.
    pub bottom: Vec<TopFrame>,
    /// PNG of those.
    pub bottom_picture: PathBuf,
    /// Its values over all frames.
    pub over_frames: Statistics,
    /// Its values on [`SIGNATURE_FRAMES`] frames, or all if there are fewer, evenly spread: less their mean, and 127 for the
    /// largest. The correlation of two units' signatures says how alike they respond.
    pub signature: Vec<i8>,
}

/// One preferred stimulus.
#[derive(Debug, Serialize, Deserialize)]
pub struct StimulusPage {
    /// The norm asked for.
    pub asked: Norm,
    /// Norm of the picture.
    pub norm: f64,
    /// Which way the unit is driven.
    pub sign: Sign,
    /// Which of the different stimuli of this norm and way, from 1.
    pub optimum: usize,
    /// The unit's value for it; none if there was no gradient to climb.
    pub value: Option<f32>,
    /// Where the search began that found it.
    pub start: Start,
    /// The unit's value at that start.
    pub start_value: Option<f32>,
    /// The most extreme value of all frames scaled to this norm.
    pub best_frame_value: Option<f32>,
    /// Evaluations of the unit in that search.
    pub evaluations: usize,
    /// Why it ended.
    pub ended: Ended,
    /// Why there is no picture, if there is none.
    pub flat: Option<String>,
    /// PNG as pixels, relative to the folder.
    pub pixels: Option<PathBuf>,
    /// PNG as the network sees it.
    pub preprocessed: Option<PathBuf>,
    /// How the search was made to give pictures that are easier to look at, if it was.
    pub enhanced: Option<String>,
}

impl StimulusPage {
    /// How much more the stimulus drives the unit, in its own way, than any frame of the same norm does. A difference, because values
    /// after contrast normalisation have either sign.
    pub fn gain(&self) -> Option<f32> {
        Some(self.sign.factor() * (self.value? - self.best_frame_value?))
    }
}

/// The mean of the frames that drive a unit most.
#[derive(Debug, Serialize, Deserialize)]
pub struct MeanFrame {
    /// Of so many.
    pub frames: usize,
    /// The mean, each frame's own mean and contrast removed, between black and white.
    pub picture: PathBuf,
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
            let flat = stimuli().filter(|s| s.flat.is_some()).count();
            write!(f, "stage {stage}: {} of {all} units, {} stimuli", units.len(), stimuli().count() - flat)?;
            let first = || stimuli().filter(|s| s.optimum == 1).filter_map(StimulusPage::gain);
            let (beaten, compared) = (first().filter(|&gain| gain > 0.0).count(), first().count());
            if compared > 0 {
                write!(f, ", {beaten} of {compared} best ones beyond every frame of their norm")?;
            }
            let limit = stimuli().filter(|s| s.ended == Ended::Limit).count();
            if limit > 0 {
                write!(f, ", {limit} still climbing at the last evaluation")?;
            }
            if flat > 0 {
                write!(f, ", {flat} without a gradient")?;
            }
            writeln!(f)?;
        }
        write!(f, "{} frames looked at", self.frame_count)
    }
}

/// Makes the pictures in the new folder `out`, which replaces an older one when complete. `progress` is told what is
/// being done, how much of it there is, and of every part done. Stages that an interrupted call completed are not made again, if the
/// checkpoint `identity`, the frames and the choice are the same.
///
/// # Errors
/// A stage does not exist, or the folder cannot be written.
pub fn visualize(
    checkpoint: &Checkpoint,
    identity: &str,
    dataset: &Dataset,
    frames: &Path,
    choice: &Choice,
    out: &Path,
    progress: &Progress,
) -> Result<Gallery> {
    let Checkpoint { network, whitening, .. } = checkpoint;
    let count = network.stages.len();
    let stages = choice.check(count)?;
    let partial = out.with_extension("partial");
    let made =
        Made { checkpoint: identity.into(), choice: choice.clone(), frames: dataset.fingerprint().into() };
    made.begin(&partial)?;

    let inputs = Inputs::new(dataset, whitening, (available_memory() / 4) as usize);
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
    let (mut pages, mut searched) = (Vec::new(), vec![Effort::default(); count]);
    for &stage in &stages {
        if let Some(done) = DoneStage::read(&partial, stage) {
            searched[stage] = done.effort;
            pages.extend(done.pages);
            continue;
        }
        let before = pages.len();
        let units = choice.units_of(network, stage);
        let mut writer = Writer { folder: &partial, checkpoint, dataset, choice, sheet: Vec::new() };
        let blocks = units.chunks(choice.units_at_once(dataset.shape.len()));
        for (number, block) in (1..).zip(blocks.clone()) {
            let of =
                if blocks.len() > 1 { format!(", part {number} of {}", blocks.len()) } else { String::new() };
            let search = Gathering { network, whitening, inputs: &inputs, choice, norms: &norms, progress };
            let what = format!("stage {}{of}", stage + 1);
            let (gathered, effort) = search.run(stage, block, &what)?;
            searched[stage] += effort;
            progress.begin(&format!("{what}: pictures"), block.len());
            for (unit, gathered) in block.iter().zip(gathered) {
                pages.push(writer.page(stage, *unit, gathered)?);
                progress.add(1);
            }
        }
        writer.save_sheet(stage + 1)?;
        let done = DoneStage { effort: searched[stage], pages: pages.split_off(before) };
        done.write(&partial, stage)?;
        pages.extend(done.pages);
    }
    // They served an interrupted call only.
    for path in stages.iter().map(|&stage| DoneStage::path(&partial, stage)).chain([partial.join(Made::FILE)])
    {
        fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
    }
    let gallery = Gallery {
        checkpoint: identity.into(),
        choice: choice.clone(),
        frames: frames.into(),
        frame_count: dataset.len(),
        stage_units: (0..count).map(|stage| network.shape(stage, choice.kind).len()).collect(),
        searched,
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

/// What pictures are made from: those of an interrupted call are gone on with only if all of it is the same.
#[derive(PartialEq, Serialize, Deserialize)]
struct Made {
    checkpoint: String,
    choice: Choice,
    frames: String,
}

impl Made {
    const FILE: &'static str = "made.json";

    /// Prepares the folder in which pictures are made.
    fn begin(&self, folder: &Path) -> Result<()> {
        let path = folder.join(Self::FILE);
        let before = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if before.as_ref() == Some(self) {
            return Ok(());
        }
        if folder.exists() {
            fs::remove_dir_all(folder).map_err(Error::io(folder, "remove"))?;
        }
        fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
        files::replace(&path, serde_json::to_vec(self).expect("plain data"))
    }
}

/// A stage whose pictures are all made, while those of others are not.
#[derive(Serialize, Deserialize)]
struct DoneStage {
    effort: Effort,
    pages: Vec<UnitPage>,
}

impl DoneStage {
    fn path(folder: &Path, stage: usize) -> PathBuf {
        folder.join(format!("stage{}.json", stage + 1))
    }

    fn read(folder: &Path, stage: usize) -> Option<DoneStage> {
        serde_json::from_slice(&fs::read(Self::path(folder, stage)).ok()?).ok()
    }

    fn write(&self, folder: &Path, stage: usize) -> Result<()> {
        files::replace(&Self::path(folder, stage), serde_json::to_vec(self).expect("plain data"))
    }
}
