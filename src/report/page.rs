//! A run as one HTML file that needs nothing else: `templates/report.html` filled in.

use std::fs;
use std::path::Path;

use askama::Template;

use super::figure::{Curve, curves, grouped, significant};
use super::units::{GalleryView, view};
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::files;
use crate::network::{StageCost, checkpoint, costs};
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
    input: String,
    network: Vec<StageRow>,
    settings: String,
    losses: Vec<StageLosses>,
    gallery: Option<GalleryView>,
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

/// Writes `run` as the HTML file `out`: losses, and what [`visualize`](super::gallery::visualize) made if it did.
/// An older file is replaced only by a complete one.
///
/// Returns the file's bytes and how many units it shows.
///
/// # Errors
/// The folder is no run, its log or pictures are missing or damaged, or the file cannot be written.
pub fn write_report(run: &Path, out: &Path) -> Result<(u64, usize)> {
    if !run.is_dir() {
        return Err(Error::bad_file(run, "not a run: no such folder"));
    }
    let Some(folder) = checkpoint::latest(run) else {
        return Err(Error::bad_file(run, "not a run: it has no checkpoint"));
    };
    let state: State = checkpoint::read_state(&folder)?;
    let config = RunConfig::load(&run.join("config.toml"), &[])?;
    let log = read_log(run)?;
    let pictures = run.join("visualize");
    let gallery = if pictures.exists() { Some(view(&pictures, &config)?) } else { None };
    let units = gallery.as_ref().map_or(0, GalleryView::len);

    let full = fs::canonicalize(run).map_err(Error::io(run, "look at"))?;
    let name = full.file_name().map_or_else(|| full.display().to_string(), |n| n.display().to_string());
    let stages = costs(&config);
    let shape = config.input_shape();
    let page = Page {
        version: env!("CARGO_PKG_VERSION"),
        name,
        path: run.display().to_string(),
        facts: facts(&config, &stages, &state),
        input: format!("{}x{}", shape.cols, shape.rows),
        network: (1..).zip(&stages).map(stage_row).collect(),
        settings: config.to_toml(),
        losses: (1..=stages.len()).filter_map(|stage| stage_losses(&log, stage)).collect(),
        gallery,
    };
    let html = page.render().expect("rendering into memory cannot fail");
    files::replace(out, &html)?;
    Ok((html.len() as u64, units))
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
