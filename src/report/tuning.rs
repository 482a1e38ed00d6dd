//! `RUN/tuning`: what the units of each stage are tuned to, as JSON, curves and maps of receptive fields.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::figure::{Panel, Series, panels, significant};
use crate::analysis::screen::Screen;
use crate::analysis::tuning::fields::{Place, ReceptiveField, receptive_fields};
use crate::analysis::tuning::gratings::{Density, Grid};
use crate::analysis::tuning::{Class, Tuning, UnitTuning, pictures, tune};
use crate::analysis::{Progress, quantile, stages};
use crate::error::{Error, Result};
use crate::files;
use crate::geometry::Kind;
use crate::network::Unit;
use crate::network::checkpoint::Checkpoint;
use crate::picture::{grid as tiles, pixel_tile, png, signed_tile, spread};

/// Units whose curves are drawn.
const CURVES: usize = 6;

/// F1/F0 goes from 0 to 2; so many bars of its histogram.
const MODULATION_BARS: usize = 20;

/// What to measure, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Stages, from 1; none for all.
    pub stages: Vec<usize>,
    /// Which value of a unit.
    pub kind: Kind,
    /// Units of each stage, evenly spread over all; 0 for all.
    pub units: usize,
    /// How finely gratings and bars are spaced.
    pub density: Density,
    /// Units of each stage, the strongest, whose receptive fields are mapped.
    pub fields: usize,
    /// Pictures of noise for the spike-triggered average of linear units.
    pub noise: usize,
    /// Seed of the noise.
    pub seed: u64,
}

/// `stageN-KIND.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct StageTuning {
    /// The stage, from 1.
    pub stage: usize,
    /// Which value of its units.
    pub kind: Kind,
    /// The checkpoint, see [`identity`](crate::network::checkpoint::identity).
    pub checkpoint: String,
    /// How it was measured; of the stages only this one.
    pub choice: Choice,
    /// Units that the stage has.
    pub stage_units: usize,
    /// What was shown.
    pub stimuli: Grid,
    /// All units together.
    pub summary: Summary,
    /// Receptive fields of the strongest units.
    pub fields: Vec<Field>,
    /// The units, map after map.
    pub units: Vec<UnitTuning>,
}

/// The units of a stage together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Units measured.
    pub measured: usize,
    /// Those without tuning.
    pub silent: usize,
    /// Those with F1/F0 above 1.
    pub simple: usize,
    /// The others that respond.
    pub complex: usize,
    /// Median F1/F0 of those that respond; this and the following are none if none does.
    pub median_modulation: Option<f64>,
    /// Median half width at half height of those that have one, in degrees.
    pub median_half_width_deg: Option<f64>,
    /// Median circular variance.
    pub median_circular_variance: Option<f64>,
    /// Median preferred frequency, in cycles per pixel.
    pub median_frequency_per_px: Option<f64>,
    /// Median bandwidth, in octaves.
    pub median_bandwidth_octaves: Option<f64>,
    /// Median share of variance that the von Mises curve explains.
    pub median_r_squared: Option<f64>,
    /// Units whose best grating is the lowest or highest frequency shown.
    pub at_frequency_limit: usize,
    /// Units by preferred orientation: a bin around each orientation shown.
    pub orientations: Histogram,
    /// Units by the frequency of their best grating, in cycles per pixel.
    pub frequencies: Histogram,
    /// Units by F1/F0.
    pub modulations: Histogram,
}

/// Counts of units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Where bins begin and end: one more than there are counts.
    pub edges: Vec<f64>,
    /// Units in each.
    pub counts: Vec<usize>,
}

/// A receptive field.
#[derive(Debug, Serialize, Deserialize)]
pub struct Field {
    /// The unit.
    pub unit: Unit,
    /// Where it lies, in pixels of the network's input; none if the unit sees nothing.
    pub place: Option<Place>,
    /// PNG of the root of its gradient energy, relative to the folder.
    pub map: PathBuf,
    /// PNG of the spike-triggered average, of linear units.
    pub average: Option<PathBuf>,
}

/// What was made, for all stages.
#[derive(Debug, Serialize)]
pub struct Tunings {
    /// How.
    pub choice: Choice,
    /// The folder.
    pub folder: PathBuf,
    /// One for each stage.
    pub stages: Vec<Made>,
}

