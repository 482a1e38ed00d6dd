//! What a page's script shows of units: everything that the analyses of a run have found of them, as JSON.
//!
//! A file has all of it in itself. A server gives the list, and each unit's page and pictures when they are asked for.

use std::collections::HashMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat};
use serde::Serialize;

use super::detectors::{self, Evaluated};
use super::figure::significant;
use super::gallery::{Gallery, MeanFrame, Norm, StimulusPage, TopFrame, UnitPage};
use super::{invariance, tuning};
use crate::analysis::UnitName;
use crate::analysis::detector::Histogram;
use crate::analysis::statistics::Statistics;
use crate::analysis::stimulus::{Sign, Start};
use crate::analysis::tuning::{Silence, UnitTuning};
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::geometry::Kind;

/// Quality of the JPEGs that rows of frames are embedded as.
const QUALITY: u8 = 85;

/// All that was found of a run's units.
pub struct Findings {
    /// `RUN/visualize`.
    pub folder: PathBuf,
    /// What it holds, if it is there.
    pub gallery: Option<Gallery>,
    /// `RUN/evaluate`, in the order of names.
    pub evaluated: Vec<Evaluated>,
    tunings: Vec<tuning::StageTuning>,
    invariances: Vec<invariance::Report>,
    /// For each of `evaluated`, of each unit its places in the list of scores: one for each kind of value.
    scores: Vec<HashMap<UnitName, Vec<usize>>>,
    /// Which values of units are shown.
    kind: Kind,
}

/// The list of units.
#[derive(Serialize)]
pub struct Listing {
    /// Units of each stage, shown or not.
    stage_units: Vec<usize>,
    /// Which values they are ordered by.
    kind: Kind,
    whitened: bool,
    concepts: Vec<Concept>,
    units: Vec<Listed>,
}

#[derive(Serialize)]
struct Concept {
    name: String,
    positives: usize,
    negatives: usize,
    always_no: f64,
}

/// A unit in the list.
#[derive(Serialize)]
struct Listed {
    name: String,
    /// Value of its stimulus, and by how much that goes beyond the best frame.
    value: Option<f64>,
    gain: Option<f64>,
    kurtosis: f64,
    /// For each concept the best of its kinds of values.
    accuracy: Vec<Option<f64>>,
    /// Address of its stimulus as pixels.
    stimulus: Option<String>,
    top: Row,
    /// Bytes in base64.
    signature: String,
    /// Its page, in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<Page>,
}

/// Frames side by side.
#[derive(Serialize)]
struct Row {
    /// Address of the picture.
    picture: String,
    keys: Vec<String>,
    values: Vec<f64>,
}

/// All of a unit that is not in the list.
#[derive(Serialize)]
pub struct Page {
    stimuli: Vec<StimulusShown>,
    mean: Option<MeanShown>,
    bottom: Row,
    over_frames: Statistics,
    detectors: Vec<DetectorShown>,
    tunings: Vec<TuningShown>,
    invariances: Vec<InvarianceShown>,
}

/// The mean of a unit's top frames.
#[derive(Serialize)]
struct MeanShown {
    frames: usize,
    picture: String,
}

#[derive(Serialize)]
struct StimulusShown {
    title: String,
    value: Option<f64>,
    start: String,
    best_frame: Option<f64>,
    gain: Option<f64>,
    /// As pixels, none if the first of the list's; and as the network sees it.
    pixels: Option<String>,
    seen: Option<String>,
    flat: Option<String>,
    enhanced: Option<String>,
}

#[derive(Serialize)]
struct DetectorShown {
    concept: String,
    kind: Kind,
    accuracy: f64,
    threshold: f64,
    held_out: f64,
    auc: f64,
    average_precision: f64,
    flipped: f64,
    range: [f64; 2],
    /// Positives, and others.
    histogram: Histogram,
}

#[derive(Serialize)]
struct TuningShown {
    kind: Kind,
    /// Why there is none, if there is none.
    silent: Option<&'static str>,
    /// What it is in words.
    words: String,
    orientations_deg: Vec<f64>,
    orientation: Vec<f64>,
    frequencies_per_px: Vec<f64>,
    frequency: Vec<f64>,
}

