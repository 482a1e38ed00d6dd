//! Which frames are kept out of training, to measure what was learned on what was never seen.

use std::collections::BTreeMap;

use crate::rng;

/// Most frames that are held out: enough for a mean.
const MOST: usize = 2000;

/// Sources below which single frames are held out, rather than all frames of some sources.
const FEW_SOURCES: usize = 20;

/// Numbers of the frames of a dataset, in two parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// Those to learn from, ascending.
    pub training: Vec<u32>,
    /// Those held out, ascending.
    pub held_out: Vec<u32>,
}

impl Split {
    /// A number that changes with what is held out.
    pub fn fingerprint(&self) -> String {
        let bytes: Vec<u8> = self.held_out.iter().flat_map(|number| number.to_le_bytes()).collect();
        format!("{:016x}", rng::stable_hash(&bytes))
    }
}

impl Split {
    /// Holds out about `share` of the frames with these keys, but never all, nor more than 2,000. A frame's video is what its key
    /// has before a last `-` and number: since its frames are much alike, all of them fall on the same side, where there are at
    /// least 20 videos and some are short enough.
    pub fn new(keys: &[String], share: f64, seed: u64) -> Split {
        let want = ((share * keys.len() as f64).round() as usize).min(MOST).min(keys.len().saturating_sub(1));
        let order = |name: &str| rng::stable_hash(format!("held out {seed} {name}").as_bytes());
        let mut sources: BTreeMap<(u64, &str), Vec<u32>> = BTreeMap::new();
        for (number, key) in (0..).zip(keys) {
            let source = source(key);
            sources.entry((order(source), source)).or_default().push(number);
        }
        let mut held_out: Vec<u32> = Vec::new();
        if sources.len() >= FEW_SOURCES {
            for numbers in sources.values() {
                if held_out.len() + numbers.len() <= want {
                    held_out.extend(numbers);
                }
            }
        }
        if held_out.is_empty() {
            let mut all: Vec<(u64, u32)> =
                (0..).zip(keys).map(|(number, key)| (order(key), number)).collect();
            all.sort_unstable();
            held_out.extend(all.iter().take(want).map(|(_, number)| number));
        }
        held_out.sort_unstable();
        let training =
            (0..keys.len() as u32).filter(|number| held_out.binary_search(number).is_err()).collect();
        Split { training, held_out }
    }
}

fn source(key: &str) -> &str {
    match key.rsplit_once('-') {
        Some((source, number)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => source,
        _ => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(videos: usize, frames: usize) -> Vec<String> {
        let of_video = |video| (0..frames).map(move |frame| format!("{video:016x}-{frame:04}"));
        (0..videos).flat_map(of_video).collect()
    }

    #[test]
    fn whole_videos_are_held_out_where_there_are_many() {
        let keys = keys(100, 10);
        let split = Split::new(&keys, 0.05, 3);
        assert_eq!((split.held_out.len(), split.training.len()), (50, 950));
        for video in split.held_out.chunks(10) {
            assert!(video.iter().all(|n| n / 10 == video[0] / 10), "{video:?}");
        }
        assert_eq!(split, Split::new(&keys, 0.05, 3));
        assert_ne!(split, Split::new(&keys, 0.05, 4));
        // A video longer than the share is passed by.
        let long = (0..100).map(|frame| format!("long-{frame}"));
        let split = Split::new(&[&keys[..], &long.collect::<Vec<_>>()].concat(), 0.05, 3);
        assert_eq!(split.held_out.len(), 50);
        assert!(split.held_out.iter().all(|&n| n < 1000));
    }

    #[test]
    fn single_frames_are_held_out_of_few_videos_and_of_pictures() {
        let pictures: Vec<String> = (0..200).map(|n| format!("cat{n}")).collect();
        for (keys, want) in
            [(keys(3, 100), 15), (pictures, 10), (keys(1, 9), 0), (keys(1, 10), 1), (keys(1, 1), 0)]
        {
            let split = Split::new(&keys, if keys.len() == 1 { 0.5 } else { 0.05 }, 0);
            assert_eq!(split.held_out.len(), want);
            let mut all = [split.held_out, split.training].concat();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..keys.len() as u32));
        }
        assert!(Split::new(&keys(3, 100), 0.0, 0).held_out.is_empty());
    }
}
