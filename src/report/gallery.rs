//! `RUN/visualize`: pictures of first-stage filters, and for units of every stage the preferred stimulus and the frames
//! that drive it most.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use ndarray::Array3;
use serde::{Deserialize, Serialize};

use crate::analysis::stimulus::{
    Effort, Ended, Method, Parameters, Search, Sign, Start, Stimulus, View, Wanted, best_stimuli, why_flat,
};
use crate::analysis::top::{Answer, Ranking, top_frames};
use crate::analysis::{self, Progress};
use crate::dataset::{Dataset, available_memory};
use crate::error::{Error, Result};
use crate::files;
use crate::geometry::Kind;
use crate::network::checkpoint::Checkpoint;
use crate::network::preprocess::{Inputs, Whitening};
use crate::network::{Network, Unit, Weights};
use crate::picture::{captioned_png, filters, grid, pixel_tile, save_png, signed_tile, spread};

/// Units on the sheet of a stage: more would be too large a picture to open.
const SHEET_UNITS: usize = 512;

/// What to visualise, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Units of each stage, evenly spread over all; 0 for all.
    pub units: usize,
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
    /// What keeps them apart, see [`Wanted::repulsion`].
    pub repulsion: f32,
    /// Frames shown for each unit.
    pub top: usize,
    /// Seed of the noise.
    pub seed: u64,
}