#[derive(Serialize)]
struct InvarianceShown {
    pictures: String,
    kind: Kind,
    /// Deviations above rest.
    selectivity: f64,
    changes: Vec<ChangeShown>,
}

#[derive(Serialize)]
struct ChangeShown {
    name: String,
    amounts: Vec<f64>,
    left: Vec<f64>,
    quartiles: Vec<[f64; 3]>,
}

/// Where a page finds pictures.
#[derive(Clone, Copy, PartialEq)]
pub enum Pictures {
    /// In itself.
    Embedded,
    /// On its server, below `pictures/`.
    Served,
}

impl Findings {
    /// Reads what `visualize`, `evaluate`, `tuning` and `invariance` wrote, if they did.
    ///
    /// # Errors
    /// A file is missing or damaged, or belongs to another network.
    pub fn read(run: &Path, config: &RunConfig) -> Result<Findings> {
        let folder = run.join("visualize");
        let gallery = if folder.exists() { Some(read_gallery(&folder, config)?) } else { None };
        let kind = gallery.as_ref().map_or(Kind::Y, |gallery| gallery.choice.kind);
        let evaluated: Vec<Evaluated> = detectors::read_all(&run.join("evaluate"), "evaluate")?;
        let places = |evaluated: &Evaluated| {
            let mut places: HashMap<UnitName, Vec<usize>> = HashMap::new();
            for (place, unit) in evaluated.evaluation.units.iter().enumerate() {
                if is_placed_alike(unit.probe.kind, kind) {
                    places.entry(unit.probe.name()).or_default().push(place);
                }
            }
            places
        };
        Ok(Findings {
            scores: evaluated.iter().map(places).collect(),
            evaluated,
            tunings: detectors::read_all(&run.join("tuning"), "tuning")?,
            invariances: detectors::read_all(&run.join("invariance"), "invariance")?,
            folder,
            gallery,
            kind,
        })
    }

    /// What was made, as the command that makes it again, and with which checkpoint.
    pub(super) fn made_with(&self) -> Vec<(String, String)> {
        let gallery = self.gallery.iter().map(|gallery| ("visualize".into(), gallery.checkpoint.clone()));
        let evaluated = self
            .evaluated
            .iter()
            .map(|evaluated| (format!("evaluate ({})", evaluated.concept), evaluated.checkpoint.clone()));
        let tunings = self.tunings.iter().map(|tuning| {
            (format!("tuning (stage {}, {})", tuning.stage, tuning.kind), tuning.checkpoint.clone())
        });
        let invariances = self.invariances.iter().map(|invariance| {
            (format!("invariance ({})", invariance.images), invariance.made_from[0].clone())
        });
        gallery.chain(evaluated).chain(tunings).chain(invariances).collect()
    }

    /// The units shown.
    pub fn units(&self) -> &[UnitPage] {
        self.gallery.as_ref().map_or(&[], |gallery| &gallery.units)
    }

    /// Whether a unit has a page.
    pub fn shows(&self, name: UnitName) -> bool {
        self.units().iter().any(|unit| unit.stage == name.stage && unit.unit == name.unit)
    }

    /// All units, the top stage's first, with their pages if pictures are embedded; none if there are no pictures.
    ///
    /// # Errors
    /// A picture is missing or damaged.
    pub fn listing(&self, pictures: Pictures) -> Result<Option<Listing>> {
        let Some(gallery) = &self.gallery else { return Ok(None) };
        let concept = |evaluated: &Evaluated| Concept {
            name: evaluated.concept.clone(),
            positives: evaluated.evaluation.positives,
            negatives: evaluated.evaluation.negatives,
            always_no: evaluated.evaluation.always_no,
        };
        let mut pages: Vec<&UnitPage> = gallery.units.iter().collect();
        pages.sort_by_key(|page| std::cmp::Reverse(page.stage));
        Ok(Some(Listing {
            stage_units: gallery.stage_units.clone(),
            kind: self.kind,
            whitened: gallery.whitened,
            concepts: self.evaluated.iter().map(concept).collect(),
            units: pages.into_iter().map(|page| self.listed(page, pictures)).collect::<Result<_>>()?,
        }))
    }

