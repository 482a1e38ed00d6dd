//! The controls of several runs that differ in their seed, side by side: what luck is worth.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::detectors::{Table, read_all};
use crate::analysis::controls::Control;
use crate::error::{Error, Result};
use crate::network::checkpoint;

/// The paper's table (§4.4), in percent: faces, bodies, cats. Its text has no pieces of frames as linear filters.
const PAPER: [(Control, [Option<f64>; 3]); 10] = [
    (Control::AlwaysNo, [Some(64.8), Some(64.8), Some(64.8)]),
    (Control::RandomWeights, [Some(67.0), Some(66.5), Some(66.0)]),
    (Control::LinearFilters, [Some(74.0), Some(68.1), Some(67.8)]),
    (Control::KMeans, [Some(72.5), Some(69.3), Some(68.5)]),
    (Control::Autoencoder3, [Some(72.3), Some(71.2), Some(67.5)]),
    (Control::Autoencoder6, [Some(70.9), Some(69.8), Some(68.3)]),
    (Control::FirstStage, [Some(71.0), Some(67.2), Some(67.1)]),
    (Control::WithoutLcn, [Some(78.5), Some(71.8), Some(69.3)]),
    (Control::WithoutConcept, [Some(72.5), None, None]),
    (Control::TopStage, [Some(81.7), Some(76.8), Some(74.6)]),
];

/// Tables of all things that were tested.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// One for each thing, by its name.
    pub concepts: Vec<Concept>,
    /// What a reader should know: tables of older checkpoints.
    pub notes: Vec<String>,
}

/// One thing, and what detectors of it come to in several runs.
#[derive(Debug, Serialize)]
pub struct Concept {
    /// What it is called.
    pub concept: String,
    /// Test pictures that show it.
    pub positives: usize,
    /// Those that do not.
    pub negatives: usize,
    /// Runs with a table of it.
    pub runs: Vec<PathBuf>,
    /// In the order of [`Control::ALL`].
    pub rows: Vec<Line>,
}

/// One kind of detector in several runs. Accuracies are shares of the test pictures, by the paper's rule.
#[derive(Debug, Serialize)]
pub struct Line {
    /// What it is.
    pub control: Control,
    /// The paper's figure, if the thing's name begins with `face`, `bod` or `cat`.
    pub paper: Option<f64>,
    /// Of the best detector of each run.
    pub accuracies: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, of the sample; none of one run.
    pub deviation: Option<f64>,
    /// The least of them.
    pub worst: f64,
    /// Mean with detector and threshold chosen on one half of the pictures and tested on the other.
    pub held_out: f64,
    /// By how much the best top unit of the same run is better: mean over runs that have both.
    pub margin: Option<f64>,
}

/// Reads `RUN/controls/*.json` of all runs, of one thing if `concept` says so.
///
/// # Errors
/// There is no table, one cannot be read, or tables of one thing are of different pictures or settings.
pub fn compare(runs: &[PathBuf], concept: Option<&str>) -> Result<Comparison> {
    let mut tables: BTreeMap<String, Vec<(&PathBuf, Table)>> = BTreeMap::new();
    let mut notes = Vec::new();
    for run in runs {
        let newest = checkpoint::identity(&checkpoint::latest_of(run)?)?;
        let of_run: Vec<Table> = read_all(&run.join("controls"), "controls")?;
        let wanted = of_run.into_iter().filter(|table| concept.is_none_or(|name| name == table.made.concept));
        for table in wanted {
            if table.made.checkpoint != newest {
                let name = &table.made.concept;
                notes.push(format!("{}: {name} is of an older checkpoint", run.display()));
            }
            tables.entry(table.made.concept.clone()).or_default().push((run, table));
        }
    }
    if tables.is_empty() {
        let missing = concept.map_or(String::new(), |name| format!(" of `{name}`"));
        let problem =
            format!("neither here nor in the other runs is a table{missing}: `striate controls` makes one");
        return Err(Error::bad_file(runs[0].join("controls"), problem));
    }
    let concepts = tables.into_iter().map(|(name, tables)| Concept::of(name, &tables));
    Ok(Comparison { concepts: concepts.collect::<Result<Vec<Concept>>>()?, notes })
}

