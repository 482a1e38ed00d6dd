//! How well one number tells pictures that show something from others (paper §4.2).
//!
//! The paper's rule is that of Le et al.: of 20 equally spaced thresholds from the least value to the greatest, both included, the one
//! whose "value > threshold" is right most often. It takes the threshold from the pictures that it is tested on, and the best of
//! many units besides, so it flatters; how much is told by [`Half`] and [`Binned`].

use serde::{Deserialize, Serialize};

/// Thresholds of the paper's rule.
pub const THRESHOLDS: usize = 20;

/// A threshold and how often it is right.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    /// Above it, strictly, a picture is taken to show the thing.
    pub threshold: f64,
    /// Share of pictures that it is right about.
    pub accuracy: f64,
}

/// What there is to say about one unit as a detector.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Least value.
    pub min: f32,
    /// Greatest value.
    pub max: f32,
    /// The paper's rule.
    pub paper: Threshold,
    /// The same for the unit with its sign turned: its threshold is one of minus the value.
    pub flipped: Threshold,
    /// The best of all thresholds.
    pub exact: Threshold,
    /// Area under the receiver operating characteristic; ties count half.
    pub auc: f64,
    /// Area under precision over recall, step by step.
    pub average_precision: f64,
}

/// The values of a unit from the least, each with its picture and whether that shows the thing. Sorted once; all else follows.
pub struct Ranked {
    sorted: Vec<(f32, bool)>,
    /// Number of the picture of each.
    pub pictures: Vec<u32>,
}

impl Ranked {
    /// `values` of pictures, of which `positive` says what they show.
    ///
    /// # Panics
    /// If there is a value that is no number, or there are not as many of both, or none.
    pub fn new(values: &[f32], positive: &[bool]) -> Ranked {
        assert!(values.len() == positive.len() && !values.is_empty(), "a value for each picture");
        // Bits that are ordered as the values are: sorting whole numbers is faster.
        let key = |(picture, &value): (u64, &f32)| {
            assert!(!value.is_nan(), "a value that is no number");
            // -0 is 0: they are equal.
            let bits = (value + 0.0).to_bits();
            let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
            u64::from(ordered) << 32 | picture
        };
        let mut keys: Vec<u64> = (0..).zip(values).map(key).collect();
        keys.sort_unstable();
        let pictures: Vec<u32> = keys.into_iter().map(|key| key as u32).collect();
        let of = |&picture: &u32| (values[picture as usize] + 0.0, positive[picture as usize]);
        Ranked { sorted: pictures.iter().map(of).collect(), pictures }
    }

    /// Those whose picture is in the half, as `first` has it.
    fn half(&self, first: &[bool], wanted: bool) -> Ranked {
        let all = self.sorted.iter().copied().zip(self.pictures.iter().copied());
        let (sorted, pictures) = all.filter(|(_, picture)| first[*picture as usize] == wanted).unzip();
        Ranked { sorted, pictures }
    }

    /// Least and greatest value.
    pub fn range(&self) -> (f32, f32) {
        (self.sorted[0].0, self.sorted[self.sorted.len() - 1].0)
    }

    fn positives(&self) -> usize {
        self.sorted.iter().filter(|(_, positive)| *positive).count()
    }

    /// Groups of equal values from the least.
    pub fn groups(&self) -> impl DoubleEndedIterator<Item = &[(f32, bool)]> {
        self.sorted.chunk_by(|a, b| a.0 == b.0)
    }

    /// The value of each of them, and how many positives and negatives have it.
    fn counts(&self) -> impl DoubleEndedIterator<Item = (f32, f64, f64)> {
        self.groups().map(|group| {
            let positives = group.iter().filter(|(_, positive)| *positive).count();
            (group[0].0, positives as f64, (group.len() - positives) as f64)
        })
    }

    /// All scores.
    pub fn scores(&self) -> Scores {
        let ((min, max), positives) = (self.range(), self.positives());
        let turned = self.sorted.iter().rev().map(|&(value, positive)| (-value, positive));
        let flipped = twenty(turned, (-max, -min), positives);
        let (auc, average_precision) = (self.auc(), self.average_precision());
        Scores { min, max, paper: self.paper(), flipped, exact: self.exact(), auc, average_precision }
    }

    /// The paper's rule; of equally good thresholds the lowest.
    pub fn paper(&self) -> Threshold {
        twenty(self.sorted.iter().copied(), self.range(), self.positives())
    }

