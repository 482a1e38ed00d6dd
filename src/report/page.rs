//! A run as a page: `templates/report.html` filled in. As a file it has everything in itself and needs nothing else.

use std::fs;
use std::path::Path;

use askama::Template;

use super::classes::{self, ClassesView};
use super::data::{Findings, Format, Pictures, embedded};
use super::detectors::{Evaluated, Table, read_all};
use super::explanation::{Explained, Told, read_explained};
use super::figure::{Curve, curves, grouped, significant};
use super::gallery::Gallery;
use super::map::MapFile;
use super::probes::{self, ProbeView};
use crate::analysis::UnitName;
use crate::analysis::evaluate::Best;
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::files;
use crate::geometry::Kind;
use crate::network::{StageCost, checkpoint, costs};
use crate::picture::{FILTERS_ACROSS, FILTERS_SHOWN};
use crate::training::State;
use crate::training::monitor::{LogLine, StageLine, read_log};

/// Most points of a curve: more than the pixels of a chart show nothing more.
const POINTS: usize = 400;

#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    version: &'static str,
    /// The run folder's own name.
    name: String,
    /// The run folder as given.
    path: String,
    facts: Vec<Fact>,
    /// What another checkpoint than the newest has made, by the commands that make it again.
    stale: Vec<String>,
    input: String,
    network: Vec<StageRow>,
    settings: String,
    losses: Vec<StageLosses>,
    /// Whether units and pictures are asked for from a server.
    is_served: bool,
    detectors: Vec<DetectorTable>,
    /// Which units and frames these are, if there are any.
    gallery: Option<String>,
    whitened: bool,
    /// The list of units as JSON, if the page has it in itself.
    listing: Option<String>,
    map: Option<MapView>,
    explanations: Vec<ExplanationView>,
    controls: Vec<ControlTable>,
    classes: Vec<ClassesView>,
    probes: Vec<ProbeView>,
    filters_layout: String,
    filters: Vec<Filters>,
}

/// The best units of each group for one concept.
struct DetectorTable {
    name: String,
    positives: String,
    negatives: String,
    always_no: String,
    rows: Vec<DetectorRow>,
}

struct DetectorRow {
    stage: usize,
    kind: Kind,
    count: String,
    unit: UnitName,
    is_shown: bool,
    accuracy: String,
    interval: String,
    held_out: String,
    auc: String,
    chance: String,
    p: String,
    /// Better than the best of as many units is by chance, 95 times of 100.
    is_real: bool,
}

/// What other detectors come to.
struct ControlTable {
    name: String,
    positives: String,
    negatives: String,
    rows: Vec<ControlRow>,
}

struct ControlRow {
    title: &'static str,
    count: String,
    accuracy: String,
    /// The same as a width.
    share: String,
    held_out: String,
    auc: String,
    which: String,
}

/// A map of frames.
struct MapView {
    about: String,
    json: String,
}

/// Why units answered as they did to a picture.
struct ExplanationView {
    image: String,
    /// Addresses of pictures.
    frames: String,
    neighbours: String,
    units: Vec<ExplainedUnit>,
}

struct ExplainedUnit {
    name: UnitName,
    is_shown: bool,
    picture: String,
    words: Vec<String>,
}

/// A grid of filters.
struct Filters {
    name: &'static str,
    /// Its address.
    picture: String,
}

struct Fact {
    name: &'static str,
    value: String,
    note: String,
}

/// A row of the table of stages.
struct StageRow {
    number: usize,
    units: String,
    maps: String,
    filters: String,
    pooling: String,
    field: String,
    exact_field: String,
    weights: String,
}

struct StageLosses {
    number: usize,
    summary: String,
    charts: Vec<Chart>,
}

struct Chart {
    name: &'static str,
    svg: String,
}

/// Writes `run` as the HTML file `out`: losses, and what [`visualize`](super::gallery::visualize) and the other analyses made of it
/// if they did. An older file is replaced only by a complete one.
///
/// Returns the file's bytes and how many units it shows.
///
/// # Errors
/// The folder is no run, its log or pictures are missing or damaged, or the file cannot be written.
pub fn write_report(run: &Path, out: &Path) -> Result<(u64, usize)> {
    let Report { html, findings } = Report::new(run, Pictures::Embedded)?;
    files::replace(out, &html)?;
    Ok((html.len() as u64, findings.units().len()))
}

