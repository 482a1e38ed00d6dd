//! What a frame set holds, summed up from its tables.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::layout::{INPUT_TABLE, SUMMARY, read_journal, read_summary};
use super::record::{DropCounts, INPUT_COLUMNS, InputRecord, Outcome};
use super::store::FrameStore;
use super::table::TableReader;
use crate::error::Result;

/// How many different reasons are counted; the rest together.
const MOST_REASONS: usize = 1000;
/// How many of the slowest inputs are named.
const SLOWEST: usize = 5;

/// What a frame set holds.
#[derive(Debug, Serialize)]
pub struct FrameSetInfo {
    /// Frames that can be read.
    pub frames: u64,
    /// Width and height of the first picture, and whether it has colour.
    pub first_picture: (u32, u32, bool),
    /// What cannot be read.
    pub warnings: Vec<String>,
    /// Where the frames came from; only sets that this program made have it.
    pub origin: Option<Origin>,
}

/// How a frame set was made.
#[derive(Debug, Serialize)]
pub struct Origin {
    /// Whether all inputs that were named are in it.
    pub complete: bool,
    /// Tar files.
    pub shards: u64,
    /// Bytes in all shards.
    pub bytes: u64,
    /// Input files, skipped ones included.
    pub inputs: u64,
    /// Input files of which nothing was used.
    pub skipped: u64,
    /// Why inputs were skipped, and how many; the most frequent first.
    pub reasons: Vec<(String, u64)>,
    /// Inputs with damage that did not keep them from being used.
    pub damaged: u64,
    /// How many inputs have each codec or picture format.
    pub codecs: BTreeMap<String, u64>,
    /// Frames that filters left out.
    pub dropped: DropCounts,
    /// Least, median and most frames of an input that was not skipped.
    pub frames_per_input: Option<[u64; 3]>,
    /// Time that all inputs took together, in seconds.
    pub seconds_spent: f64,
    /// The inputs that took longest, with the time in seconds.
    pub slowest: Vec<(String, f64)>,
    /// The settings of the program that made it.
    pub settings: Value,
}

/// Sums up the frame set, the tar shards or the folder of pictures at `path`.
///
/// # Errors
/// If there is no picture, or a table cannot be read.
pub fn info(path: &Path) -> Result<FrameSetInfo> {
    let origin = path.join(SUMMARY).exists().then(|| origin(path)).transpose()?;
    let store = FrameStore::open(path)?;
    let first = store.picture(0)?;
    Ok(FrameSetInfo {
        frames: store.len() as u64,
        first_picture: (first.width(), first.height(), first.color().has_color()),
        warnings: store.warnings().to_vec(),
        origin,
    })
}

fn origin(folder: &Path) -> Result<Origin> {
    let summary = read_summary(folder)?;
    let mut sums = Sums::default();
    let mut shards = summary.shards;
    if summary.complete {
        let table = TableReader::open(&folder.join(INPUT_TABLE))?;
        for group in 0..table.groups() {
            table.read::<InputRecord>(group, INPUT_COLUMNS)?.iter().for_each(|input| sums.add(input));
        }
    } else {
        let (inputs, finished, _) = read_journal(folder)?;
        inputs.iter().for_each(|input| sums.add(input));
        shards = finished;
    }
    let mut reasons: Vec<_> = sums.reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    Ok(Origin {
        complete: summary.complete,
        shards,
        bytes: summary.bytes,
        inputs: sums.inputs,
        skipped: sums.skipped,
        reasons,
        damaged: sums.damaged,
        codecs: sums.codecs,
        dropped: sums.dropped,
        frames_per_input: spread(&sums.frames),
        seconds_spent: sums.seconds,
        slowest: sums.slowest,
        settings: summary.settings,
    })
}

