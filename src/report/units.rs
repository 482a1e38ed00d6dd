//! `RUN/visualize` as the report shows it: texts ready to print, pictures as they go into the page.

use std::fs;
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::figure::{grouped, label, significant};
use super::gallery::{Gallery, Norm, StimulusPage, UnitPage};
use crate::analysis::stimulus::{Sign, Start};
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::geometry::Kind;
use crate::picture::{FILTERS_ACROSS, FILTERS_SHOWN};

/// Everything the page shows of `RUN/visualize`.
pub struct GalleryView {
    pub whitened: bool,
    /// Which units and frames these are.
    pub what: String,
    pub filters_layout: String,
    pub filters: Vec<(&'static str, Picture)>,
    /// From the top.
    pub stages: Vec<StageView>,
}

pub struct StageView {
    pub number: usize,
    pub title: String,
    pub units: Vec<UnitView>,
}

pub struct UnitView {
    /// Its place in the page's address.
    pub id: String,
    pub name: String,
    /// To sort by: of its first stimulus.
    pub value: Option<f32>,
    pub gain: Option<f32>,
    pub stimuli: Vec<StimulusView>,
    pub top: Option<TopView>,
}

pub struct StimulusView {
    pub norm: String,
    pub value: String,
    pub start: String,
    /// Empty if there is none.
    pub best_frame: String,
    /// The same.
    pub gain: String,
    /// As pixels and as the network sees it; none if there was no gradient.
    pub pictures: Option<(Picture, Picture)>,
    /// Why there are none.
    pub flat: String,
    /// How it was made easier to look at, if it was.
    pub enhanced: String,
}

pub struct TopView {
    pub picture: Picture,
    pub title: String,
    pub frames: Vec<(String, String)>,
}

/// A PNG.
pub struct Picture {
    pub width: u32,
    pub height: u32,
    base64: String,
}

impl GalleryView {
    /// Units in all.
    pub fn len(&self) -> usize {
        self.stages.iter().map(|stage| stage.units.len()).sum()
    }
}

impl Picture {
    /// Reads the PNG that `units.json` names, which must lie in `folder`.
    fn read(folder: &Path, name: &Path) -> Result<Picture> {
        let path = folder.join(name);
        if !name.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::bad_file(path, "a picture's path leads out of the folder"));
        }
        let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
        // Signature, then the header chunk: its length, its name, width, height.
        let number = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let is_png = bytes.starts_with(b"\x89PNG\r\n\x1a\n") && bytes.get(12..16) == Some(b"IHDR");
        match (is_png, number(16), number(20)) {
            (true, Some(width), Some(height)) => {
                Ok(Picture { width, height, base64: STANDARD.encode(bytes) })
            }
            _ => Err(Error::bad_file(path, "not a PNG: make it again with `striate visualize`")),
        }
    }

    /// Attributes of an `img` element shown `width` wide.
    pub fn attributes(&self, width: impl std::borrow::Borrow<u32>) -> String {
        let width = *width.borrow();
        let height = u64::from(self.height) * u64::from(width) / u64::from(self.width.max(1));
        format!(
            "src=\"data:image/png;base64,{}\" width=\"{width}\" height=\"{height}\" decoding=\"async\"",
            self.base64
        )
    }

    /// Width of the picture enlarged by the whole number that brings it nearest to `target`.
    pub fn zoomed(&self, target: u32) -> u32 {
        self.width * zoom(self.width, target)
    }

    /// The same for a strip of square tiles, each enlarged to about `target`.
    pub fn strip_zoomed(&self, target: u32) -> u32 {
        self.width * zoom(self.height, target)
    }
}

fn zoom(side: u32, target: u32) -> u32 {
    ((target + side / 2) / side.max(1)).max(1)
}