impl Choice {
    /// The stages chosen, from 0, of a network of `count`; refuses charges for pixels where there are none.
    ///
    /// # Errors
    /// Names the flag.
    pub fn check(&self, count: usize) -> Result<Vec<usize>> {
        let View { parameters, total_variation, pixel_box } = self.view;
        for (key, charge) in [("--total-variation", total_variation), ("--pixel-box", pixel_box)] {
            if charge > 0.0 && parameters == Parameters::Input {
                let (key, got) = (key.into(), charge.to_string());
                let want = "0, as there are no pixels to charge for without --parameters pixels or fourier";
                return Err(Error::Setting { key, got, want: want.into() });
            }
        }
        analysis::stages(&self.stages, count)
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
        let units = spread(network.units(stage, choice.kind), choice.units);
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
            for (unit, (top, found)) in block.iter().zip(gathered) {
                pages.push(writer.page(stage, *unit, &found, &top)?);
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

/// What was found of a unit: the frames that drive it most, and its stimuli.
type Gathered = (Vec<Answer>, Vec<Found>);

/// What looks for the frames and stimuli of some units of a stage.
struct Gathering<'a> {
    network: &'a Network,
    whitening: &'a Whitening,
    inputs: &'a Inputs<'a>,
    choice: &'a Choice,
    /// Norms of the stimuli, in the order asked for.
    norms: &'a [f32],
    progress: &'a Progress,
}

impl Gathering<'_> {
    /// What is found of each of these units.
    fn run(&self, stage: usize, units: &[Unit], what: &str) -> Result<(Vec<Gathered>, Effort)> {
        let Gathering { network, whitening, inputs, choice, norms, progress } = *self;
        let at = (stage, choice.kind);
        let ranked = |ranking| top_frames(network, inputs, at, units, ranking, |n| progress.add(n));
        progress.begin(&format!("{what}: frames"), inputs.len());
        let tops = ranked(Ranking { sign: Sign::Positive, norm: None, keep: choice.top });
        let mut gathered: Vec<Gathered> = tops.into_iter().map(|top| (top, Vec::new())).collect();
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
                for (((_, found), stimuli), top) in gathered.iter_mut().zip(stimuli).zip(&frames) {
                    let best_frame = top.first().map(|answer| answer.value);
                    found.extend((1..).zip(stimuli).map(|(optimum, (stimulus, start))| Found {
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

/// A stimulus of a unit.
struct Found {
    asked: Norm,
    norm: f32,
    optimum: usize,
    stimulus: Stimulus,
    start: Start,
    /// The most extreme value of a frame of this norm.
    best_frame: Option<f32>,
}

/// Frames as the network takes them, but those that are zero everywhere.
fn starting_pictures(inputs: &Inputs, answers: &[Answer]) -> Vec<Array3<f32>> {
    let frames = answers.iter().map(|answer| inputs.picture(answer.frame));
    frames.filter(|frame| frame.iter().any(|&x| x != 0.0)).collect()
}

/// Writes the pictures of one stage's units.
struct Writer<'a> {
    folder: &'a Path,
    checkpoint: &'a Checkpoint,
    dataset: &'a Dataset,
    choice: &'a Choice,
    /// Tiles of the first units, a row for each.
    sheet: Vec<RgbImage>,
}

impl Writer<'_> {
    fn page(&mut self, stage: usize, unit: Unit, found: &[Found], top: &[Answer]) -> Result<UnitPage> {
        let name = format!("map{:03}-row{:02}-col{:02}", unit.map, unit.row, unit.col);
        let folder = PathBuf::from(format!("stage{}", stage + 1));
        let full = self.folder.join(&folder);
        fs::create_dir_all(&full).map_err(Error::io(&full, "create"))?;
        let shape = self.dataset.shape;
        let row = self.sheet.len();
        let mut stimuli = Vec::new();
        for (number, found) in (1..).zip(found) {
            stimuli.push(self.stimulus(stage, found, &folder.join(format!("{name}-stimulus{number}")))?);
        }
        // A unit may have fewer stimuli than others: the frames stand in one column all the same.
        let blank = RgbImage::from_pixel(shape.cols as u32, shape.rows as u32, image::Rgb([24; 3]));
        self.sheet.resize(row + self.stimulus_tiles(), blank.clone());
        let tile =
            |a: &Answer| pixel_tile(&self.dataset.pixels(a.frame), shape.channels, shape.rows, shape.cols);
        let tiles: Vec<RgbImage> = top.iter().map(tile).collect();
        let top_picture = folder.join(format!("{name}-top.png"));
        save_png(&grid(&tiles, tiles.len(), 1), &self.folder.join(&top_picture))?;
        self.sheet.extend(tiles);
        self.sheet.resize(row + self.stimulus_tiles() + self.choice.top, blank);
        self.sheet.truncate(SHEET_UNITS * (self.stimulus_tiles() + self.choice.top));
        let frame = |a: &Answer| TopFrame { key: self.dataset.keys[a.frame].clone(), value: a.value };
        let top = top.iter().map(frame).collect();
        Ok(UnitPage { stage: stage + 1, unit, stimuli, top, top_picture })
    }

    /// Tiles of a row that stimuli take: each as pixels and as the network sees it.
    fn stimulus_tiles(&self) -> usize {
        2 * self.choice.norms.len() * self.choice.signs.len() * self.choice.optima.max(1)
    }

    /// Writes a stimulus as `NAME-pixels.png` and `NAME-preprocessed.png`.
    fn stimulus(&mut self, stage: usize, found: &Found, name: &Path) -> Result<StimulusPage> {
        let Checkpoint { network, whitening, .. } = self.checkpoint;
        let Found { stimulus, norm, .. } = found;
        let is_flat = stimulus.is_flat();
        let (mut paths, enhanced) = ([None, None], self.choice.view.label());
        if !is_flat {
            let pixels = stimulus.pixels.clone();
            let pixels = pixels.unwrap_or_else(|| whitening.unwhiten(stimulus.image.view()));
            let views = [("pixels", pixels.view()), ("preprocessed", stimulus.image.view())];
            for ((view, values), path) in views.into_iter().zip(&mut paths) {
                let (tile, file) = (signed_tile(values), format!("{}-{view}.png", name.display()));
                let caption = self.caption(stage, found, view);
                let full = self.folder.join(&file);
                fs::write(&full, captioned_png(&tile, Some(&caption))).map_err(Error::io(&full, "write"))?;
                self.sheet.push(tile);
                *path = Some(file.into());
            }
            debug_assert!((norm_of(&stimulus.image) / f64::from(*norm) - 1.0).abs() < 1e-5);
        }
        let [pixels, preprocessed] = paths;
        let number = |value: f32| (!is_flat).then_some(value);
        Ok(StimulusPage {
            asked: found.asked,
            norm: f64::from(*norm),
            sign: stimulus.sign,
            optimum: found.optimum,
            value: number(stimulus.value),
            start: found.start,
            start_value: number(stimulus.start_value),
            best_frame_value: found.best_frame,
            evaluations: stimulus.evaluations,
            ended: stimulus.ended,
            flat: is_flat.then(|| why_flat(network, stage, self.choice.kind, stimulus.unit)),
            pixels,
            preprocessed,
            enhanced,
        })
    }

    /// What a picture's metadata say it is.
    fn caption(&self, stage: usize, found: &Found, view: &str) -> String {
        let Stimulus { unit, sign, value, .. } = &found.stimulus;
        let way = if *sign == Sign::Positive { "highest" } else { "lowest" };
        let mut caption = format!(
            "preferred stimulus of stage {}, map {}, row {}, column {}: the {way} value found at norm {:.4}, {value}; {}",
            stage + 1,
            unit.map,
            unit.row,
            unit.col,
            found.norm,
            match view {
                "pixels" if self.checkpoint.whitening.mixes_pixels() => "mapped back to pixels",
                "pixels" => "as pixels",
                _ => "as the network sees it",
            }
        );
        if let Some(label) = self.choice.view.label() {
            caption += &format!("; {label}");
        }
        caption
    }

    /// A sheet of the first units: a row each.
    fn save_sheet(&self, stage: usize) -> Result<()> {
        let width = self.sheet.first().map_or(1, |tile| tile.width());
        let columns = self.stimulus_tiles() + self.choice.top;
        save_png(
            &grid(&self.sheet, columns, (64 / width).max(1)),
            &self.folder.join(format!("stage{stage}.png")),
        )
    }
}

fn norm_of(image: &Array3<f32>) -> f64 {
    image.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}
