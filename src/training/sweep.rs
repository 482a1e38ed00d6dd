//! Several settings of one config on the same frames, one run after the other, and what came of each.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Summary;
use crate::error::Result;
use crate::files;

/// A setting and the values that it takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Vary {
    /// Such as `training.rate`.
    pub key: String,
    /// As text.
    pub values: Vec<String>,
}

impl std::str::FromStr for Vary {
    type Err = String;

    /// `KEY=VALUE,VALUE`; commas inside brackets do not part values.
    fn from_str(text: &str) -> Result<Vary, String> {
        let wanted = || format!("`{text}` is not KEY=VALUE,VALUE,.. such as training.rate=0.01,0.02");
        let (key, values) = text.split_once('=').ok_or_else(wanted)?;
        let (mut depth, mut parts) = (0i32, vec![String::new()]);
        for c in values.chars() {
            depth += i32::from(c == '[') - i32::from(c == ']');
            match c {
                ',' if depth == 0 => parts.push(String::new()),
                c => parts.last_mut().expect("starts with one").push(c),
            }
        }
        let parts: Vec<String> = parts.iter().map(|part| part.trim().to_owned()).collect();
        if key.trim().is_empty() || parts.iter().any(String::is_empty) {
            return Err(wanted());
        }
        Ok(Vary { key: key.trim().into(), values: parts })
    }
}

/// One run of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Keys and values that differ from the config.
    pub settings: BTreeMap<String, String>,
    /// Seed.
    pub seed: u64,
}

impl Setting {
    /// As `--set` takes them.
    pub fn overrides(&self) -> Vec<String> {
        self.settings.iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    /// What the folder of its run is called: safe for files, and another one for each setting.
    pub fn name(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || ".-_=,".contains(c) { c } else { '_' };
        let settings = self.settings.iter().map(|(key, value)| format!("{key}={value},"));
        settings.chain([format!("seed={}", self.seed)]).collect::<String>().chars().map(plain).collect()
    }

    fn title(&self) -> String {
        let settings = self.settings.iter().map(|(key, value)| format!("{key}={value} "));
        settings.chain([format!("seed {}", self.seed)]).collect()
    }
}

/// Every combination of the values, with every seed, in the order given.
pub fn settings(vary: &[Vary], seeds: &[u64]) -> Vec<Setting> {
    let mut all = vec![BTreeMap::new()];
    for Vary { key, values } in vary {
        let with = |settings: &BTreeMap<String, String>, value: &String| {
            let mut settings = settings.clone();
            settings.insert(key.clone(), value.clone());
            settings
        };
        all = all.iter().flat_map(|settings| values.iter().map(|value| with(settings, value))).collect();
    }
    let each = |settings: &BTreeMap<String, String>| -> Vec<Setting> {
        seeds.iter().map(|&seed| Setting { settings: settings.clone(), seed }).collect()
    };
    all.iter().flat_map(each).collect()
}

/// What came of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// What it was.
    #[serde(flatten)]
    pub setting: Setting,
    /// Its folder.
    pub run: PathBuf,
    /// Its summary; none if it failed.
    pub summary: Option<Summary>,
    /// Why it failed.
    pub error: Option<String>,
}

/// A sweep, as far as it came.
#[derive(Debug, Clone, Serialize)]
pub struct Sweep {
    /// In the order that they ran.
    pub runs: Vec<Outcome>,
    /// Runs that are still to do.
    pub left: usize,
}

impl Sweep {
    /// Writes `results.json` into the folder of the sweep.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("results are plain data") + "\n";
        files::replace(&folder.join("results.json"), text)
    }
}

/// Loss of a stage, held out where there is one.
fn loss(summary: &Summary, stage: usize) -> Option<f64> {
    let stage = summary.stages.iter().find(|s| s.stage == stage)?;
    Some(stage.validation_loss.unwrap_or(stage.last_loss))
}

impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let summaries = || self.runs.iter().filter_map(|run| run.summary.as_ref());
        let stages = summaries().map(|summary| summary.stages.len()).max().unwrap_or(0);
        let width = self.runs.iter().map(|run| run.setting.title().len()).max().unwrap_or(0).max(8);
        write!(f, "{:width$}", "settings")?;
        (1..=stages).try_for_each(|stage| write!(f, "  {:>24}", format!("stage {stage}: loss, unexpl.")))?;
        writeln!(f, "  images/s")?;
        for run in &self.runs {
            write!(f, "{:width$}", run.setting.title())?;
            let Some(summary) = &run.summary else {
                writeln!(f, "  failed: {}", run.error.as_deref().unwrap_or_default())?;
                continue;
            };
            for stage in 1..=stages {
                let least = summaries().filter_map(|s| loss(s, stage)).fold(f64::INFINITY, f64::min);
                let share = summary.stages.iter().find(|s| s.stage == stage).map(|s| 100.0 * s.unexplained);
                let cell = loss(summary, stage).zip(share).map_or("-".into(), |(loss, share)| {
                    let mark = if loss == least && self.runs.len() > 1 { "*" } else { " " };
                    format!("{loss:.2}{mark} {share:>3.0} %")
                });
                write!(f, "  {cell:>24}")?;
            }
            let end = if summary.finished { "" } else { "  (not finished)" };
            writeln!(f, "  {:>8.0}{end}", summary.images as f64 / summary.seconds.max(1e-9))?;
        }
        self.over_seeds(f, width, stages)?;
        write!(f, "losses are of held-out frames where there are any; * the lowest")?;
        if self.left > 0 { write!(f, "; {} runs are left", self.left) } else { Ok(()) }
    }
}

impl Sweep {
    /// Means over seeds, and how far seeds are apart.
    fn over_seeds(&self, f: &mut fmt::Formatter, width: usize, stages: usize) -> fmt::Result {
        let mut groups: Vec<(&BTreeMap<String, String>, Vec<&Summary>)> = Vec::new();
        for run in &self.runs {
            let Some(summary) = &run.summary else { continue };
            match groups.iter_mut().find(|(settings, _)| **settings == run.setting.settings) {
                Some((_, of)) => of.push(summary),
                None => groups.push((&run.setting.settings, vec![summary])),
            }
        }
        for (settings, summaries) in groups.iter().filter(|(_, summaries)| summaries.len() > 1) {
            let title: String = settings.iter().map(|(key, value)| format!("{key}={value} ")).collect();
            write!(f, "{:width$}", format!("{title}{} seeds", summaries.len()))?;
            for stage in 1..=stages {
                let losses: Vec<f64> = summaries.iter().filter_map(|s| loss(s, stage)).collect();
                let mean = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
                let spread = losses.iter().map(|loss| (loss - mean).abs()).fold(0.0, f64::max);
                write!(f, "  {:>24}", format!("{mean:.2} ± {spread:.2}"))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_all_combinations_in_order_with_names_of_their_own() {
        let vary: Vec<Vary> = ["training.steps=[10,10],[20,20]", "training.rate=0.1, 0.2"]
            .map(|text| text.parse().unwrap())
            .into();
        assert_eq!(vary[0].values, ["[10,10]", "[20,20]"]);
        let all = settings(&vary, &[0, 7]);
        let titles: Vec<String> = all.iter().map(Setting::title).collect();
        assert_eq!(all.len(), 8);
        assert_eq!(titles[0], "training.rate=0.1 training.steps=[10,10] seed 0");
        assert_eq!(titles[3], "training.rate=0.2 training.steps=[10,10] seed 7");
        let names: std::collections::BTreeSet<String> = all.iter().map(Setting::name).collect();
        assert_eq!(names.len(), 8);
        assert!(names.iter().all(|name| !name.contains('/') && !name.contains('[')), "{names:?}");
        assert_eq!(all[7].overrides(), ["training.rate=0.2", "training.steps=[20,20]"]);
    }

    #[test]
    fn what_is_no_variation_is_refused() {
        for text in ["training.rate", "=1,2", "training.rate=", "training.rate=1,,2"] {
            assert!(text.parse::<Vary>().unwrap_err().contains(text), "{text}");
        }
    }
}
