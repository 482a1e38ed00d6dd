//! `RUN/explain`: why units answered as they did to a picture, as numbers, in words, and as heat maps over what the network saw.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use image::{DynamicImage, Rgb, RgbImage};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::detectors::{Evaluated, Verdict, read_json};
use super::figure::significant;
use super::neighbours::Neighbour;
use crate::analysis::explain::{Explainer, Explanation, HeatMap, Part, Sanity, Settings};
use crate::analysis::look::Viewer;
use crate::analysis::responses::Probe;
use crate::analysis::{Progress, UnitName};
use crate::error::{Error, Result};
use crate::files;
use crate::frames::write_text;
use crate::picture::{enlarged, grid, png};
use crate::rng;

/// What all of an explanation is in.
const FILE: &str = "explanation.json";

/// Side of a tile of a panel, about.
const SIDE_PX: u32 = 256;

/// Free room around tiles, and height of a line of text.
const GAP_PX: u32 = 12;
const LINE_PX: u32 = 12;

const BACKGROUND: Rgb<u8> = Rgb([24, 24, 26]);
const TEXT: Rgb<u8> = Rgb([212, 212, 216]);

/// Colours of what raises the value and of what lowers it: orange and blue, which look different to everyone.
const RAISES: [f32; 3] = [255.0, 140.0, 26.0];
const LOWERS: [f32; 3] = [64.0, 148.0, 255.0];

/// Frames named that are most like a picture.
const NEIGHBOURS: usize = 8;

/// Integrated gradients that add up less well than that are said to, and why.
const WANTED_GAP: f64 = 0.01;

/// Units of each stage below that are named in words.
const PARTS: usize = 5;

/// Longest side of a tile of the row of frames.
const TILE_PX: u32 = 96;

/// Why units answered as they did to a picture: `RUN/explain/NAME/explanation.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Explained {
    /// The picture.
    pub image: PathBuf,
    /// See [`identity`](crate::network::checkpoint::identity).
    pub checkpoint: String,
    /// How they were explained.
    pub settings: Settings,
    /// What the network saw, as a hash.
    pub seen: String,
    /// The units.
    pub units: Vec<Told>,
    /// The frames most like it by the values of that stage, from the most like.
    pub neighbours: Vec<Neighbour>,
    /// What the network sees of it, and these frames side by side; beside this file.
    pub frames: PathBuf,
    /// Where all this lies.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// A unit's explanation.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    /// Why.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// By how many deviations its value is above its mean over the frames.
    pub above: f64,
    /// What it says as a detector, of everything that it was tested for.
    pub verdicts: Vec<Verdict>,
    /// Its maps, beside this file.
    pub picture: PathBuf,
}

/// Explains `units`, or if none are named those `count` of the viewer's stage that answer most unusually and have something to explain,
/// and writes all to `out/NAME`, a folder with the picture's name (and more, if another picture has that). Other units that were explained there stay, if it was the same picture
/// and the same network, looked at alike.
///
/// # Errors
/// A square that does not fit, no room for networks with random weights, or the folder cannot be written.
pub fn explain(
    viewer: &Viewer,
    (path, picture): (&Path, &DynamicImage),
    (units, count): (&[UnitName], usize),
    (settings, identity): (Settings, &str),
    evaluated: &[Evaluated],
    out: &Path,
    progress: &Progress,
) -> Result<Explained> {
    let pixels = viewer.seen(picture);
    let explainer = Explainer::new(&viewer.checkpoint, settings)?;
    let look = viewer.look(&pixels, NEIGHBOURS);
    let firing: HashMap<UnitName, f64> =
        look.stages.iter().flatten().map(|firing| (firing.name, firing.above)).collect();
    let units = match units {
        [] => look.to_explain(viewer.group.0).take(count).collect(),
        named => named.to_vec(),
    };

    let seen = format!("{:016x}", rng::stable_hash(&pixels));
    let stem = path.file_stem().map_or_else(|| "picture".into(), |stem| stem.to_string_lossy());
    let there = |folder: &Path| read_json::<Explained>(&folder.join(FILE), "explain").ok();
    // Another picture of that name keeps its place.
    let is_taken = there(&out.join(&*stem)).is_some_and(|before| before.seen != seen);
    let folder = out.join(if is_taken { format!("{stem}-{}", &seen[..8]) } else { stem.into_owned() });
    let before =
        there(&folder).filter(|before| (&before.checkpoint[..], before.settings) == (identity, settings));
    if before.is_none() && folder.exists() {
        fs::remove_dir_all(&folder).map_err(Error::io(&folder, "replace"))?;
    }
    fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
    let under = viewer.tile(&pixels);
    progress.begin("units", units.len());
    let tell = |&name: &UnitName| {
        let probe = Probe { stage: name.stage - 1, kind: viewer.group.1, unit: name.unit };
        let explanation = explainer.explain(&pixels, probe)?;
        let picture =
            PathBuf::from(format!("unit-{}-{}.png", name.to_string().replace(':', "-"), probe.kind));
        files::replace(&folder.join(&picture), png(&panel(&under, &explanation)))?;
        progress.add(1);
        let value = explanation.value;
        let verdicts = evaluated.iter().filter_map(|one| one.verdict(identity, probe, value)).collect();
        Ok(Told { explanation, above: firing[&name], verdicts, picture })
    };
    let mut told = units.par_iter().map(tell).collect::<Result<Vec<_>>>()?;
    let is_new = |old: &Told| told.iter().all(|new| new.explanation.probe != old.explanation.probe);
    let kept: Vec<Told> = before.into_iter().flat_map(|before| before.units).filter(is_new).collect();
    let new = told.len();
    told.extend(kept);
    let alike = look.neighbours.iter().map(|answer| viewer.tile(&viewer.frames.pixels(answer.frame)));
    let tiles: Vec<RgbImage> = std::iter::once(under.clone()).chain(alike).collect();
    let zoom = (TILE_PX / under.width().max(under.height())).max(1);
    let frames = PathBuf::from("frames.png");
    files::replace(&folder.join(&frames), png(&grid(&tiles, tiles.len(), zoom)))?;
    let neighbours = look.neighbours.iter().map(|answer| Neighbour {
        frame: answer.frame,
        key: viewer.frames.keys[answer.frame].clone(),
        similarity: answer.value,
    });
    let (image, checkpoint, neighbours) = (path.into(), identity.into(), neighbours.collect());
    let mut explained =
        Explained { image, checkpoint, settings, seen, units: told, neighbours, frames, folder };
    let json = serde_json::to_vec(&explained).expect("results are plain data");
    files::replace(&explained.folder.join(FILE), json)?;
    explained.units.truncate(new);
    Ok(explained)
}