/// What was made for one stage; paths are relative to the folder.
#[derive(Debug, Serialize)]
pub struct Made {
    /// The stage, from 1.
    pub stage: usize,
    /// Units that it has.
    pub stage_units: usize,
    /// True if it was there already, measured alike from the same checkpoint, and is kept.
    pub kept: bool,
    /// The units together.
    pub summary: Summary,
    /// All units, as JSON: [`StageTuning`].
    pub json: PathBuf,
    /// Curves, histograms and scatter plot, as SVG.
    pub figure: PathBuf,
    /// Receptive fields in one PNG; none if none is mapped.
    pub fields: Option<PathBuf>,
}

impl fmt::Display for Tunings {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let kind = self.choice.kind;
        for Made { stage, stage_units, kept, summary: s, .. } in &self.stages {
            write!(f, "stage {stage} ({kind}): {} of {stage_units} units", s.measured)?;
            let responding = s.simple + s.complex;
            if s.silent > 0 {
                write!(f, ", {} do not respond", s.silent)?;
            }
            if responding > 0 {
                let share = |count: usize| 100.0 * count as f64 / responding as f64;
                write!(f, "; {:.0} % simple, {:.0} % complex", share(s.simple), share(s.complex))?;
            }
            let number = |value: Option<f64>| value.map_or("none".into(), significant);
            writeln!(f, "{}", if *kept { " (measured before)" } else { "" })?;
            writeln!(
                f,
                "  medians: F1/F0 {}, half width {} degrees, circular variance {}, {} cycles per pixel, {} octaves, R² {}",
                number(s.median_modulation),
                number(s.median_half_width_deg),
                number(s.median_circular_variance),
                number(s.median_frequency_per_px),
                number(s.median_bandwidth_octaves),
                number(s.median_r_squared),
            )?;
        }
        let files =
            self.stages.iter().flat_map(|made| [Some(&made.json), Some(&made.figure), made.fields.as_ref()]);
        let lines: Vec<String> =
            files.flatten().map(|file| self.folder.join(file).display().to_string()).collect();
        write!(f, "{}", lines.join("\n"))
    }
}

/// Measures tuning of the checkpoint `identity` and writes the folder `out`, each file at once when it is complete. Files of other
/// stages and kinds stay, and so do those of stages that were measured alike from the same checkpoint.
///
/// # Errors
/// A stage does not exist, a setting makes no sense, or the folder cannot be written.
pub fn tuning(
    checkpoint: &Checkpoint,
    identity: &str,
    choice: &Choice,
    out: &Path,
    progress: &Progress,
) -> Result<Tunings> {
    let Checkpoint { network, whitening, .. } = checkpoint;
    let stages = stages(&choice.stages, network.stages.len())?;
    let grid = Grid::new(network.input, &choice.density)?;
    fs::create_dir_all(out).map_err(Error::io(out, "create"))?;
    let mut made = Vec::new();
    for last in stages {
        let name = format!("stage{}-{}", last + 1, choice.kind);
        let alone = Choice { stages: vec![last + 1], ..choice.clone() };
        if let Some(stage) = kept(&out.join(format!("{name}.json")), identity, &alone) {
            made.push(Made::new(&name, &stage, true));
            continue;
        }
        let screen = Screen { network, whitening, last };
        let units = spread(network.units(last, choice.kind), choice.units);
        progress.begin(&format!("stage {}: gratings and bars", last + 1), pictures(&grid, units.len()));
        let tuned = tune(&screen, choice.kind, &units, &grid, |count| progress.add(count));
        let strongest = strongest(&tuned, choice.fields);
        progress.begin(&format!("stage {}: receptive fields", last + 1), strongest.len());
        let chosen: Vec<Unit> = strongest.iter().map(|(unit, _)| *unit).collect();
        let fields = receptive_fields(&screen, choice.kind, &chosen, choice.noise, choice.seed, || {
            progress.add(1);
        });
        let fields = write_fields(out, &name, &fields)?;
        let stage = StageTuning {
            stage: last + 1,
            kind: choice.kind,
            checkpoint: identity.into(),
            choice: alone,
            stage_units: network.shape(last, choice.kind).len(),
            summary: summary(&tuned, &grid),
            stimuli: grid.clone(),
            fields,
            units: tuned,
        };
        files::replace(&out.join(format!("{name}.svg")), figure_of(&stage))?;
        // Last: with it the stage is complete.
        let json = serde_json::to_vec(&stage).expect("tuning is plain data");
        files::replace(&out.join(format!("{name}.json")), json)?;
        made.push(Made::new(&name, &stage, false));
    }
    Ok(Tunings { choice: choice.clone(), folder: out.into(), stages: made })
}