/// A run's page, and what it shows.
pub struct Report {
    /// The page.
    pub html: String,
    /// What a page asks its server for, if it does not have it in itself.
    pub findings: Findings,
}

impl Report {
    /// The page of the run in a folder.
    ///
    /// # Errors
    /// The folder is no run, or its log or pictures are missing or damaged.
    pub fn new(run: &Path, pictures: Pictures) -> Result<Report> {
        if !run.is_dir() {
            return Err(Error::bad_file(run, "not a run: no such folder"));
        }
        let Some(folder) = checkpoint::latest(run) else {
            return Err(Error::bad_file(run, "not a run: it has no checkpoint"));
        };
        let state: State = checkpoint::read_state(&folder)?;
        let config = RunConfig::load(&run.join("config.toml"), &[])?;
        let log = read_log(run)?;
        let findings = Findings::read(run, &config)?;
        let controls: Vec<Table> = read_all(&run.join("controls"), "controls")?;
        let listing = match pictures {
            Pictures::Embedded => findings.listing(pictures)?.map(|listing| script_json(&listing)),
            Pictures::Served => None,
        };
        let full = fs::canonicalize(run).map_err(Error::io(run, "look at"))?;
        // `run` in a folder that says more is called by both.
        let folders: Vec<_> = full.iter().map(|part| part.to_string_lossy()).collect();
        let name = match &folders[..] {
            [.., above, own] if own == "run" => format!("{above}/{own}"),
            [.., own] => own.to_string(),
            [] => full.display().to_string(),
        };
        let map_folder = run.join("map");
        let map = MapFile::read(&map_folder)?;
        let explained = read_explained(&run.join("explain"))?;
        let identity = checkpoint::identity(&folder)?;
        let mut made = findings.made_with();
        made.extend(map.iter().map(|map| ("map".into(), map.checkpoint.clone())));
        made.extend(explained.iter().map(|explained| {
            (format!("explain ({})", explained.image.display()), explained.checkpoint.clone())
        }));
        made.extend(
            controls
                .iter()
                .map(|table| (format!("controls ({})", table.made.concept), table.made.checkpoint.clone())),
        );
        made.retain(|(_, checkpoint)| *checkpoint != identity);
        let stages = costs(&config);
        let shape = config.input_shape();
        let gallery = findings.gallery.as_ref();
        let page = Page {
            version: env!("CARGO_PKG_VERSION"),
            name,
            path: run.display().to_string(),
            facts: facts(&config, &stages, &state),
            input: format!("{}x{}", shape.cols, shape.rows),
            network: (1..).zip(&stages).map(stage_row).collect(),
            settings: config.to_toml(),
            losses: (1..=stages.len()).filter_map(|stage| stage_losses(&log, stage)).collect(),
            is_served: pictures == Pictures::Served,
            detectors: findings.evaluated.iter().map(|one| detector_table(one, &findings)).collect(),
            gallery: gallery.map(about),
            whitened: gallery.is_some_and(|gallery| gallery.whitened),
            listing,
            map: map.map(|map| map_view(&map, &map_folder, pictures)).transpose()?,
            explanations: explanations(&explained, &findings)?,
            stale: made.into_iter().map(|(what, _)| what).collect(),
            controls: controls.iter().map(control_table).collect(),
            classes: classes::views(run)?,
            probes: probes::views(run)?,
            filters_layout: filters_layout(&config),
            filters: if gallery.is_some() { filters(&findings.folder)? } else { Vec::new() },
        };
        Ok(Report { html: page.render().expect("rendering into memory cannot fail"), findings })
    }
}

/// JSON that can stand in a `script` element.
fn script_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data").replace('<', "\\u003c")
}

fn map_view(map: &MapFile, folder: &Path, pictures: Pictures) -> Result<MapView> {
    let lines: Vec<String> = map.to_string().lines().map(str::to_owned).collect();
    let about = format!(
        "{}. Those lie together that the network sees as alike. Distances between groups mean little in t-SNE; neighbours are \
         those by all features, not by places. Frames are from {}.",
        lines.join("; "),
        map.frame_set.display()
    );
    Ok(MapView { about, json: script_json(&map.drawn(folder, pictures)?) })
}