    fn listed(&self, unit: &UnitPage, pictures: Pictures) -> Result<Listed> {
        let name = UnitName { stage: unit.stage, unit: unit.unit };
        let shown = shown_first(&unit.stimuli);
        let best = |(evaluated, places): (&Evaluated, &HashMap<UnitName, Vec<usize>>)| {
            let accuracies = places
                .get(&name)?
                .iter()
                .map(|&place| evaluated.evaluation.units[place].scores.paper.accuracy);
            accuracies.reduce(f64::max)
        };
        Ok(Listed {
            name: name.to_string(),
            value: shown.and_then(|s| s.value).map(short),
            gain: shown.and_then(StimulusPage::gain).map(short),
            kurtosis: short(unit.over_frames.kurtosis),
            accuracy: self.evaluated.iter().zip(&self.scores).map(best).collect(),
            stimulus: match shown.and_then(|s| s.pixels.as_ref()) {
                Some(path) => Some(self.address(path, Format::Exact, pictures)?),
                None => None,
            },
            top: self.row(&unit.top_picture, &unit.top, pictures)?,
            signature: STANDARD.encode(unit.signature.iter().map(|&value| value as u8).collect::<Vec<u8>>()),
            page: match pictures {
                Pictures::Embedded => Some(self.page(unit, pictures)?),
                Pictures::Served => None,
            },
        })
    }

    /// A unit's page, if it is among those shown.
    ///
    /// # Errors
    /// A picture is missing or damaged.
    pub fn page_of(&self, name: UnitName, pictures: Pictures) -> Result<Option<Page>> {
        let unit = self.units().iter().find(|unit| unit.stage == name.stage && unit.unit == name.unit);
        unit.map(|unit| self.page(unit, pictures)).transpose()
    }

    fn page(&self, unit: &UnitPage, pictures: Pictures) -> Result<Page> {
        let name = UnitName { stage: unit.stage, unit: unit.unit };
        let first = shown_first(&unit.stimuli).and_then(|s| s.pixels.as_ref());
        let stimulus = |s: &StimulusPage| -> Result<StimulusShown> {
            let address = |path: &Option<PathBuf>| {
                path.as_ref().map(|path| self.address(path, Format::Exact, pictures)).transpose()
            };
            let is_listed = s.pixels.is_some() && s.pixels.as_ref() == first;
            Ok(StimulusShown {
                title: title(s),
                value: s.value.map(short),
                start: s.start_value.map_or(String::new(), |value| {
                    let from = if s.start == Start::Noise { "noise" } else { "a top frame" };
                    format!("{} from {from}", significant(value))
                }),
                best_frame: s.best_frame_value.map(short),
                gain: s.gain().map(short),
                pixels: if is_listed { None } else { address(&s.pixels)? },
                seen: address(&s.preprocessed)?,
                flat: s.flat.clone(),
                enhanced: s.enhanced.clone(),
            })
        };
        let mean = |mean: &MeanFrame| -> Result<MeanShown> {
            let picture = self.address(&mean.picture, Format::Exact, pictures)?;
            Ok(MeanShown { frames: mean.frames, picture })
        };
        Ok(Page {
            mean: unit.mean.as_ref().map(mean).transpose()?,
            stimuli: unit.stimuli.iter().map(stimulus).collect::<Result<_>>()?,
            bottom: self.row(&unit.bottom_picture, &unit.bottom, pictures)?,
            over_frames: unit.over_frames,
            detectors: self.detectors(name),
            tunings: self.tunings(name),
            invariances: self.invariances(name),
        })
    }