    /// The best of all thresholds, of equally good ones the lowest; one below all values is just below the least.
    fn exact(&self) -> Threshold {
        let all = self.sorted.len() as f64;
        let mut right = self.positives() as f64;
        let below = f64::from(self.range().0.next_down());
        let mut best = Threshold { threshold: below, accuracy: right / all };
        for (value, positives, negatives) in self.counts() {
            right += negatives - positives;
            if right / all > best.accuracy {
                best = Threshold { threshold: value.into(), accuracy: right / all };
            }
        }
        best
    }

    fn auc(&self) -> f64 {
        let (mut below, mut area, positives) = (0.0, 0.0, self.positives() as f64);
        for (_, of_positive, of_negative) in self.counts() {
            area += of_positive * (below + 0.5 * of_negative);
            below += of_negative;
        }
        let pairs = positives * below;
        if pairs > 0.0 { area / pairs } else { 0.5 }
    }

    fn average_precision(&self) -> f64 {
        let (mut found, mut seen, mut area) = (0.0, 0.0, 0.0);
        for (_, positives, negatives) in self.counts().rev() {
            found += positives;
            seen += positives + negatives;
            area += positives * found / seen;
        }
        if found > 0.0 { area / found } else { 0.0 }
    }

    /// How many values are not above a threshold.
    pub fn up_to(&self, threshold: f64) -> usize {
        self.sorted.partition_point(|(value, _)| f64::from(*value) <= threshold)
    }

    /// Share of pictures that a threshold is right about.
    pub fn accuracy(&self, threshold: f64) -> f64 {
        let (below, above) = self.sorted.split_at(self.up_to(threshold));
        let right = below.iter().filter(|(_, positive)| !positive).count()
            + above.iter().filter(|(_, positive)| *positive).count();
        right as f64 / self.sorted.len() as f64
    }

    /// Positives and negatives between each two of the paper's thresholds; the greatest value is in the last bin.
    pub fn histogram(&self) -> Histogram {
        let ((min, max), mut counts) = (self.range(), [[0; THRESHOLDS - 1]; 2]);
        let mut first = 0;
        for (bin, threshold) in thresholds(min, max).skip(1).enumerate() {
            let last = if bin + 2 == THRESHOLDS { self.sorted.len() } else { self.up_to(threshold) };
            for (_, positive) in &self.sorted[first.min(last)..last] {
                counts[usize::from(!positive)][bin] += 1;
            }
            first = last;
        }
        counts
    }
}

/// Positives and negatives between each two of the paper's thresholds.
pub type Histogram = [[u32; THRESHOLDS - 1]; 2];

/// The paper's rule for values sorted from the least, which lie in `range`.
fn twenty(
    sorted: impl ExactSizeIterator<Item = (f32, bool)>,
    (min, max): (f32, f32),
    positives: usize,
) -> Threshold {
    let (all, mut sorted) = (sorted.len() as f64, sorted.peekable());
    // Right are the negatives up to the threshold and the positives above it.
    let (mut right, mut best) = (positives, Threshold { threshold: f64::NAN, accuracy: -1.0 });
    for threshold in thresholds(min, max) {
        while let Some((_, positive)) = sorted.next_if(|(value, _)| f64::from(*value) <= threshold) {
            right = if positive { right - 1 } else { right + 1 };
        }
        let accuracy = right as f64 / all;
        if accuracy > best.accuracy {
            best = Threshold { threshold, accuracy };
        }
    }
    best
}

/// The paper's thresholds.
pub fn thresholds(min: f32, max: f32) -> impl Iterator<Item = f64> {
    let (min, max) = (f64::from(min), f64::from(max));
    let step = (max - min) / (THRESHOLDS - 1) as f64;
    // The last exactly, whatever rounding makes of the sum.
    (0..THRESHOLDS).map(move |k| if k + 1 == THRESHOLDS { max } else { min + k as f64 * step })
}

/// A threshold chosen on one half of the pictures by the paper's rule, and what it is worth on the other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Half {
    /// On the half that it was chosen on.
    pub chosen: Threshold,
    /// Share of the other half that it is right about.
    pub held_out: f64,
}

impl Half {
    /// Both ways; `first` says which pictures are in the first half, on which the choice of way 0 is made.
    pub fn both(ranked: &Ranked, first: &[bool]) -> [Half; 2] {
        let halves = [true, false].map(|wanted| ranked.half(first, wanted));
        [0, 1].map(|on| {
            let chosen = halves[on].paper();
            Half { chosen, held_out: halves[1 - on].accuracy(chosen.threshold) }
        })
    }
}