fn explanations(explained: &[Explained], findings: &Findings) -> Result<Vec<ExplanationView>> {
    let unit = |explained: &Explained, told: &Told| {
        let name = told.explanation.probe.name();
        Ok(ExplainedUnit {
            name,
            is_shown: findings.shows(name),
            picture: embedded(&explained.folder, &told.picture, Format::Exact)?,
            words: told.words(),
        })
    };
    let view = |explained: &Explained| {
        let near = explained.neighbours.iter().map(|near| format!("{} ({:.3})", near.key, near.similarity));
        Ok(ExplanationView {
            image: explained.image.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            frames: embedded(&explained.folder, &explained.frames, Format::Exact)?,
            neighbours: near.collect::<Vec<_>>().join(", "),
            units: explained.units.iter().map(|told| unit(explained, told)).collect::<Result<_>>()?,
        })
    };
    explained.iter().map(view).collect()
}

/// Which units and frames these are.
fn about(gallery: &Gallery) -> String {
    let kind = match gallery.choice.kind {
        Kind::A => "filter responses (a)",
        Kind::H => "pooled responses (h)",
        Kind::Y => {
            "pooled and contrast-normalised responses (y), below zero where a unit responds less than those around it"
        }
    };
    format!(
        "{} units of {}, each of which was shown {} frames of {}. Values are {kind}.",
        grouped(gallery.units.len() as u64),
        grouped(gallery.stage_units.iter().sum::<usize>() as u64),
        grouped(gallery.frame_count as u64),
        gallery.frames.display()
    )
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn detector_table(evaluated: &Evaluated, findings: &Findings) -> DetectorTable {
    let evaluation = &evaluated.evaluation;
    let row = |group: &Best| {
        let best = &group.best[0];
        let name = best.unit.probe.name();
        DetectorRow {
            stage: name.stage,
            kind: group.group.kind,
            count: grouped(group.units as u64),
            unit: name,
            is_shown: findings.shows(name),
            accuracy: percent(best.unit.scores.paper.accuracy),
            interval: best
                .accuracy_interval
                .map_or(String::new(), |[low, high]| format!("{:.1} to {:.1} %", 100.0 * low, 100.0 * high)),
            held_out: percent(group.held_out),
            auc: format!("{:.3}", best.unit.scores.auc),
            chance: group.chance.map_or(String::new(), |chance| percent(chance.percentile_95)),
            p: group.chance.map_or(String::new(), |chance| format!("{:.3}", chance.p_value)),
            is_real: group.chance.is_none_or(|chance| chance.p_value <= 0.05),
        }
    };
    DetectorTable {
        name: evaluated.concept.clone(),
        positives: grouped(evaluation.positives as u64),
        negatives: grouped(evaluation.negatives as u64),
        always_no: percent(evaluation.always_no),
        rows: evaluation.groups.iter().map(row).collect(),
    }
}

fn control_table(table: &Table) -> ControlTable {
    let row = |row: &crate::analysis::controls::Row| {
        let mut which: Vec<String> = row.best.iter().chain(&row.note).cloned().collect();
        if !row.others.is_empty() {
            let others: Vec<String> = row.others.iter().map(|&other| percent(other)).collect();
            which.push(format!("other seeds {}", others.join(", ")));
        }
        ControlRow {
            title: row.control.title(),
            count: grouped(row.detectors as u64),
            accuracy: percent(row.accuracy),
            share: format!("{:.1}", 100.0 * row.accuracy),
            held_out: percent(row.held_out),
            auc: row.scores.map_or(String::new(), |scores| format!("{:.3}", scores.auc)),
            which: which.join("; "),
        }
    };
    ControlTable {
        name: table.made.concept.clone(),
        positives: grouped(table.made.positives as u64),
        negatives: grouped(table.made.negatives as u64),
        rows: table.rows.iter().map(row).collect(),
    }
}

fn filters(folder: &Path) -> Result<Vec<Filters>> {
    let files = [("Encoder", "filters-encoder.png"), ("Decoder", "filters-decoder.png")];
    let read = |(name, file): (&'static str, &str)| {
        Ok(Filters { name, picture: embedded(folder, Path::new(file), Format::Exact)? })
    };
    files.into_iter().map(read).collect()
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

fn facts(config: &RunConfig, stages: &[StageCost], state: &State) -> Vec<Fact> {
    let planned: u64 = config.training.steps.iter().sum();
    let shape = config.input_shape();
    let colours = if shape.channels == 1 { "grey" } else { "colour" };
    let units: usize = stages.iter().map(|stage| stage.units).sum();
    let weights: u64 = stages.iter().map(|stage| stage.weights).sum();
    let fact = |name, value, note| Fact { name, value, note };
    vec![
        fact("Steps", grouped(state.step), format!("of {} planned, seed {}", grouped(planned), state.seed)),
        fact(
            "Images learned from",
            grouped(state.images),
            format!("in minibatches of {}", config.training.batch),
        ),
        fact(
            "Training time",
            duration(state.seconds),
            format!("{} images/s", grouped((state.images as f64 / state.seconds.max(1e-9)) as u64)),
        ),
        fact("Frames", grouped(state.frames.count as u64), state.frames.path.display().to_string()),
        fact(
            "Network",
            format!("{} stages", stages.len()),
            format!("{} units, {} weights", grouped(units as u64), grouped(weights)),
        ),
        fact(
            "Input",
            format!("{}x{}", shape.cols, shape.rows),
            format!("{colours}, preprocessing {}", serde_name(&config.input.preprocess)),
        ),
    ]
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{} h {m} min", grouped(h)),
    }
}

/// An enum's name as settings files write it.
fn serde_name(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).expect("a name is plain data");
    value.as_str().unwrap_or_default().to_owned()
}