impl Made {
    fn new(name: &str, stage: &StageTuning, kept: bool) -> Made {
        let file = |ending: &str| PathBuf::from(format!("{name}{ending}"));
        Made {
            stage: stage.stage,
            stage_units: stage.stage_units,
            kept,
            summary: stage.summary.clone(),
            json: file(".json"),
            figure: file(".svg"),
            fields: (!stage.fields.is_empty()).then(|| file("-fields.png")),
        }
    }
}

/// What is in a file, if it was measured alike from the same checkpoint.
fn kept(path: &Path, identity: &str, choice: &Choice) -> Option<StageTuning> {
    let stage: StageTuning = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (stage.checkpoint == identity && stage.choice == *choice).then_some(stage)
}

/// A map of each receptive field, and all of them in one picture.
fn write_fields(out: &Path, name: &str, fields: &[ReceptiveField]) -> Result<Vec<Field>> {
    if fields.is_empty() {
        return Ok(Vec::new());
    }
    let folder = PathBuf::from(format!("{name}-fields"));
    fs::create_dir_all(out.join(&folder)).map_err(Error::io(out.join(&folder), "create"))?;
    let (mut written, mut sheet) = (Vec::new(), Vec::new());
    for ReceptiveField { unit, energy, place, average } in fields {
        let name = format!("map{:03}-row{:02}-col{:02}", unit.map, unit.row, unit.col);
        let mut save = |tile: RgbImage, what: &str| -> Result<PathBuf> {
            let path = folder.join(format!("{name}-{what}.png"));
            files::replace(&out.join(&path), png(&tile))?;
            sheet.push(tile);
            Ok(path)
        };
        let map = save(energy_tile(energy), "energy")?;
        let average = average.as_ref().map(|a| save(signed_tile(a.view()), "average")).transpose()?;
        written.push(Field { unit: *unit, place: *place, map, average });
    }
    let path = PathBuf::from(format!("{name}-fields.png"));
    let zoom = (96 / sheet[0].width()).max(1);
    files::replace(&out.join(&path), png(&tiles(&sheet, 8, zoom)))?;
    Ok(written)
}

/// The root of the energy, white where it is largest: the energy itself would show its peak only.
fn energy_tile(energy: &Array2<f64>) -> RgbImage {
    let largest = energy.iter().fold(f64::MIN_POSITIVE, |max, &e| max.max(e));
    let pixels: Vec<u8> = energy.iter().map(|e| (255.0 * (e / largest).sqrt()).round() as u8).collect();
    pixel_tile(&pixels, 1, energy.nrows(), energy.ncols())
}

/// The units with the strongest responses, from the strongest; of equal ones the first.
fn strongest(tuned: &[UnitTuning], count: usize) -> Vec<(Unit, &Tuning)> {
    let mut all: Vec<(Unit, &Tuning)> =
        tuned.iter().filter_map(|unit| Some((unit.unit, unit.tuning.as_ref()?))).collect();
    all.sort_by(|a, b| b.1.strength.total_cmp(&a.1.strength));
    all.truncate(count);
    all
}

fn summary(tuned: &[UnitTuning], grid: &Grid) -> Summary {
    let responding: Vec<&Tuning> = tuned.iter().filter_map(|unit| unit.tuning.as_ref()).collect();
    let of =
        |value: &dyn Fn(&Tuning) -> Option<f64>| median(responding.iter().filter_map(|t| value(t)).collect());
    let simple = responding.iter().filter(|t| t.class == Class::Simple).count();
    let values = |value: &dyn Fn(&Tuning) -> f64| responding.iter().map(|t| value(t)).collect::<Vec<f64>>();
    let step = 180.0 / grid.orientations_deg.len() as f64;
    // Bins around the orientations and frequencies that were shown.
    let orientation_edges = (0..=grid.orientations_deg.len()).map(|at| (at as f64 - 0.5) * step).collect();
    let half = (grid.octave_step() / 2.0).exp2();
    let last = grid.frequencies_per_px.last().expect("a grid has frequencies") * half;
    let frequency_edges = grid.frequencies_per_px.iter().map(|f| f / half).chain([last]).collect();
    let bar = 2.0 / MODULATION_BARS as f64;
    Summary {
        measured: tuned.len(),
        silent: tuned.len() - responding.len(),
        simple,
        complex: responding.len() - simple,
        median_modulation: of(&|t| Some(t.modulation)),
        median_half_width_deg: of(&|t| t.orientation.half_width_deg),
        median_circular_variance: of(&|t| Some(t.orientation.circular_variance)),
        median_frequency_per_px: of(&|t| Some(t.frequency.preferred_per_px)),
        median_bandwidth_octaves: of(&|t| Some(t.frequency.bandwidth_octaves)),
        median_r_squared: of(&|t| Some(t.orientation.r_squared)),
        at_frequency_limit: responding.iter().filter(|t| t.frequency.edge.is_some()).count(),
        orientations: histogram(
            orientation_edges,
            values(&|t| {
                let at = t.orientation.preferred_deg;
                if at >= 180.0 - step / 2.0 { at - 180.0 } else { at }
            }),
        ),
        frequencies: histogram(frequency_edges, values(&|t| t.grating_frequency_per_px)),
        modulations: histogram(
            (0..=MODULATION_BARS).map(|at| at as f64 * bar).collect(),
            values(&|t| t.modulation),
        ),
    }
}

