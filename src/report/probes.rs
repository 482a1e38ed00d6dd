//! What probes of theory found, as text and as curves.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::detectors::read_json;
use super::figure::{Panel, Series, grouped, panels, significant};
use crate::classify::Weights;
use crate::classify::tune;
use crate::error::Result;
use crate::probe::ntk::Moment;
use crate::probe::overparam::{self, Curve, Layer, Outcome};

/// `RUN/probe/NAME.json` of `striate probe ntk`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kernels {
    /// The checkpoint, see [`identity`](crate::network::checkpoint::identity).
    pub checkpoint: String,
    /// Weights that it began with.
    pub from: Weights,
    /// Where the pictures were.
    pub labels: Vec<String>,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Pictures learned from.
    pub pictures: usize,
    /// Others.
    pub test_pictures: usize,
    /// Deviation of the classes' numbers before the first step.
    pub head_scale: f64,
    /// How it was tuned.
    pub settings: tune::Settings,
    /// The kernel at each moment.
    pub moments: Vec<Moment>,
}

/// `RUN/probe/NAME.json` of `striate probe overparam`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Factors {
    /// The checkpoint, see [`identity`](crate::network::checkpoint::identity).
    pub checkpoint: String,
    /// Weights that each began with.
    pub from: Weights,
    /// Where the pictures were.
    pub labels: Vec<String>,
    /// Pictures learned from.
    pub pictures: usize,
    /// What was compared.
    pub settings: overparam::Settings,
    /// The best of each power.
    pub outcomes: Vec<Outcome>,
    /// All of them.
    pub curves: Vec<Curve>,
}

/// Either, as a file has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Found {
    Kernels(Box<Kernels>),
    Factors(Box<Factors>),
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

impl Kernels {
    fn what(&self) -> String {
        let test = match self.test_pictures {
            0 => String::new(),
            count => format!(", tested on {} others", grouped(count as u64)),
        };
        format!(
            "The tangent kernel of {} pictures and {} classes while all weights learn from {}{test}; before the first step the classes' numbers vary by {}. Regression: ridge regression in the kernel of that moment. Held out: each picture left out of it in turn, though after the first steps the kernel itself has learned from all of them.",
            grouped(self.pictures as u64),
            self.classes.len(),
            self.from,
            self.head_scale,
        )
    }

    fn head(&self) -> Vec<&'static str> {
        let mut head = vec!["Step", "Network, learned"];
        head.extend((self.test_pictures > 0).then_some("Network, others"));
        head.push("Regression, held out");
        head.extend((self.test_pictures > 0).then_some("Regression, others"));
        head.extend(["Alignment", "Drift", "Turn", "Head's share", "Effective rank"]);
        head
    }

    fn row(&self, moment: &Moment) -> Vec<String> {
        let Moment { step, network, regression, head_share, alignment, drift, turn, effective_rank, .. } =
            moment;
        let mut row = vec![grouped(*step), percent(network.train)];
        row.extend(network.test.map(percent));
        row.push(percent(regression.held_out));
        row.extend(regression.test.map(percent));
        row.extend([format!("{alignment:.3}"), format!("{drift:.2}"), format!("{turn:.3}")]);
        row.extend([percent(*head_share), significant(*effective_rank)]);
        row
    }
}

impl Factors {
    fn what(&self) -> String {
        let layer = match self.settings.layer {
            Layer::Encoder => "the filters of each position of the encoders; all weights learn",
            Layer::Head => "the classes' weights; encoders stay as they are",
        };
        format!(
            "An extra linear factor in {layer}. Plain gradient descent from {} on {} pictures, {} steps of {}, each at the best of the rates {}. Speed: how many times less it takes with the factor to the higher of both last losses.",
            self.from,
            grouped(self.pictures as u64),
            self.settings.tune.steps,
            self.settings.tune.batch,
            self.settings.rates.iter().map(f64::to_string).collect::<Vec<_>>().join(", "),
        )
    }