impl Concept {
    fn of(concept: String, tables: &[(&PathBuf, Table)]) -> Result<Concept> {
        let (first, reference) = &tables[0];
        for (run, Table { made, .. }) in tables {
            let same = (&made.pictures, &made.settings.kinds, made.settings.filters)
                == (
                    &reference.made.pictures,
                    &reference.made.settings.kinds,
                    reference.made.settings.filters,
                );
            if !same {
                let first = first.display();
                let problem = format!("made from other pictures or settings than that of {first}");
                return Err(Error::bad_file(run.join("controls").join(format!("{concept}.json")), problem));
            }
        }
        let rows = Control::ALL.into_iter().filter_map(|control| Line::of(&concept, control, tables));
        let rows = rows.collect();
        let (positives, negatives) = (reference.made.positives, reference.made.negatives);
        let runs = tables.iter().map(|(run, _)| (*run).clone()).collect();
        Ok(Concept { concept, positives, negatives, runs, rows })
    }
}

impl Line {
    fn of(concept: &str, control: Control, tables: &[(&PathBuf, Table)]) -> Option<Line> {
        let row = |table: &Table, control: Control| {
            let row = table.rows.iter().find(|row| row.control == control)?;
            Some((row.accuracy, row.held_out))
        };
        let found: Vec<(f64, f64)> = tables.iter().filter_map(|(_, table)| row(table, control)).collect();
        let accuracies: Vec<f64> = found.iter().map(|(accuracy, _)| *accuracy).collect();
        let mean = mean(&accuracies)?;
        let squares = accuracies.iter().map(|accuracy| (accuracy - mean).powi(2)).sum::<f64>();
        let deviation = (accuracies.len() > 1).then(|| (squares / (accuracies.len() - 1) as f64).sqrt());
        let margins = tables
            .iter()
            .filter_map(|(_, table)| Some(row(table, Control::TopStage)?.0 - row(table, control)?.0));
        let margins: Vec<f64> = margins.filter(|_| control != Control::TopStage).collect();
        let column = ["face", "bod", "cat"].iter().position(|start| concept.starts_with(start));
        let paper = PAPER.iter().find(|(of, _)| *of == control).zip(column);
        Some(Line {
            control,
            paper: paper.and_then(|((_, figures), column)| figures[column]),
            mean,
            deviation,
            worst: accuracies.iter().copied().fold(f64::INFINITY, f64::min),
            held_out: self::mean(&found.iter().map(|(_, held_out)| *held_out).collect::<Vec<f64>>())?,
            margin: self::mean(&margins),
            accuracies,
        })
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Markdown.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (number, concept) in self.concepts.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            concept.fmt(f)?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "\nNote: {note}.\n"))
    }
}

impl fmt::Display for Concept {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Concept { concept, positives, negatives, runs, rows } = self;
        writeln!(f, "### {concept}\n")?;
        let plural = if runs.len() == 1 { "" } else { "s" };
        writeln!(f, "{positives} pictures show it, {negatives} do not; {} run{plural}.\n", runs.len())?;
        writeln!(f, "| best of | paper | mean | spread | worst | held out | top unit is better by |")?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        let percent = |value: f64| format!("{:.1}", 100.0 * value);
        let maybe = |value: Option<f64>| value.map_or(String::new(), percent);
        for row in rows {
            let strong = if row.control == Control::TopStage { "**" } else { "" };
            let paper = row.paper.map_or(String::new(), |figure| format!("{figure:.1}"));
            let (deviation, worst) = (maybe(row.deviation), percent(row.worst));
            let (mean, held_out, margin) = (percent(row.mean), percent(row.held_out), maybe(row.margin));
            let of = row.accuracies.len();
            let of = if of < runs.len() { format!(" ({of} of {} runs)", runs.len()) } else { String::new() };
            let title = row.control.title().to_owned() + &of;
            write!(f, "| {strong}{title}{strong} | {paper} | {strong}{mean}{strong} | {deviation} ")?;
            writeln!(f, "| {worst} | {held_out} | {margin} |")?;
        }
        Ok(())
    }
}
