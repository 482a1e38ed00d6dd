//! How good read-outs are, as text and as pictures.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::data::{Format, embedded};
use super::detectors::read_json;
use super::figure::{Panel, Series, grouped, panels};
use crate::analysis::evaluate::Group;
use crate::classify::readout::{About, Weights};
use crate::classify::scores::{ClassScores, Scores};
use crate::classify::{Of, View, head};
use crate::error::Result;

/// `RUN/classify/NAME.json`: a read-out's test.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tested {
    /// What was tested.
    pub readout: About,
    /// Where the pictures were.
    pub labels: Vec<String>,
    /// What it came to.
    #[serde(flatten)]
    pub scores: Scores,
    /// Pictures, each beside what attention looks at in it; in the same folder.
    #[serde(default)]
    pub attention: Option<PathBuf>,
}

/// Most classes of which all pairs are printed.
const PAIRS: usize = 12;

impl Tested {
    /// What is read of which network, in words.
    pub fn what(&self) -> String {
        let View { of, grid } = &self.readout.view;
        let what = match of {
            Of::Pixels => "whitened pixels".into(),
            Of::Units(groups) => {
                let name = |group: &Group| format!("{} ({})", group.stage + 1, group.kind);
                let names: Vec<String> = groups.iter().map(name).collect();
                format!("stage {}", names.join(" and "))
            }
        };
        let grid = grid.map_or(String::new(), |grid| match grid {
            1 => ", mean of each map".into(),
            _ => format!(", means over {grid}x{grid} parts of each map"),
        });
        let weights = match self.readout.weights {
            Weights::Random(_) => format!(", {}", self.readout.weights),
            Weights::Learned => String::new(),
        };
        let tuning = self.readout.tuning.as_ref().map_or(String::new(), |tuning| {
            let head = match tuning.head {
                head::Kind::Attention(hidden) => format!(", attention with {hidden} hidden units"),
                head::Kind::Full | head::Kind::Mean => String::new(),
            };
            format!(
                "{head}{}",
                if tuning.network_rate > 0.0 { ", all weights learned from labels" } else { "" }
            )
        });
        format!("{what}{grid}{weights}{tuning}")
    }
}

impl fmt::Display for Tested {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Scores { pictures, top_1, top_1_interval: [low, high], top_5, log_loss, .. } = self.scores;
        writeln!(f, "{}: {pictures} pictures", self.what())?;
        write!(f, "top-1 {:.1} % (95 %: {:.1} to {:.1})", 100.0 * top_1, 100.0 * low, 100.0 * high)?;
        let classes = &self.scores.classes;
        if classes.len() > 5 {
            write!(f, ", top-5 {:.1} %", 100.0 * top_5)?;
        }
        let error = 100.0 * self.scores.calibration_error;
        writeln!(f, ", log-loss {log_loss:.3}, calibration error {error:.1} %")?;
        let width = classes.iter().map(|class| class.name.chars().count()).max().unwrap_or(0).max(5);
        let pairs = classes.len() <= PAIRS;
        write!(f, "\n{:width$} {:>8} {:>9} {:>7} {:>6}", "class", "pictures", "precision", "recall", "AUC")?;
        if pairs {
            write!(f, "   answered")?;
            classes.iter().try_for_each(|class| write!(f, " {:>5.5}", class.name))?;
        }
        for (class, row) in classes.iter().zip(&self.scores.confusion) {
            let ClassScores { name, pictures, precision, recall, auc } = class;
            let auc = auc.map_or("-".into(), |auc| format!("{auc:.3}"));
            let (precision, recall) = (100.0 * precision, 100.0 * recall);
            write!(f, "\n{name:width$} {pictures:>8} {precision:>7.1} % {recall:>5.1} % {auc:>6}")?;
            if pairs {
                write!(f, "           ")?;
                row.iter().try_for_each(|count| write!(f, " {count:>5}"))?;
            }
        }
        if let Some(attention) = &self.attention {
            write!(f, "\n\nwhat it looks at: classify/{}", attention.display())?;
        }
        writeln!(f)
    }
}

/// Accuracy over confidence, and the recall of each class.
pub fn figure(tested: &Tested) -> String {
    let bins = &tested.scores.calibration;
    let points = bins.iter().map(|bin| (100.0 * bin.confidence, 100.0 * bin.accuracy)).collect();
    let calibration = Panel {
        title: "Is it right as often as it says?".into(),
        x_name: "probability of the answer, %".into(),
        y_name: "right, %".into(),
        series: vec![
            Series::Curve {
                name: "perfect".into(),
                points: vec![(0.0, 0.0), (100.0, 100.0)],
                band: Vec::new(),
            },
            Series::Curve { name: "this".into(), points, band: Vec::new() },
        ],
    };
    panels(&[calibration], 1)
}

/// A read-out's test on the page.
pub(super) struct ClassesView {
    pub name: String,
    pub what: String,
    pub summary: String,
    pub calibration: String,
    /// Address of a picture.
    pub attention: Option<String>,
    pub rows: Vec<ClassRow>,
    /// Whether all pairs of classes are shown.
    pub pairs: bool,
}

pub(super) struct ClassRow {
    pub name: String,
    pub pictures: String,
    pub precision: String,
    pub recall: String,
    pub auc: String,
    /// How many were taken for each class, and that as a share of the class from 0 to 1.
    pub answered: Vec<(usize, String)>,
}

/// All tests of read-outs in `RUN/classify`, in the order of names.
///
/// # Errors
/// One of them cannot be read, or a picture is missing.
pub(super) fn views(run: &Path) -> Result<Vec<ClassesView>> {
    let folder = run.join("classify");
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
    paths.sort();
    paths.iter().map(|path| view(path, &folder)).collect()
}

fn view(path: &Path, folder: &Path) -> Result<ClassesView> {
    let tested: Tested = read_json(path, "classify eval")?;
    let Scores { pictures, top_1, top_1_interval: [low, high], top_5, log_loss, .. } = tested.scores;
    let top_5 = if tested.scores.classes.len() > 5 {
        format!(", top-5 {:.1} %", 100.0 * top_5)
    } else {
        String::new()
    };
    let summary = format!(
        "{} pictures: top-1 {:.1} % (95 %: {:.1} to {:.1}){top_5}, log-loss {log_loss:.3}, calibration error {:.1} %.",
        grouped(pictures as u64),
        100.0 * top_1,
        100.0 * low,
        100.0 * high,
        100.0 * tested.scores.calibration_error
    );
    let row = |(class, answered): (&ClassScores, &Vec<usize>)| ClassRow {
        name: class.name.clone(),
        pictures: grouped(class.pictures as u64),
        precision: format!("{:.1} %", 100.0 * class.precision),
        recall: format!("{:.1} %", 100.0 * class.recall),
        auc: class.auc.map_or(String::new(), |auc| format!("{auc:.3}")),
        answered: answered
            .iter()
            .map(|&count| (count, format!("{:.2}", count as f64 / class.pictures.max(1) as f64)))
            .collect(),
    };
    let attention =
        tested.attention.as_ref().map(|picture| embedded(folder, picture, Format::Exact)).transpose()?;
    Ok(ClassesView {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        what: tested.what(),
        summary,
        calibration: figure(&tested),
        attention,
        rows: tested.scores.classes.iter().zip(&tested.scores.confusion).map(row).collect(),
        pairs: tested.scores.classes.len() <= PAIRS,
    })
}
