//! `RUN/invariance`: what is left of the responses of chosen units when pictures are changed, as JSON, curves and maps.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::figure::{Panel, Series, label, panels, significant};
use crate::analysis::invariance::transform::{Edges, Transformation};
use crate::analysis::invariance::{
    Curves, Invariance, Pictures, Subject, UnitCurve, invariance, moments, most_selective, shown, subject,
    yaw,
};
use crate::analysis::screen::Screen;
use crate::analysis::{Progress, UnitName};
use crate::dataset::{Dataset, available_memory};
use crate::error::{Error, Result};
use crate::files;
use crate::frames::FrameStore;
use crate::geometry::Kind;
use crate::network::checkpoint::Checkpoint;
use crate::network::preprocess::Inputs;
use crate::picture::{grid, pixel_tile, png, spread};

/// Frames that give resting values, evenly spread over all.
const RESTING_FRAMES: usize = 4096;

/// Curves in one panel; bands of more would hide each other.
const CURVES: usize = 4;

/// What to measure, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Units to measure; none for the most selective.
    pub units: Vec<UnitName>,
    /// Of each stage so many, if none are named.
    pub top: usize,
    /// Which value of a unit.
    pub kind: Kind,
    /// Pictures, evenly spread over all.
    pub count: usize,
    /// What lies beyond the border of a picture.
    pub edges: Edges,
    /// Drawn people whose heads are turned; 0 for none.
    pub people: usize,
    /// Name of the results.
    pub name: String,
    /// Seed of the drawn people.
    pub seed: u64,
}

impl Choice {
    /// Refuses what the network does not have, and names that are no file names.
    ///
    /// # Errors
    /// Names the flag.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        let plain = !self.name.is_empty() && !self.name.starts_with('.') && !self.name.contains(['/', '\0']);
        if !plain {
            let (key, got) = ("--name".into(), format!("`{}`", self.name));
            return Err(Error::Setting { key, got, want: "a file name without folders".into() });
        }
        self.units.iter().try_for_each(|unit| unit.check(&checkpoint.network, self.kind))
    }
}

/// `NAME.json`, and what else was made.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// How it was made.
    pub choice: Choice,
    /// The checkpoint, the pictures and the frames that it was made from, as their hashes tell them from others.
    pub made_from: [String; 3],
    /// Where the pictures are from.
    pub images: String,
    /// Pictures that were changed.
    pub pictures: usize,
    /// Where the frames are from that give resting values.
    pub frames: PathBuf,
    /// How many of them were looked at.
    pub frame_count: usize,
    /// What was found.
    #[serde(flatten)]
    pub found: Invariance,
    /// Figures beside this file: curves of each stage, and maps of occlusion, a tile for each unit in order, white where all of the
    /// response is left; all black for a unit that does not respond.
    pub figures: Vec<PathBuf>,
    /// True if it was there already, made alike from the same.
    #[serde(skip)]
    pub kept: bool,
    /// The folder of the figures.
    #[serde(skip)]
    pub folder: PathBuf,
    /// Pictures that could not be read.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let names = self.found.curves.iter().map(|curves| curves.change.as_str());
        let header: Vec<String> = names.map(|name| format!("{name:>13}")).collect();
        let kept = if self.kept { " (measured before)" } else { "" };
        writeln!(
            f,
            "{} pictures{kept}; at least half of the response is left from ... to ...\n",
            self.pictures
        )?;
        writeln!(f, "{:<14} {:>6} {}", "unit", "rest +", header.concat())?;
        for (at, subject) in self.found.subjects.iter().enumerate() {
            let name = subject.name.to_string();
            let ranges = self.found.curves.iter().map(|curves| format!("{:>13}", range(&curves.units[at])));
            writeln!(f, "{name:<14} {:>6} {}", significant(subject.selectivity), ranges.collect::<String>())?;
        }
        writeln!(
            f,
            "\nrest +: deviations above the mean over frames. -: the unchanged pictures do not drive the unit above it."
        )?;
        let place = |file: &PathBuf| self.folder.join(file).display().to_string();
        write!(f, "{}", self.figures.iter().map(place).collect::<Vec<_>>().join("\n"))
    }
}