/// Reads the folder `RUN/visualize`.
///
/// # Errors
/// A file is missing or damaged, or belongs to another network.
pub fn view(folder: &Path, config: &RunConfig) -> Result<GalleryView> {
    let path = folder.join("units.json");
    let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
    let gallery: Gallery = serde_json::from_str(&text).map_err(|e| {
        Error::bad_file(&path, format!("not what this version's `striate visualize` writes: {e}"))
    })?;
    if gallery.stage_units.len() != config.stages.len() {
        let (got, want) = (gallery.stage_units.len(), config.stages.len());
        return Err(Error::bad_file(&path, format!("units of {got} stages, the run has {want}")));
    }
    let kind = match gallery.choice.kind {
        Kind::A => "filter responses (a)",
        Kind::H => "pooled responses (h)",
        Kind::Y => {
            "pooled and contrast-normalised responses (y), below zero where a unit responds less than those around it"
        }
    };
    let frames = grouped(gallery.frame_count as u64);
    let what =
        format!("Each unit was shown {frames} frames of {}. Values are {kind}.", gallery.frames.display());
    let mut stages = Vec::new();
    for (index, all) in gallery.stage_units.iter().enumerate().rev() {
        let number = index + 1;
        let pages = gallery.units.iter().filter(|page| page.stage == number);
        let shape = match gallery.choice.kind {
            Kind::A => config.shapes()[index].filtered,
            Kind::H | Kind::Y => config.shapes()[index].pooled,
        };
        let view = |page: &UnitPage| unit_view(folder, &gallery, page, shape.rows * shape.cols > 1);
        let units = pages.map(view).collect::<Result<Vec<_>>>()?;
        if !units.is_empty() {
            let title = format!("{} of {} units", units.len(), grouped(*all as u64));
            stages.push(StageView { number, title, units });
        }
    }
    let filter = |name, file: &str| Ok((name, Picture::read(folder, Path::new(file))?));
    Ok(GalleryView {
        whitened: gallery.whitened,
        what,
        filters_layout: filters_layout(config),
        filters: vec![filter("Encoder", "filters-encoder.png")?, filter("Decoder", "filters-decoder.png")?],
        stages,
    })
}

/// How the grid of filters is to be read.
fn filters_layout(config: &RunConfig) -> String {
    let shape = config.shapes()[0];
    let (maps, positions) = (shape.filtered.channels, shape.positions());
    let across = maps.min(FILTERS_ACROSS);
    let which =
        if across < maps { format!("the first {across} of {maps} maps") } else { format!("{maps} maps") };
    let shown = (FILTERS_SHOWN / across).clamp(1, positions);
    format!(
        "Each {across} tiles side by side are {which} at one position; the {shown} positions, of {positions}, \
         are spread over the picture from its middle to its border."
    )
}

/// `placed` says if the stage has more than one position.
fn unit_view(folder: &Path, gallery: &Gallery, page: &UnitPage, placed: bool) -> Result<UnitView> {
    let unit = page.unit;
    let norm = |stimulus: &StimulusPage| {
        let norm = label(&stimulus.norm);
        match stimulus.asked {
            Norm::Natural => format!("natural norm {norm}"),
            Norm::Fixed(_) => format!("norm {norm}"),
        }
    };
    let stimulus = |s: &StimulusPage| -> Result<StimulusView> {
        let start = match s.start {
            Start::Noise => "from noise",
            Start::TopFrame => "from a top frame",
        };
        let picture =
            |path: &Option<PathBuf>| path.as_ref().map(|path| Picture::read(folder, path)).transpose();
        let mut norm = norm(s);
        if s.sign == Sign::Negative {
            norm = format!("lowest at {norm}");
        }
        if gallery.choice.optima > 1 {
            norm += &format!(", no. {}", s.optimum);
        }
        Ok(StimulusView {
            norm,
            value: s.value.map_or(String::new(), significant),
            start: s.start_value.map_or(String::new(), |value| format!("{} {start}", significant(value))),
            best_frame: s.best_frame_value.map_or(String::new(), significant),
            gain: s.gain().map_or(String::new(), |gain| {
                if gain < 0.0 { significant(gain) } else { format!("+{}", significant(gain)) }
            }),
            pictures: picture(&s.pixels)?.zip(picture(&s.preprocessed)?),
            flat: s.flat.clone().unwrap_or_default(),
            enhanced: s.enhanced.clone().unwrap_or_default(),
        })
    };
    let first = page.stimuli.first();
    Ok(UnitView {
        id: format!("s{}-m{}-r{}-c{}", page.stage, unit.map, unit.row, unit.col),
        name: if placed {
            format!("map {}, row {}, column {}", unit.map, unit.row, unit.col)
        } else {
            format!("map {}", unit.map)
        },
        value: first.and_then(|s| s.value),
        gain: first.and_then(StimulusPage::gain),
        stimuli: page.stimuli.iter().map(stimulus).collect::<Result<_>>()?,
        top: top_view(folder, page)?,
    })
}

fn top_view(folder: &Path, page: &UnitPage) -> Result<Option<TopView>> {
    let (Some(first), Some(last)) = (page.top.first(), page.top.last()) else { return Ok(None) };
    let (most, least) = (significant(first.value), significant(last.value));
    Ok(Some(TopView {
        picture: Picture::read(folder, &page.top_picture)?,
        title: format!("Top {} frames: {most} to {least}", page.top.len()),
        frames: page.top.iter().map(|frame| (frame.key.clone(), significant(frame.value))).collect(),
    }))
}
