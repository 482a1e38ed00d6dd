//! How good read-outs are, as text and as pictures.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::figure::{Panel, Series, panels};
use crate::analysis::evaluate::Group;
use crate::classify::readout::{About, Weights};
use crate::classify::scores::{ClassScores, Scores};
use crate::classify::{Of, View};

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
            Weights::Random(seed) => format!(", random weights (seed {seed})"),
            Weights::Learned => String::new(),
        };
        format!("{what}{grid}{weights}")
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