/// Where each picture's value lies among the paper's thresholds: all that its accuracy for any labels depends on.
pub struct Binned {
    /// Thresholds that are below a picture's value.
    bins: Vec<u8>,
    /// Pictures in each bin.
    counts: [usize; THRESHOLDS + 1],
}

impl Binned {
    /// Of the values of a unit.
    pub fn new(ranked: &Ranked) -> Binned {
        let ((min, max), all) = (ranked.range(), ranked.pictures.len());
        let (mut bins, mut counts, mut first) = (vec![0; all], [0; THRESHOLDS + 1], 0);
        let ends = thresholds(min, max).map(|threshold| ranked.up_to(threshold)).chain([all]);
        for (bin, (last, count)) in (0..).zip(ends.zip(&mut counts)) {
            for &picture in &ranked.pictures[first..last] {
                bins[picture as usize] = bin;
            }
            (*count, first) = (last - first, last);
        }
        Binned { bins, counts }
    }

    /// The best accuracy by the paper's rule if these pictures are the positive ones.
    pub fn accuracy(&self, positives: &[u32]) -> f64 {
        // Four tables, as neighbours often have the same bin.
        let mut tables = [[0u32; 32]; 4];
        for few in positives.chunks(4) {
            for (table, &picture) in tables.iter_mut().zip(few) {
                table[usize::from(self.bins[picture as usize])] += 1;
            }
        }
        let mut right = positives.len();
        let mut best = 0;
        for (bin, count) in self.counts[..THRESHOLDS].iter().enumerate() {
            let of_positive: u32 = tables.iter().map(|table| table[bin]).sum();
            right = right + count - 2 * of_positive as usize;
            best = best.max(right);
        }
        best as f64 / self.bins.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use rand::Rng;

    fn drawn(index: u64, count: usize, levels: i32) -> (Vec<f32>, Vec<bool>) {
        let mut rng = rng::stream(4, "detector", index);
        let value = |positive: bool, rng: &mut rng::ChaCha8Rng| {
            (rng.random_range(-levels..levels) + if positive { levels / 3 } else { 0 }) as f32 / 7.0
        };
        let pairs = (0..count).map(|_| {
            let positive = rng.random_bool(0.3);
            (value(positive, &mut rng), positive)
        });
        pairs.unzip()
    }

    /// The definitions, one by one.
    fn plain(values: &[f32], positive: &[bool]) -> Scores {
        let right = |threshold: f64, sign: f64| {
            let right =
                |(value, positive): (&f32, &bool)| (sign * f64::from(*value) > threshold) == *positive;
            values.iter().zip(positive).filter(|&pair| right(pair)).count() as f64 / values.len() as f64
        };
        let min = values.iter().copied().fold(f32::MAX, f32::min);
        let max = values.iter().copied().fold(f32::MIN, f32::max);
        let best = |thresholds: Vec<f64>, sign: f64| {
            let mut best = Threshold { threshold: f64::NAN, accuracy: -1.0 };
            for threshold in thresholds {
                if right(threshold, sign) > best.accuracy {
                    best = Threshold { threshold, accuracy: right(threshold, sign) };
                }
            }
            best
        };
        let mut all: Vec<f64> = values.iter().map(|&value| value.into()).collect();
        all.push(min.next_down().into());
        all.sort_by(f64::total_cmp);
        let (mut wins, mut pairs, mut precision) = (0.0, 0.0, 0.0);
        for (a, _) in values.iter().zip(positive).filter(|(_, positive)| **positive) {
            for (b, _) in values.iter().zip(positive).filter(|(_, positive)| !**positive) {
                pairs += 1.0;
                wins += if a > b {
                    1.0
                } else if a == b {
                    0.5
                } else {
                    0.0
                };
            }
            let at_least = |only: bool| {
                values.iter().zip(positive).filter(|(b, positive)| *b >= a && (!only || **positive)).count()
                    as f64
            };
            precision += at_least(true) / at_least(false);
        }
        let count = positive.iter().filter(|positive| **positive).count() as f64;
        Scores {
            min,
            max,
            paper: best(thresholds(min, max).collect(), 1.0),
            flipped: best(thresholds(-max, -min).collect(), -1.0),
            exact: best(all, 1.0),
            auc: wins / pairs,
            average_precision: precision / count,
        }
    }

    #[test]
    fn scores_are_those_of_the_definitions_with_and_without_ties() {
        for (index, levels) in [(0, 3), (1, 20), (2, 100_000)] {
            let (values, positive) = drawn(index, 400, levels);
            let (got, want) = (Ranked::new(&values, &positive).scores(), plain(&values, &positive));
            assert_eq!(
                (got.min, got.max, got.paper, got.exact),
                (want.min, want.max, want.paper, want.exact)
            );
            assert_eq!(got.flipped, want.flipped);
            assert!((got.auc - want.auc).abs() < 1e-12, "{} {}", got.auc, want.auc);
            assert!((got.average_precision - want.average_precision).abs() < 1e-12);
        }
    }

    #[test]
    fn a_perfect_unit_an_opposite_one_and_a_constant_one() {
        let positive: Vec<bool> = (0..50).map(|n| n >= 30).collect();
        let perfect: Vec<f32> = positive.iter().map(|&p| if p { 2.0 } else { -0.5 }).collect();
        let of = |values: &[f32]| Ranked::new(values, &positive).scores();
        let scores = of(&perfect);
        assert_eq!((scores.paper.accuracy, scores.exact.accuracy, scores.auc), (1.0, 1.0, 1.0));
        assert_eq!((scores.average_precision, scores.flipped.accuracy), (1.0, 0.6));
        let opposite: Vec<f32> = perfect.iter().map(|x| -x).collect();
        let scores = of(&opposite);
        assert_eq!((scores.flipped.accuracy, scores.auc, scores.exact.accuracy), (1.0, 0.0, 0.6));
        // Always "no".
        let scores = of(&[3.0; 50]);
        assert_eq!((scores.paper.accuracy, scores.flipped.accuracy, scores.auc), (0.6, 0.6, 0.5));
        assert_eq!(scores.average_precision, 0.4);
        // Zero has one sign only.
        assert_eq!(Ranked::new(&[0.0, -0.0], &[true, false]).scores().auc, 0.5);
    }

    #[test]
    fn bins_give_the_accuracy_of_any_labels() {
        let (values, positive) = drawn(5, 500, 50);
        let binned = Binned::new(&Ranked::new(&values, &positive));
        for labels in [positive.clone(), (0..500).map(|n| n % 3 == 0).collect(), vec![true; 500]] {
            let numbers: Vec<u32> = (0..500).filter(|&n| labels[n as usize]).collect();
            assert_eq!(binned.accuracy(&numbers), Ranked::new(&values, &labels).paper().accuracy);
        }
    }

    #[test]
    fn a_histogram_has_every_picture_between_its_thresholds() {
        for levels in [2, 50] {
            let (values, positive) = drawn(7, 300, levels);
            let ranked = Ranked::new(&values, &positive);
            let (min, max) = ranked.range();
            let limits: Vec<f64> = thresholds(min, max).collect();
            for (counts, class) in ranked.histogram().iter().zip([true, false]) {
                for (bin, &count) in counts.iter().enumerate() {
                    let (low, high) = (limits[bin], limits[bin + 1]);
                    let inside =
                        |value: f64| value <= high && (value > low || (bin == 0 && value == f64::from(min)));
                    let pairs = values.iter().zip(&positive);
                    let wanted = pairs.filter(|(value, p)| **p == class && inside(f64::from(**value)));
                    assert_eq!(count as usize, wanted.count(), "bin {bin}");
                }
            }
        }
        let one = Ranked::new(&[2.0, 2.0], &[true, false]).histogram();
        assert_eq!(one.map(|counts| counts.iter().sum::<u32>()), [1, 1]);
    }

    #[test]
    fn a_threshold_is_worth_on_the_other_half_what_it_is_there() {
        let (values, positive) = drawn(6, 300, 40);
        let first: Vec<bool> = (0..300).map(|n| n % 2 == 0).collect();
        let [one, other] = Half::both(&Ranked::new(&values, &positive), &first);
        for (half, on) in [(one, true), (other, false)] {
            let pick = |wanted: bool| -> (Vec<f32>, Vec<bool>) {
                (0..300).filter(|&n| first[n] == wanted).map(|n| (values[n], positive[n])).unzip()
            };
            let ((a, a_labels), (b, b_labels)) = (pick(on), pick(!on));
            assert_eq!(half.chosen, plain(&a, &a_labels).paper);
            let right =
                b.iter().zip(&b_labels).filter(|(v, p)| (f64::from(**v) > half.chosen.threshold) == **p);
            assert_eq!(half.held_out, right.count() as f64 / b.len() as f64);
        }
    }
}