    fn detectors(&self, name: UnitName) -> Vec<DetectorShown> {
        let of = |(evaluated, places): (&Evaluated, &HashMap<UnitName, Vec<usize>>)| {
            let shown = |&place: &usize| {
                let unit = &evaluated.evaluation.units[place];
                let scores = &unit.scores;
                DetectorShown {
                    concept: evaluated.concept.clone(),
                    kind: unit.probe.kind,
                    accuracy: scores.paper.accuracy,
                    threshold: scores.paper.threshold,
                    held_out: unit.held_out,
                    auc: scores.auc,
                    average_precision: scores.average_precision,
                    flipped: scores.flipped.accuracy,
                    range: [scores.min.into(), scores.max.into()],
                    histogram: unit.histogram,
                }
            };
            places.get(&name).into_iter().flatten().map(shown).collect::<Vec<_>>()
        };
        self.evaluated.iter().zip(&self.scores).flat_map(of).collect()
    }

    fn tunings(&self, name: UnitName) -> Vec<TuningShown> {
        let alike = |stage: &&tuning::StageTuning| {
            stage.stage == name.stage && is_placed_alike(stage.kind, self.kind)
        };
        let of = |stage: &tuning::StageTuning| {
            let unit = stage.units.iter().find(|unit| unit.unit == name.unit)?;
            let curves = unit.tuning.as_ref();
            let numbers =
                |values: Option<&Vec<f64>>| values.into_iter().flatten().copied().map(short).collect();
            Some(TuningShown {
                kind: stage.kind,
                silent: unit.silent.map(|silence| match silence {
                    Silence::Constant => "it is the same for all of them",
                    Silence::OnlySuppressed => "they only lower it",
                }),
                words: words(unit),
                orientations_deg: stage.stimuli.orientations_deg.clone(),
                orientation: numbers(curves.map(|tuning| &tuning.orientation.responses)),
                frequencies_per_px: numbers(Some(&stage.stimuli.frequencies_per_px)),
                frequency: numbers(curves.map(|tuning| &tuning.frequency.responses)),
            })
        };
        self.tunings.iter().filter(alike).filter_map(of).collect()
    }

    fn invariances(&self, name: UnitName) -> Vec<InvarianceShown> {
        let of = |report: &invariance::Report| {
            let at = report.found.subjects.iter().position(|subject| subject.name == name)?;
            if !is_placed_alike(report.choice.kind, self.kind) {
                return None;
            }
            let change = |curves: &crate::analysis::invariance::Curves| {
                let unit = &curves.units[at];
                Some(ChangeShown {
                    name: curves.change.clone(),
                    amounts: curves.amounts.clone(),
                    left: unit.left.as_ref()?.iter().copied().map(short).collect(),
                    quartiles: unit.left_quartiles.as_ref()?.iter().map(|q| q.map(short)).collect(),
                })
            };
            Some(InvarianceShown {
                pictures: report.choice.name.clone(),
                kind: report.choice.kind,
                selectivity: report.found.subjects[at].selectivity,
                changes: report.found.curves.iter().filter_map(change).collect(),
            })
        };
        self.invariances.iter().filter_map(of).collect()
    }

    fn row(&self, picture: &Path, frames: &[TopFrame], pictures: Pictures) -> Result<Row> {
        Ok(Row {
            picture: self.address(picture, Format::Frames, pictures)?,
            keys: frames.iter().map(|frame| frame.key.clone()).collect(),
            values: frames.iter().map(|frame| short(frame.value)).collect(),
        })
    }

    /// How a page gets a picture of the folder, which is looked at only where it is embedded.
    fn address(&self, name: &Path, format: Format, pictures: Pictures) -> Result<String> {
        match pictures {
            Pictures::Embedded => embedded(&self.folder, name, format),
            Pictures::Served => Ok(format!("pictures/{}", name.display())),
        }
    }
}

/// Reads `RUN/visualize/units.json`.
fn read_gallery(folder: &Path, config: &RunConfig) -> Result<Gallery> {
    let path = folder.join("units.json");
    let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
    let gallery: Gallery = serde_json::from_str(&text).map_err(|e| {
        Error::bad_file(&path, format!("not what this version's `striate visualize` writes: {e}"))
    })?;
    if gallery.stage_units.len() != config.stages.len() {
        let (got, want) = (gallery.stage_units.len(), config.stages.len());
        return Err(Error::bad_file(&path, format!("units of {got} stages, the run has {want}")));
    }
    Ok(gallery)
}