fn range(unit: &UnitCurve) -> String {
    let of = |[low, high]: [f64; 2]| format!("{}..{}", label(&low), label(&high));
    unit.half_left.map_or("-".into(), of)
}

/// Changes pictures of `images` and writes `NAME.json`, curves of each stage as SVG and maps of occlusion as PNG to the folder
/// `out`. Resting values are over frames of `dataset`, which lies at `frames`. If the folder has the same already, made from the same
/// checkpoint `identity`, it is kept.
///
/// # Errors
/// No picture can be read, a unit does not exist, or the folder cannot be written.
pub fn report(
    (checkpoint, identity): (&Checkpoint, &str),
    (frames, dataset): (&Path, &Dataset),
    (images, store): (&str, &FrameStore),
    choice: &Choice,
    out: &Path,
    progress: &Progress,
) -> Result<Report> {
    choice.check(checkpoint)?;
    let Checkpoint { network, whitening, config } = checkpoint;
    let (kind, margin) = (choice.kind, config.input.margin);

    let json = out.join(format!("{}.json", choice.name));
    let made_from = [identity.to_owned(), store.identity(), dataset.fingerprint().to_owned()];
    if let Some(report) = kept(&json, choice, &made_from) {
        return Ok(Report { kept: true, folder: out.into(), ..report });
    }
    let asked = spread((0..store.len()).collect(), choice.count);
    progress.begin("pictures", asked.len());
    let (numbers, unchanged, warnings) = unchanged(checkpoint, store, &asked, progress)?;
    fs::create_dir_all(out).map_err(Error::io(out, "create"))?;
    let frame_numbers = spread((0..dataset.len()).collect(), RESTING_FRAMES);
    progress.begin("resting values", frame_numbers.len() + numbers.len());
    let over = |dataset: &Dataset, numbers: &[usize]| {
        let inputs = Inputs::new(dataset, whitening, budget(dataset, numbers));
        moments(network, kind, &inputs, numbers, |count| progress.add(count))
    };
    let of_frames = over(dataset, &frame_numbers);
    let of_pictures = over(&unchanged, &(0..unchanged.len()).collect::<Vec<_>>());
    let subjects: Vec<Subject> = match choice.units.is_empty() {
        true => most_selective(network, kind, choice.top, &of_frames, &of_pictures),
        false => {
            choice.units.iter().map(|&name| subject(network, kind, name, &of_frames, &of_pictures)).collect()
        }
    };
    let last = subjects.iter().map(|subject| subject.name.stage - 1).max().expect("at least one unit");
    let screen = Screen { network, whitening, last };

    progress.begin("changes", numbers.len());
    let read = |number: usize| store.picture(numbers[number]);
    let pictures = Pictures { count: numbers.len(), read: &read, edges: choice.edges, margin };
    let mut found = invariance(&screen, kind, &subjects, &pictures, || progress.add(1))?;
    if choice.people > 0 {
        progress.begin("heads", choice.people);
        let add = || progress.add(1);
        found.curves.push(yaw(&screen, kind, &subjects, choice.people, margin, choice.seed, add));
    }
    let mut report = Report {
        choice: choice.clone(),
        made_from,
        images: images.into(),
        pictures: numbers.len(),
        frames: frames.into(),
        frame_count: frame_numbers.len(),
        found,
        figures: Vec::new(),
        kept: false,
        folder: out.into(),
        warnings,
    };
    draw(&mut report, out)?;
    let text = serde_json::to_vec(&report).expect("results are plain data");
    files::replace(&json, text)?;
    Ok(report)
}

/// What is in a file, if it was made alike from the same.
fn kept(path: &Path, choice: &Choice, made_from: &[String; 3]) -> Option<Report> {
    let report: Report = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (report.choice == *choice && report.made_from == *made_from).then_some(report)
}

/// Memory for preprocessed pictures: none where only some of many are looked at.
fn budget(dataset: &Dataset, numbers: &[usize]) -> usize {
    if numbers.len() < dataset.len() { 0 } else { (available_memory() / 4) as usize }
}