/// The explanations of a run, `RUN/explain`, in the order of names; none if there are none.
///
/// # Errors
/// One of them cannot be read, or is not what `striate explain` writes.
pub fn read_explained(folder: &Path) -> Result<Vec<Explained>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.retain(|folder| folder.join(FILE).is_file());
    folders.sort();
    let read = |folder: PathBuf| {
        Ok(Explained { folder: folder.clone(), ..read_json(&folder.join(FILE), "explain")? })
    };
    folders.into_iter().map(read).collect()
}

impl Told {
    /// What it says, a line each.
    pub fn words(&self) -> Vec<String> {
        let Explanation { value, below, sanity, integrated, occlusion, .. } = &self.explanation;
        let direction = if self.above < 0.0 { "below" } else { "above" };
        let mut lines: Vec<String> = self.verdicts.iter().map(Verdict::to_string).collect();
        lines.extend([
            format!(
                "Value {}, {:.1} deviations {direction} its mean over the frames; {} for the baseline.",
                significant(*value),
                self.above.abs(),
                significant(self.explanation.baseline_shown())
            ),
            format!(
                "Half of what raises it comes from {} by integrated gradients, from {} by occlusion.",
                half(integrated),
                half(occlusion)
            ),
        ]);
        for through in below {
            let named = |parts: &[Part]| {
                let part = |part: &Part| format!("{} ({})", part.name, signed(part.adds));
                match parts {
                    [] => "none".into(),
                    parts => parts.iter().take(PARTS).map(part).collect::<Vec<_>>().join(", "),
                }
            };
            let (raise, lower) = (named(&through.raise), named(&through.lower));
            lines.push(format!("Through stage {}: raised by {raise}; lowered by {lower}.", through.stage));
        }
        lines.push(checked(&self.explanation));
        if !sanity.is_empty() {
            let one = |sanity: &Sanity| {
                let stages: Vec<String> = sanity.random_stages.iter().map(usize::to_string).collect();
                format!("{:.2} in stage {}", sanity.correlation_of_sizes, stages.join(" and "))
            };
            lines.push(format!(
                "Is it what was learned? Rank correlation with the same map for random weights (1 would mean that learning \
                 changed nothing): {}.",
                sanity.iter().map(one).collect::<Vec<_>>().join(", ")
            ));
        }
        lines
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for told in &self.units {
            let probe = &told.explanation.probe;
            writeln!(
                f,
                "unit {} ({})  {}",
                probe.name(),
                probe.kind,
                self.folder.join(&told.picture).display()
            )?;
            told.words().iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        if self.units.is_empty() {
            writeln!(
                f,
                "no unit of the stage answers otherwise than to the mean frame; name one with --unit"
            )?;
        }
        let one = |near: &Neighbour| format!("{} ({:.3})", near.key, near.similarity);
        let near: Vec<String> = self.neighbours.iter().map(one).collect();
        writeln!(f, "frames most like it: {}", near.join(", "))?;
        write!(f, "{}", self.folder.join(FILE).display())
    }
}

/// How well integrated gradients add up, those along the stages below included; where not, why.
pub fn checked(explanation: &Explanation) -> String {
    let Explanation { completeness, below, integrated, .. } = explanation;
    let gap = below.iter().map(|through| through.completeness.gap).fold(completeness.gap, f64::max);
    let (difference, sum) = (significant(completeness.difference), significant(completeness.sum));
    let excuse = match gap > WANTED_GAP {
        true => {
            let moved = significant(integrated.values.iter().map(|part| f64::from(part.abs())).sum::<f64>());
            format!(
                ", for the difference is small beside all that raises and lowers it, {moved}, and rounding shows"
            )
        }
        false => String::new(),
    };
    format!(
        "Checked: integrated gradients must add up to {difference} and add up to {sum}; the largest gap, stages below included, is \
         {:.2} %{excuse}.",
        100.0 * gap
    )
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Verdict { concept, threshold, accuracy, says_yes } = self;
        let (yes, above) = if *says_yes { ("yes", "is above") } else { ("no", "is not above") };
        let (threshold, percent) = (significant(*threshold), 100.0 * accuracy);
        write!(
            f,
            "As a detector of {concept} it says \"{yes}\": the value {above} {threshold} ({percent:.1} % right on the test pictures)."
        )
    }
}