    const HEAD: [&'static str; 7] =
        ["p", "Rate", "Rate with factor", "Last loss", "With factor", "Speed by arithmetic", "Speed in time"];

    fn row(outcome: &Outcome) -> Vec<String> {
        let Outcome { power, plain_rate, factored_rate, plain_loss, factored_loss, .. } = outcome;
        let numbers = [*power, *plain_rate, *factored_rate].map(|number| number.to_string());
        let losses = [*plain_loss, *factored_loss].map(significant);
        let speeds = [outcome.speed_by_flops, outcome.speed_by_seconds].map(|speed| format!("{speed:.2}"));
        [&numbers[..], &losses[..], &speeds[..]].concat()
    }
}

/// A table for a terminal.
fn table(f: &mut fmt::Formatter, head: &[&str], rows: &[Vec<String>]) -> fmt::Result {
    let width = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([head[at].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |f: &mut fmt::Formatter, cells: &mut dyn Iterator<Item = &str>| {
        let mut all = cells.zip(&widths);
        all.try_for_each(|(cell, width)| write!(f, "{cell:>width$}  ", width = *width))
    };
    line(f, &mut head.iter().copied())?;
    for row in rows {
        writeln!(f)?;
        line(f, &mut row.iter().map(String::as_str))?;
    }
    Ok(())
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{}\n", self.what())?;
        let rows: Vec<Vec<String>> = self.moments.iter().map(|moment| self.row(moment)).collect();
        table(f, &self.head(), &rows)
    }
}

impl fmt::Display for Factors {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{}\n", self.what())?;
        let rows: Vec<Vec<String>> = self.outcomes.iter().map(Factors::row).collect();
        table(f, &Factors::HEAD, &rows)
    }
}

fn curve(name: impl Into<String>, points: Vec<(f64, f64)>) -> Series {
    Series::Curve { name: name.into(), points, band: Vec::new() }
}

fn panel(title: &str, x_name: &str, y_name: &str, series: Vec<Series>) -> Panel {
    Panel { title: title.into(), x_name: x_name.into(), y_name: y_name.into(), series }
}

/// Spectra, labels along them, how the kernel moves, and what network and regression answer.
pub fn kernels_figure(found: &Kernels) -> String {
    let of_moments = |value: &dyn Fn(&Moment) -> f64| -> Vec<(f64, f64)> {
        // Steps grow by thirds, from 0 on.
        found.moments.iter().map(|moment| ((moment.step as f64 + 1.0).log10(), value(moment))).collect()
    };
    let of_ranks = |value: &dyn Fn(&crate::probe::ntk::Place) -> f64| -> Vec<Series> {
        let of = |moment: &Moment| {
            let points = moment.spectrum.iter().map(|place| ((place.rank as f64).log10(), value(place)));
            curve(format!("step {}", moment.step), points.collect())
        };
        found.moments.iter().map(of).collect()
    };
    let (rank, step) = ("log10 of the eigenvalue's number", "log10 of steps + 1");
    let mut answers = vec![
        curve("learned", of_moments(&|m| 100.0 * m.network.train)),
        curve("held out", of_moments(&|m| 100.0 * m.regression.held_out)),
    ];
    if found.test_pictures > 0 {
        answers[1] = curve("regression", of_moments(&|m| 100.0 * m.regression.test.unwrap_or(f64::NAN)));
        answers.insert(1, curve("network", of_moments(&|m| 100.0 * m.network.test.unwrap_or(f64::NAN))));
    }
    let moves = vec![
        curve("alignment", of_moments(&|m| m.alignment)),
        curve("turn", of_moments(&|m| m.turn)),
        curve("head", of_moments(&|m| m.head_share)),
    ];
    panels(
        &[
            panel("Spectrum", rank, "log10 of its share", of_ranks(&|place| place.eigenvalue.log10())),
            panel("Labels along it", rank, "share up to here", of_ranks(&|place| place.labels)),
            panel("The kernel while it learns", step, "alignment, turn, head's share", moves),
            panel("Right answers", step, "%", answers),
        ],
        2,
    )
}

/// Loss over cost, of the best curves.
pub fn factors_figure(found: &Factors) -> String {
    let of_power = |outcome: &Outcome| {
        let best = |factored: bool, rate: f64| {
            found.curves.iter().find(move |curve| {
                (curve.power, curve.factored, curve.rate) == (outcome.power, factored, rate)
            })
        };
        let series = [(false, outcome.plain_rate, "plain"), (true, outcome.factored_rate, "factor")];
        let series = series.into_iter().filter_map(|(factored, rate, name)| {
            let points = best(factored, rate)?.points.iter();
            Some(curve(name, points.map(|point| (point.flops / 1e12, point.loss.log10())).collect()))
        });
        panel(&format!("p = {}", outcome.power), "TFLOP", "log10 of the loss", series.collect())
    };
    panels(&found.outcomes.iter().map(of_power).collect::<Vec<_>>(), 2)
}

/// A probe on the page.
pub(super) struct ProbeView {
    pub name: String,
    pub what: String,
    pub head: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
    pub figure: String,
}

/// All probes in `RUN/probe`, in the order of names.
///
/// # Errors
/// One of them cannot be read.
pub(super) fn views(run: &Path) -> Result<Vec<ProbeView>> {
    let Ok(entries) = std::fs::read_dir(run.join("probe")) else { return Ok(Vec::new()) };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
    paths.sort();
    let view = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(match read_json(path, "probe")? {
            Found::Kernels(found) => ProbeView {
                name,
                what: found.what(),
                head: found.head(),
                rows: found.moments.iter().map(|moment| found.row(moment)).collect(),
                figure: kernels_figure(&found),
            },
            Found::Factors(found) => ProbeView {
                name,
                what: found.what(),
                head: Factors::HEAD.to_vec(),
                rows: found.outcomes.iter().map(Factors::row).collect(),
                figure: factors_figure(&found),
            },
        })
    };
    paths.iter().map(view).collect()
}