fn stage_row((number, stage): (usize, &StageCost)) -> StageRow {
    let (shape, support) = (&stage.shape, stage.support);
    let (pooled, field, pool) = (shape.pooled, shape.field, shape.pool);
    let pixels = |side: usize| format!("{side}x{side} px");
    StageRow {
        number,
        units: grouped(stage.units as u64),
        maps: format!("{} of {}x{}", pooled.channels, pooled.cols, pooled.rows),
        filters: format!("{field}x{field}x{}, stride {}", shape.input.channels, shape.stride),
        pooling: if pool == 1 {
            "none".into()
        } else {
            format!("{pool}x{pool}, stride {}", shape.pool_stride)
        },
        field: pixels(support.pooling_only),
        exact_field: pixels(support.y),
        weights: grouped(stage.weights),
    }
}

/// Charts of one stage; none if it never learned.
fn stage_losses(log: &[LogLine], number: usize) -> Option<StageLosses> {
    let of_stage = |line: &LogLine| line.stages.iter().find(|stage| stage.stage == number).cloned();
    let lines: Vec<(u64, StageLine)> = log.iter().filter_map(|l| Some((l.step, of_stage(l)?))).collect();
    let (first, last) = (lines.first()?, lines.last()?);
    let summary = format!(
        "Loss {} at step {}, {} at step {}; then {:.0} % of the input unexplained, sparsity / reconstruction {:.2}.",
        significant(first.1.loss),
        grouped(first.0),
        significant(last.1.loss),
        grouped(last.0),
        100.0 * last.1.unexplained,
        last.1.balance,
    );
    type Value = fn(&StageLine) -> f64;
    let chart = |name: &'static str, parts: &[(&'static str, Value)]| {
        let curve = |&(name, value): &(&'static str, Value)| {
            let points: Vec<(f64, f64)> = lines.iter().map(|(step, s)| (*step as f64, value(s))).collect();
            Curve { name, points: thin(&points) }
        };
        let drawn: Vec<Curve> = parts.iter().map(curve).collect();
        Chart { name, svg: curves(name, "step", &drawn) }
    };
    let charts = vec![
        chart(
            "Loss",
            &[("loss", |s| s.loss), ("reconstruction", |s| s.reconstruction), ("sparsity", |s| s.sparsity)],
        ),
        chart("Input unexplained, %", &[("unexplained", |s| 100.0 * s.unexplained)]),
        chart("Balance: sparsity / reconstruction", &[("balance", |s| s.balance)]),
    ];
    Some(StageLosses { number, summary, charts })
}

/// Means over runs of neighbours where there are more points than a chart can show.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(points.len().div_ceil(POINTS).max(1)).map(mean).collect()
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
