//! The files of the detector test and of its controls: `RUN/evaluate/NAME.json` and `RUN/controls/NAME.json`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::analysis::controls::{Row, Settings};
use crate::analysis::evaluate::{BestUnit, Evaluation};
use crate::analysis::responses::Probe;
use crate::analysis::truth::Dependence;
use crate::error::{Error, Result};
use crate::geometry::Kind;

/// `RUN/evaluate/NAME.json`: every unit as a detector of one thing.
#[derive(Debug, Serialize, Deserialize)]
pub struct Evaluated {
    /// What the thing is called.
    pub concept: String,
    /// See [`identity`](crate::network::checkpoint::identity).
    pub checkpoint: String,
    /// Where the pictures were that show it.
    pub positive_sets: Vec<String>,
    /// Where the others were.
    pub negative_sets: Vec<String>,
    /// Share of positives asked for.
    pub share_asked: Option<f64>,
    /// How the best unit's values depend on where objects are and how they are turned, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<Vec<Dependence>>,
    /// What came out.
    #[serde(flatten)]
    pub evaluation: Evaluation,
}

impl Evaluated {
    /// The best unit of all groups.
    pub fn best(&self) -> &BestUnit {
        self.evaluation.groups.iter().map(|group| &group.best[0]).reduce(better).expect("a group")
    }

    /// The best unit by one kind of its values, if that was tested.
    pub fn best_by(&self, kind: Kind) -> Option<&BestUnit> {
        let groups = self.evaluation.groups.iter().filter(|group| group.group.kind == kind);
        groups.map(|group| &group.best[0]).reduce(better)
    }

    /// What a unit's value says, if that was tested, by the same checkpoint.
    pub fn verdict(&self, identity: &str, probe: Probe, value: f64) -> Option<Verdict> {
        if self.checkpoint != identity {
            return None;
        }
        let scores = self.evaluation.units.iter().find(|unit| unit.probe == probe)?.scores.paper;
        let (threshold, accuracy) = (scores.threshold, scores.accuracy);
        Some(Verdict { concept: self.concept.clone(), threshold, accuracy, says_yes: value > threshold })
    }
}

/// What a unit's value for a picture says, as a detector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Of what.
    pub concept: String,
    /// "Yes" is above this.
    pub threshold: f64,
    /// Share of the test pictures that it is right about.
    pub accuracy: f64,
    /// Whether it says so of this picture.
    pub says_yes: bool,
}

fn better<'a>(a: &'a BestUnit, b: &'a BestUnit) -> &'a BestUnit {
    let accuracy = |unit: &BestUnit| unit.unit.scores.paper.accuracy;
    if accuracy(b) > accuracy(a) { b } else { a }
}

/// `RUN/controls/NAME.json`: what other detectors come to on the same pictures.
#[derive(Debug, Serialize, Deserialize)]
pub struct Table {
    /// From what.
    #[serde(flatten)]
    pub made: Made,
    /// The lines that are made.
    pub rows: Vec<Row>,
}

/// What a table is made from: lines of one that was made from the same are kept.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// What the thing is called.
    pub concept: String,
    /// See [`identity`](crate::network::checkpoint::identity).
    pub checkpoint: String,
    /// Where the pictures were that show it.
    pub positive_sets: Vec<String>,
    /// Where the others were.
    pub negative_sets: Vec<String>,
    /// Share of positives asked for.
    pub share_asked: Option<f64>,
    /// How many show it.
    pub positives: usize,
    /// How many do not.
    pub negatives: usize,
    /// Which pictures these were, see [`Labelled::fingerprint`](crate::analysis::responses::Labelled::fingerprint).
    pub pictures: String,
    /// Where it said which training frames show it.
    pub concept_frames: Option<String>,
    /// Which frames these were, see [`hash_of`](crate::analysis::controls::hash_of).
    pub concept_keys: Option<String>,
    /// How.
    pub settings: Settings,
}

/// Every `*.json` of a folder, in the order of their names; none if there is no such folder.
///
/// # Errors
/// One of them cannot be read, or is not what `command` writes.
pub fn read_all<T: DeserializeOwned>(folder: &Path, command: &str) -> Result<Vec<T>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    paths.iter().map(|path| read_json(path, command)).collect()
}

/// A file that `striate COMMAND` wrote.
///
/// # Errors
/// It cannot be read, or is something else.
pub fn read_json<T: DeserializeOwned>(path: &Path, command: &str) -> Result<T> {
    let text = fs::read(path).map_err(Error::io(path, "read"))?;
    serde_json::from_slice(&text).map_err(|e| {
        let problem =
            format!("not what this version's `striate {command}` writes (make it again, or remove it): {e}");
        Error::bad_file(path, problem)
    })
}