/// At which norm, which way, and which of several.
fn title(s: &StimulusPage) -> String {
    let mut title = match s.asked {
        Norm::Natural => format!("natural norm {}", significant(s.norm)),
        Norm::Fixed(_) => format!("norm {}", significant(s.norm)),
    };
    if s.sign == Sign::Negative {
        title = format!("lowest at {title}");
    }
    if s.optimum > 1 {
        title += &format!(", no. {}", s.optimum);
    }
    title
}

/// The stimulus that stands for its unit in the list: the highest at the natural norm, else the first.
fn shown_first(stimuli: &[StimulusPage]) -> Option<&StimulusPage> {
    let natural = |s: &&StimulusPage| s.asked == Norm::Natural && s.sign == Sign::Positive;
    stimuli.iter().find(natural).or(stimuli.first())
}

/// True if units of both kinds are at the same places: pooled and normalised ones are.
fn is_placed_alike(one: Kind, other: Kind) -> bool {
    (one == Kind::A) == (other == Kind::A)
}

/// Four digits that count.
fn short(value: impl Into<f64>) -> f64 {
    format!("{:.3e}", value.into()).parse().expect("a number")
}

fn words(unit: &UnitTuning) -> String {
    let Some(tuning) = &unit.tuning else { return String::new() };
    let (orientation, frequency) = (&tuning.orientation, &tuning.frequency);
    let width =
        orientation.half_width_deg.map_or(String::new(), |width| format!(" ± {}°", significant(width)));
    format!(
        "{}, F1/F0 {}; prefers {}°{width}, {} cycles per pixel (a cycle in {} pixels), {} octaves wide",
        if tuning.modulation > 1.0 { "simple" } else { "complex" },
        significant(tuning.modulation),
        significant(orientation.preferred_deg),
        significant(frequency.preferred_per_px),
        significant(1.0 / frequency.preferred_per_px),
        significant(frequency.bandwidth_octaves)
    )
}

/// How a picture is embedded.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Format {
    /// As a PNG, grey where it has no colour.
    Exact,
    /// As a JPEG: rows of frames, which are many.
    Frames,
}

/// The address of a PNG of `folder` that a page can have in itself.
///
/// # Errors
/// It is missing, is no PNG, or lies elsewhere.
pub(super) fn embedded(folder: &Path, name: &Path, format: Format) -> Result<String> {
    let picture = read_picture(folder, name)?;
    let is_grey =
        picture.to_rgb8().pixels().all(|pixel| pixel.0[0] == pixel.0[1] && pixel.0[1] == pixel.0[2]);
    let picture = if is_grey { picture.into_luma8().into() } else { DynamicImage::from(picture.into_rgb8()) };
    let mut bytes = std::io::Cursor::new(Vec::new());
    let fits = picture.width().max(picture.height()) <= u32::from(u16::MAX);
    let written = match format {
        Format::Frames if fits => {
            picture.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, QUALITY)).map(|()| "jpeg")
        }
        Format::Frames | Format::Exact => picture.write_to(&mut bytes, ImageFormat::Png).map(|()| "png"),
    };
    let kind = written.expect("writing into memory cannot fail");
    Ok(format!("data:image/{kind};base64,{}", STANDARD.encode(bytes.into_inner())))
}

/// A PNG that a run's files name, which must lie in `folder`.
fn read_picture(folder: &Path, name: &Path) -> Result<DynamicImage> {
    let path = folder.join(name);
    if !name.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(Error::bad_file(path, "a picture's path leads out of the folder"));
    }
    let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
    image::load_from_memory_with_format(&bytes, ImageFormat::Png).map_err(|e| {
        Error::bad_file(path, format!("not a PNG: make it again with `striate visualize` ({e})"))
    })
}