fn signed(value: f64) -> String {
    let sign = if value > 0.0 { "+" } else { "" };
    format!("{sign}{}", significant(value))
}

/// How much of the picture holds half of what raises the value, and where its middle lies.
fn half(map: &HeatMap) -> String {
    let mut places: Vec<(usize, f32)> =
        map.values.iter().copied().enumerate().filter(|(_, value)| *value > 0.0).collect();
    places.sort_by(|a, b| b.1.total_cmp(&a.1));
    let all: f32 = places.iter().map(|(_, value)| value).sum();
    let (mut sum, mut count, mut row, mut col) = (0.0, 0, 0.0, 0.0);
    for (at, value) in places {
        if sum >= 0.5 * all {
            break;
        }
        sum += value;
        count += 1;
        row += value * (at / map.cols) as f32;
        col += value * (at % map.cols) as f32;
    }
    if count == 0 {
        return "nowhere".into();
    }
    let share = 100.0 * count as f64 / map.values.len() as f64;
    format!("{share:.0} % of the picture around row {:.0}, column {:.0}", row / sum, col / sum)
}

/// A heat map over a dimmed picture of its size: the largest magnitude is full colour, 0 leaves the picture as it is.
pub fn overlay(picture: &RgbImage, map: &HeatMap) -> RgbImage {
    assert_eq!(
        (picture.height() as usize, picture.width() as usize),
        (map.rows, map.cols),
        "as large as the picture"
    );
    let largest = map.values.iter().fold(0f32, |most, value| most.max(value.abs())).max(f32::MIN_POSITIVE);
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let share = map.values[y as usize * map.cols + x as usize] / largest;
        let colour = if share > 0.0 { RAISES } else { LOWERS };
        // The square root lets the eye see what is a tenth of the largest.
        let opacity = share.abs().sqrt();
        let pixel = picture.get_pixel(x, y).0.map(|level| 0.6 * f32::from(level));
        Rgb(std::array::from_fn(|c| (pixel[c] + opacity * (colour[c] - pixel[c])).round() as u8))
    })
}

/// What the network saw, and the maps of an explanation side by side, with their names.
pub fn panel(picture: &RgbImage, explanation: &Explanation) -> RgbImage {
    let zoom = (SIDE_PX / picture.width().max(1)).max(1);
    let plain = [("seen by the network", enlarged(picture, zoom))];
    let maps = [
        ("gradient x input", &explanation.gradient_input),
        ("integrated gradients", &explanation.integrated),
        ("occlusion", &explanation.occlusion),
    ];
    let maps = maps.map(|(name, map)| (name, enlarged(&overlay(picture, map), zoom)));
    let tiles: Vec<(&str, RgbImage)> = plain.into_iter().chain(maps).collect();
    let (width, height) = tiles[0].1.dimensions();
    let count = tiles.len() as u32;
    let size = (count * (width + GAP_PX) + GAP_PX, height + 2 * GAP_PX + 3 * LINE_PX);
    let mut panel = RgbImage::from_pixel(size.0, size.1, BACKGROUND);
    let probe = &explanation.probe;
    let title = format!("unit {} ({}), value {:.4}", probe.name(), probe.kind, explanation.value);
    write_text(&mut panel, &title, GAP_PX, GAP_PX / 2, TEXT);
    for (number, (name, tile)) in (0..).zip(&tiles) {
        let left = GAP_PX + number * (width + GAP_PX);
        write_text(&mut panel, name, left, GAP_PX / 2 + LINE_PX + LINE_PX / 2, TEXT);
        image::imageops::replace(&mut panel, tile, left.into(), (GAP_PX + 2 * LINE_PX).into());
    }
    write_text(
        &mut panel,
        "orange raises the value, blue lowers it; each map to its own maximum",
        GAP_PX,
        size.1 - GAP_PX - 2,
        TEXT,
    );
    panel
}