/// Counts of values between edges; what lies beyond the last counts in the last.
fn histogram(edges: Vec<f64>, values: Vec<f64>) -> Histogram {
    let mut counts = vec![0; edges.len() - 1];
    for value in values {
        let bin = edges.partition_point(|&edge| edge <= value).saturating_sub(1);
        counts[bin.min(edges.len() - 2)] += 1;
    }
    Histogram { edges, counts }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    (!values.is_empty()).then(|| quantile(&values, 0.5))
}

/// Curves of the strongest units over orientation and frequency, F1/F0, and preferred frequency against orientation.
fn figure_of(stage: &StageTuning) -> String {
    let strongest = strongest(&stage.units, CURVES);
    let curve = |unit: Unit, xs: &[f64], ys: &[f64]| {
        let most = ys.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let points = xs.iter().zip(ys).map(|(&x, y)| (x, y / most)).collect();
        Series::Curve { name: format!("{}:{}:{}", unit.map, unit.row, unit.col), points, band: Vec::new() }
    };
    let grid = &stage.stimuli;
    let octaves: Vec<f64> = grid.frequencies_per_px.iter().map(|f| f.log2()).collect();
    let of_orientation =
        |(unit, t): &(Unit, &Tuning)| curve(*unit, &grid.orientations_deg, &t.orientation.responses);
    let of_frequency = |(unit, t): &(Unit, &Tuning)| curve(*unit, &octaves, &t.frequency.responses);
    let dots = |class: Class, name: &str| {
        let tunings = stage.units.iter().filter_map(|unit| unit.tuning.as_ref()).filter(|t| t.class == class);
        let point = |t: &Tuning| (t.orientation.preferred_deg, t.frequency.preferred_per_px.log2());
        Series::Dots { name: name.into(), points: tunings.map(point).collect() }
    };
    let panel = |title: &str, x_name: &str, y_name: &str, series: Vec<Series>| Panel {
        title: format!("stage {} ({}): {title}", stage.stage, stage.kind),
        x_name: x_name.into(),
        y_name: y_name.into(),
        series,
    };
    let Histogram { edges, counts } = stage.summary.modulations.clone();
    let share = "share of the highest response";
    let cycles = "log2 of cycles per pixel";
    let all = [
        panel(
            "orientation, strongest units",
            "degrees",
            share,
            strongest.iter().map(of_orientation).collect(),
        ),
        panel("frequency, strongest units", cycles, share, strongest.iter().map(of_frequency).collect()),
        panel("simple above 1, complex below", "F1/F0", "units", vec![Series::Bars { edges, counts }]),
        panel(
            "preferences",
            "preferred orientation, degrees",
            cycles,
            vec![dots(Class::Complex, "complex"), dots(Class::Simple, "simple")],
        ),
    ];
    panels(&all, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_count_everything_once() {
        let counted = histogram(vec![0.0, 1.0, 2.0], vec![0.0, 0.999, 1.0, 1.5, 2.0, 7.0]);
        assert_eq!(counted.counts, [2, 4]);
        assert_eq!(histogram(vec![-7.5, 7.5], vec![-7.5]).counts, [1]);
    }

    #[test]
    fn the_median_of_nothing_is_none() {
        assert_eq!(median(Vec::new()), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