#[derive(Default)]
struct Sums {
    inputs: u64,
    skipped: u64,
    damaged: u64,
    reasons: BTreeMap<String, u64>,
    codecs: BTreeMap<String, u64>,
    dropped: DropCounts,
    /// How many inputs have each number of frames.
    frames: BTreeMap<u64, u64>,
    seconds: f64,
    slowest: Vec<(String, f64)>,
}

impl Sums {
    fn add(&mut self, input: &InputRecord) {
        self.inputs += 1;
        self.seconds += input.seconds_spent;
        self.dropped.merge(&input.dropped);
        self.damaged += u64::from(input.damage.is_some());
        let place = self.slowest.partition_point(|(_, seconds)| *seconds >= input.seconds_spent);
        self.slowest.insert(place, (input.path.clone(), input.seconds_spent));
        self.slowest.truncate(SLOWEST);
        if let Some(codec) = &input.codec {
            *self.codecs.entry(codec.clone()).or_default() += 1;
        }
        if input.outcome == Outcome::Skipped {
            self.skipped += 1;
            let mut reason = input.reason.as_deref().unwrap_or("no reason was recorded");
            if self.reasons.len() >= MOST_REASONS && !self.reasons.contains_key(reason) {
                reason = "other reasons";
            }
            *self.reasons.entry(reason.to_string()).or_default() += 1;
        } else {
            *self.frames.entry(input.frames).or_default() += 1;
        }
    }
}

/// Least, median and most of values, given as how often each occurs.
fn spread(counts: &BTreeMap<u64, u64>) -> Option<[u64; 3]> {
    let (least, most) = (counts.keys().next()?, counts.keys().next_back()?);
    let half = counts.values().sum::<u64>().div_ceil(2);
    let mut seen = 0;
    let median = counts.iter().find(|(_, count)| {
        seen += **count;
        seen >= half
    });
    Some([*least, *median?.0, *most])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_median_and_most_are_those_of_the_sorted_values() {
        assert_eq!(spread(&BTreeMap::new()), None);
        assert_eq!(spread(&BTreeMap::from([(7, 1)])), Some([7, 7, 7]));
        // 0, 3, 3, 3, 9
        assert_eq!(spread(&BTreeMap::from([(0, 1), (3, 3), (9, 1)])), Some([0, 3, 9]));
        assert_eq!(spread(&BTreeMap::from([(1, 5), (2, 4)])), Some([1, 1, 2]));
    }

    #[test]
    fn inputs_are_summed_up_with_the_slowest_first_and_reasons_bounded() {
        let input = |number: u64, reason: Option<&str>| InputRecord {
            path: format!("{number}.mp4"),
            name: String::new(),
            absolute_path: String::new(),
            key: String::new(),
            outcome: if reason.is_some() { Outcome::Skipped } else { Outcome::Ok },
            reason: reason.map(str::to_string),
            bytes: None,
            codec: Some("h264".into()),
            damage: (number == 2).then(|| "torn".into()),
            frames: number,
            dropped: DropCounts { dark: 1, ..DropCounts::default() },
            seconds_spent: number as f64,
        };
        let mut sums = Sums::default();
        for number in 0..10 {
            sums.add(&input(number, (number == 7).then_some("is empty")));
        }
        assert_eq!((sums.inputs, sums.skipped, sums.damaged, sums.seconds), (10, 1, 1, 45.0));
        assert_eq!((sums.dropped.dark, sums.codecs["h264"], sums.reasons["is empty"]), (10, 10, 1));
        let slowest: Vec<f64> = sums.slowest.iter().map(|(_, seconds)| *seconds).collect();
        assert_eq!(slowest, [9.0, 8.0, 7.0, 6.0, 5.0]);
        assert_eq!(spread(&sums.frames), Some([0, 4, 9]));
        (0..2000).for_each(|number| sums.add(&input(number, Some(&number.to_string()))));
        assert!(sums.reasons.len() == MOST_REASONS + 1 && sums.reasons["other reasons"] == 1001);
    }
}