/// The pictures that can be read, by number, as the network is shown them; and what is wrong with the others.
fn unchanged(
    checkpoint: &Checkpoint,
    store: &FrameStore,
    asked: &[usize],
    progress: &Progress,
) -> Result<(Vec<usize>, Dataset, Vec<String>)> {
    let (shape, margin) = (checkpoint.network.input, checkpoint.config.input.margin);
    let read = |&number: &usize| {
        let pixels = store.picture(number).map(|picture| shown(&picture, shape, margin));
        progress.add(1);
        (number, pixels)
    };
    let (mut numbers, mut pixels, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    for (number, read) in asked.par_iter().map(read).collect::<Vec<_>>() {
        match read {
            Ok(picture) => {
                numbers.push(number);
                pixels.extend(picture);
            }
            Err(error) => warnings.push(format!("left out: {error}")),
        }
    }
    if numbers.is_empty() {
        let first = warnings[0].trim_start_matches("left out: ");
        let problem = format!("none of {} pictures can be read; the first: {first}", asked.len());
        return Err(Error::Mismatch(problem));
    }
    Ok((numbers, Dataset::from_pixels(shape, pixels), warnings))
}

/// Draws curves of each stage, and maps of occlusion.
fn draw(report: &mut Report, out: &Path) -> Result<()> {
    let name = &report.choice.name;
    let subjects = &report.found.subjects;
    let mut stages: Vec<usize> = subjects.iter().map(|subject| subject.name.stage).collect();
    stages.sort();
    stages.dedup();
    for stage in stages {
        let figure = PathBuf::from(format!("{name}-stage{stage}.svg"));
        files::replace(&out.join(&figure), figure_of(&report.found, stage))?;
        report.figures.push(figure);
    }
    let side = report.found.map_side;
    let tile = |map: &Option<Vec<f64>>| {
        let level = |left: &f64| (255.0 * left.clamp(0.0, 1.0)).round() as u8;
        let pixels = map.as_ref().map_or(vec![0; side * side], |map| map.iter().map(level).collect());
        pixel_tile(&pixels, 1, side, side)
    };
    let tiles: Vec<_> = report.found.occlusion.iter().map(tile).collect();
    let path = PathBuf::from(format!("{name}-occlusion.png"));
    files::replace(&out.join(&path), png(&grid(&tiles, CURVES, 12)))?;
    report.figures.push(path);
    Ok(())
}

/// A panel for each change with curves of the first units of a stage.
fn figure_of(found: &Invariance, stage: usize) -> String {
    let of_stage: Vec<(usize, &Subject)> =
        found.subjects.iter().enumerate().filter(|(_, s)| s.name.stage == stage).take(CURVES).collect();
    let panel = |curves: &Curves| {
        let change = Transformation::ALL.into_iter().find(|change| name_of(*change) == curves.change);
        let on_axis = |amount: f64| change.map_or(amount, |change| change.on_axis(amount));
        let (title, x_name) = change
            .map_or(("turn of a drawn head", "degrees, to the viewer's right"), |change| change.names());
        let series = |&(at, subject): &(usize, &Subject)| {
            let unit = &curves.units[at];
            // One without response keeps its colour, and its place in the legend.
            let Some((left, quartiles)) = unit.left.as_ref().zip(unit.left_quartiles.as_ref()) else {
                let name = format!("{}: none", subject.name);
                return Series::Curve { name, points: Vec::new(), band: Vec::new() };
            };
            let xs = || curves.amounts.iter().map(|&amount| on_axis(amount));
            let points = xs().zip(left.iter().copied()).collect();
            let band = xs().zip(quartiles).map(|(x, [low, _, high])| (x, *low, *high)).collect();
            Series::Curve { name: subject.name.to_string(), points, band }
        };
        Panel {
            title: format!("{title} ({} pictures)", curves.pictures),
            x_name: x_name.into(),
            y_name: "share of the response left".into(),
            series: of_stage.iter().map(series).collect(),
        }
    };
    let all: Vec<Panel> = found.curves.iter().map(panel).collect();
    panels(&all, 3)
}

fn name_of(change: Transformation) -> String {
    serde_json::to_value(change).expect("a name").as_str().expect("a name").to_owned()
}
