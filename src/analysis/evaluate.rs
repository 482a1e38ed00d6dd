//! The detector test: how well does each unit tell pictures that show something from others (paper §4.2)?

use std::ops::Range;

use rand::Rng;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::detector::{Binned, Half, Histogram, Ranked, Scores};
use super::responses::{Probe, Responses, Shown};
use super::{Progress, quantile};
use crate::error::Result;
use crate::geometry::Kind;
use crate::network::Network;
use crate::rng;

/// How to test.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Settings {
    /// Times that labels are shuffled to see how good the best unit is by chance.
    pub permutations: usize,
    /// Times that pictures are drawn anew for confidence intervals.
    pub bootstraps: usize,
    /// Seed of halves, shuffles and draws.
    pub seed: u64,
    /// Most bytes of values held at once; if they are more, units are read in several passes.
    #[serde(skip)]
    pub memory: u64,
}

/// One kind of values of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Stage, from 0; in files from 1.
    #[serde(with = "super::responses::from_1")]
    pub stage: usize,
    /// Which value.
    pub kind: Kind,
}

impl Group {
    /// The group's value of every unit.
    pub fn probes(self, network: &Network) -> Vec<Probe> {
        let Group { stage, kind } = self;
        network.units(stage, kind).into_iter().map(|unit| Probe { stage, kind, unit }).collect()
    }
}

/// A unit as a detector.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct UnitScores {
    /// Which value of which unit.
    #[serde(flatten)]
    pub probe: Probe,
    /// On all pictures.
    #[serde(flatten)]
    pub scores: Scores,
    /// Accuracy on pictures that the threshold was not chosen on: mean of both ways.
    pub held_out: f64,
    /// How many pictures of each kind it gave which values.
    pub histogram: Histogram,
}

/// A unit with what is uncertain about it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BestUnit {
    /// The unit.
    #[serde(flatten)]
    pub unit: UnitScores,
    /// Central 95 % of the accuracy at its threshold over draws of pictures, within positives and negatives.
    pub accuracy_interval: Option<[f64; 2]>,
    /// The same of the area under the curve.
    pub auc_interval: Option<[f64; 2]>,
}

/// The best of many units, and how good the best would be by chance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Best {
    /// Which units.
    #[serde(flatten)]
    pub group: Group,
    /// Units that it is the best of.
    pub units: usize,
    /// By the paper's rule, the best first.
    pub best: Vec<BestUnit>,
    /// Accuracy if unit and threshold are chosen on one half of the pictures and tested on the other: mean of both ways.
    pub held_out: f64,
    /// How good the best is if labels are shuffled.
    pub chance: Option<Chance>,
}

/// The accuracy of the best unit over shuffled labels.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Chance {
    /// Its mean.
    pub mean: f64,
    /// Its 95th percentile.
    pub percentile_95: f64,
    /// Mean less the accuracy of always giving the commoner answer: by how much the best of so many units flatters where there is
    /// nothing to be found.
    pub optimism: f64,
    /// Share of shuffles, the true labels counted as one, in which the best is at least as good as with the true labels.
    pub p_value: f64,
}

/// What came out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evaluation {
    /// Pictures that show the thing.
    pub positives: usize,
    /// Pictures that do not.
    pub negatives: usize,
    /// Accuracy of always answering "no".
    pub always_no: f64,
    /// How it was tested.
    pub settings: Settings,
    /// For each group, in the order asked for.
    pub groups: Vec<Best>,
    /// Every unit, group after group.
    pub units: Vec<UnitScores>,
}

/// Units for which intervals are drawn in each group.
const BEST: usize = 10;

/// What is kept of a unit until the best are known.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Tested {
    scores: UnitScores,
    halves: [Half; 2],
}

/// What came out for some units, which were tested together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Part {
    tested: Vec<Tested>,
    /// For each group the best accuracy of these units with each shuffle of the labels.
    shuffled: Vec<Vec<f64>>,
}

/// Where parts are kept, so that a test that was interrupted goes on.
pub trait Parts {
    /// The part of these units, by their numbers, if it was kept.
    fn get(&mut self, units: &Range<usize>) -> Option<Part>;

    /// Keeps a part.
    ///
    /// # Errors
    /// It cannot be written.
    fn put(&mut self, units: Range<usize>, part: &Part) -> Result<()>;
}

/// Nothing is kept.
impl Parts for () {
    fn get(&mut self, _: &Range<usize>) -> Option<Part> {
        None
    }

    fn put(&mut self, _: Range<usize>, _: &Part) -> Result<()> {
        Ok(())
    }
}

/// Most units of a part: what an interruption may cost.
const TOGETHER: usize = 8192;

/// Tests every unit of `groups` on the pictures of `sets`, of which `positive` says in order what they show. Parts that were kept are
/// not tested again.
///
/// # Errors
/// A part cannot be kept.
///
/// # Panics
/// If there is no positive or no negative picture in either half, or not a label for each picture.
pub fn evaluate(
    network: &Network,
    sets: &[Shown],
    positive: &[bool],
    groups: &[Group],
    settings: Settings,
    progress: &Progress,
    parts: &mut dyn Parts,
) -> Result<Evaluation> {
    let pictures = positive.len();
    let shown = sets.iter().map(|set| set.pictures.len()).sum::<usize>();
    assert_eq!(shown, pictures, "a label for each picture");
    let probes: Vec<Probe> = groups.iter().flat_map(|group| group.probes(network)).collect();
    let first = halves(positive, settings.seed);
    let shuffles = shuffles(positive, settings);

    let at_once = (settings.memory / (4 * pictures as u64).max(1)).clamp(1, TOGETHER as u64) as usize;
    let mut all = Part { tested: Vec::new(), shuffled: vec![vec![0.0; shuffles.len()]; groups.len()] };
    for number in (0..probes.len()).step_by(at_once) {
        let range = number..probes.len().min(number + at_once);
        let part = match parts.get(&range) {
            Some(part) => part,
            None => {
                let probes = &probes[range.clone()];
                let part = test(network, sets, probes, groups, (positive, &first, &shuffles), progress);
                parts.put(range, &part)?;
                part
            }
        };
        all.tested.extend(part.tested);
        for (best, of_part) in all.shuffled.iter_mut().zip(part.shuffled) {
            best.iter_mut().zip(of_part).for_each(|(best, new)| *best = best.max(new));
        }
    }
    let Part { tested, shuffled } = all;

    // The best of each group, read once more for what is too much to keep of all.
    let of_group = |&Group { stage, kind }: &Group| -> Vec<&Tested> {
        let is_here =
            |tested: &&Tested| tested.scores.probe.stage == stage && tested.scores.probe.kind == kind;
        let mut here: Vec<&Tested> = tested.iter().filter(is_here).collect();
        // Of equally good ones the first.
        let accuracy = |tested: &Tested| tested.scores.scores.paper.accuracy;
        here.sort_by(|a, b| accuracy(b).total_cmp(&accuracy(a)));
        here
    };
    let ranked: Vec<Vec<&Tested>> = groups.iter().map(of_group).collect();
    let best: Vec<UnitScores> =
        ranked.iter().flat_map(|here| here.iter().take(BEST)).map(|tested| tested.scores).collect();
    let mut best = with_intervals(network, sets, &best, positive, settings, progress).into_iter();

    let positives = positive.iter().filter(|positive| **positive).count();
    let commoner = positives.max(pictures - positives) as f64 / pictures as f64;
    let summary = |((&group, here), shuffled): ((&Group, &Vec<&Tested>), &Vec<f64>)| {
        let way = |way: usize| {
            let better = |a: Half, b: Half| if b.chosen.accuracy > a.chosen.accuracy { b } else { a };
            here.iter().map(|tested| tested.halves[way]).reduce(better).expect("a group has units").held_out
        };
        Best {
            group,
            units: here.len(),
            best: best.by_ref().take(BEST.min(here.len())).collect(),
            held_out: 0.5 * (way(0) + way(1)),
            chance: chance(here[0].scores.scores.paper.accuracy, shuffled, commoner),
        }
    };
    let summaries = groups.iter().zip(&ranked).zip(&shuffled).map(summary).collect();
    Ok(Evaluation {
        positives,
        negatives: pictures - positives,
        always_no: (pictures - positives) as f64 / pictures as f64,
        settings,
        groups: summaries,
        units: tested.iter().map(|tested| tested.scores).collect(),
    })
}

/// Tests some units.
fn test(
    network: &Network,
    sets: &[Shown],
    probes: &[Probe],
    groups: &[Group],
    (positive, first, shuffles): (&[bool], &[bool], &[Vec<u32>]),
    progress: &Progress,
) -> Part {
    progress.begin("pictures", positive.len());
    let responses = Responses::new(network, sets, probes, |count| progress.add(count));
    progress.begin("units", probes.len());
    let of_unit = |values: &mut Vec<f32>, number: usize| {
        responses.of(number, values);
        let ranked = Ranked::new(values, positive);
        let (scores, halves) = (ranked.scores(), Half::both(&ranked, first));
        let binned = Binned::new(&ranked);
        let shuffled: Vec<f64> = shuffles.iter().map(|labels| binned.accuracy(labels)).collect();
        progress.add(1);
        let held_out = 0.5 * (halves[0].held_out + halves[1].held_out);
        let histogram = ranked.histogram();
        (
            Tested { scores: UnitScores { probe: probes[number], scores, held_out, histogram }, halves },
            shuffled,
        )
    };
    let all: Vec<(Tested, Vec<f64>)> =
        (0..probes.len()).into_par_iter().map_init(Vec::new, of_unit).collect();
    let of_group = |group: &Group| {
        let here = all.iter().filter(|(tested, _)| {
            let Probe { stage, kind, .. } = tested.scores.probe;
            *group == Group { stage, kind }
        });
        here.fold(vec![0.0; shuffles.len()], |mut best: Vec<f64>, (_, shuffled)| {
            best.iter_mut().zip(shuffled).for_each(|(best, new)| *best = best.max(*new));
            best
        })
    };
    let shuffled = groups.iter().map(of_group).collect();
    Part { tested: all.into_iter().map(|(tested, _)| tested).collect(), shuffled }
}

/// Which pictures are in the first half: half of the positives and half of the negatives, by chance.
pub(super) fn halves(positive: &[bool], seed: u64) -> Vec<bool> {
    let mut first = vec![false; positive.len()];
    for (index, class) in [true, false].into_iter().enumerate() {
        let mut members: Vec<usize> = (0..positive.len()).filter(|&n| positive[n] == class).collect();
        assert!(members.len() > 1, "each half needs both kinds of pictures");
        members.shuffle(&mut rng::stream(seed, "halves", index as u64));
        members[..members.len() / 2].iter().for_each(|&n| first[n] = true);
    }
    first
}

/// Numbers of the pictures that are positive after each shuffle.
fn shuffles(positive: &[bool], settings: Settings) -> Vec<Vec<u32>> {
    let count = positive.iter().filter(|positive| **positive).count();
    let shuffle = |number: u64| {
        let mut rng = rng::stream(settings.seed, "permutation", number);
        let mut chosen = rand::seq::index::sample(&mut rng, positive.len(), count).into_vec();
        // In order, for the caches.
        chosen.sort_unstable();
        chosen.into_iter().map(|n| n as u32).collect()
    };
    (0..settings.permutations as u64).into_par_iter().map(shuffle).collect()
}

/// How good the best of some units is over the shuffles, and how often as good as `found`, with the true labels.
fn chance(found: f64, shuffled: &[f64], commoner: f64) -> Option<Chance> {
    let (count, mut best) = (shuffled.len(), shuffled.to_vec());
    best.sort_by(f64::total_cmp);
    (count > 0).then(|| {
        let mean = best.iter().sum::<f64>() / count as f64;
        let as_good = best.iter().filter(|&&best| best >= found).count();
        Chance {
            mean,
            percentile_95: quantile(&best, 0.95),
            optimism: mean - commoner,
            p_value: (1 + as_good) as f64 / (1 + count) as f64,
        }
    })
}

/// Adds intervals.
fn with_intervals(
    network: &Network,
    sets: &[Shown],
    units: &[UnitScores],
    positive: &[bool],
    settings: Settings,
    progress: &Progress,
) -> Vec<BestUnit> {
    let probes: Vec<Probe> = units.iter().map(|unit| unit.probe).collect();
    progress.begin("pictures", positive.len());
    let responses = Responses::new(network, sets, &probes, |count| progress.add(count));
    let rank = |values: &mut Vec<f32>, number: usize| {
        responses.of(number, values);
        Ranked::new(values, positive)
    };
    let ranked: Vec<Ranked> = (0..units.len()).into_par_iter().map_init(Vec::new, rank).collect();
    let classes =
        [true, false].map(|class| (0..positive.len()).filter(|&n| positive[n] == class).collect::<Vec<_>>());
    progress.begin("intervals", settings.bootstraps);
    // Accuracy and area under the curve of each unit, with each picture as often as it was drawn.
    let draw = |number: u64| -> Vec<[f64; 2]> {
        let mut rng = rng::stream(settings.seed, "bootstrap", number);
        let mut times = vec![0u32; positive.len()];
        for class in &classes {
            (0..class.len()).for_each(|_| times[class[rng.random_range(0..class.len())]] += 1);
        }
        let of = |(ranked, unit): (&Ranked, &UnitScores)| {
            let up_to = ranked.up_to(unit.scores.paper.threshold);
            let (mut right, mut area, mut below, mut place) = (0.0, 0.0, 0.0, 0);
            for group in ranked.groups() {
                let pictures = &ranked.pictures[place..][..group.len()];
                let [mut positives, mut negatives] = [0.0, 0.0];
                for (&picture, (_, positive)) in pictures.iter().zip(group) {
                    *(if *positive { &mut positives } else { &mut negatives }) +=
                        f64::from(times[picture as usize]);
                }
                area += positives * (below + 0.5 * negatives);
                below += negatives;
                right += if place < up_to { negatives } else { positives };
                place += group.len();
            }
            [right / positive.len() as f64, area / (classes[0].len() * classes[1].len()) as f64]
        };
        let drawn = ranked.iter().zip(units).map(of).collect();
        progress.add(1);
        drawn
    };
    let drawn: Vec<Vec<[f64; 2]>> = (0..settings.bootstraps as u64).into_par_iter().map(draw).collect();
    let interval = |unit: usize, which: usize| {
        let mut values: Vec<f64> = drawn.iter().map(|units| units[unit][which]).collect();
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then(|| [0.025, 0.975].map(|share| quantile(&values, share)))
    };
    let best = |(number, unit): (usize, &UnitScores)| BestUnit {
        unit: *unit,
        accuracy_interval: interval(number, 0),
        auc_interval: interval(number, 1),
    };
    units.iter().enumerate().map(best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use crate::dataset::Dataset;
    use crate::network::Weights;
    use crate::network::preprocess::{Inputs, Transform, Whitening};
    use std::collections::HashMap;

    /// Parts as files have them.
    struct Kept(HashMap<Range<usize>, String>);

    impl Parts for Kept {
        fn get(&mut self, units: &Range<usize>) -> Option<Part> {
            self.0.get(units).map(|text| serde_json::from_str(text).unwrap())
        }

        fn put(&mut self, units: Range<usize>, part: &Part) -> Result<()> {
            assert!(self.0.insert(units, serde_json::to_string(part).unwrap()).is_none());
            Ok(())
        }
    }

    /// Pictures of noise, half of them with a bright left half; the first filter of the network sums that half.
    #[test]
    fn a_planted_unit_is_found_whatever_memory_and_threads_there_are_and_chance_is_told_apart() {
        let text = "[input]\nheight = 8\nwidth = 8\npreprocess = \"none\"\n[[stages]]\nmaps = 9\nfield = 8\npool = 1\nlcn = 0\n\
                    [training]\nsteps = [1]\n";
        let network = Network::new(&RunConfig::parse(text, &[]).unwrap(), 2).unwrap();
        let planted = (0..64).map(|tap| if tap % 8 < 4 { 0.02 } else { 0.0 });
        let others = network.stages[0].weights(Weights::Encoder).into_iter().skip(64);
        network.stages[0].set_weights(Weights::Encoder, 0, planted.chain(others));
        let mut rng = rng::stream(1, "evaluate", 0);
        let positive: Vec<bool> = (0..401).map(|n| n % 3 == 0).collect();
        let pixel = |positive: bool, at: usize, rng: &mut rng::ChaCha8Rng| {
            rng.random_range(0..156) + if positive && at % 8 < 4 { 60 } else { 0 }
        };
        let pixels: Vec<u8> = positive
            .iter()
            .flat_map(|&p| (0..64).map(move |at| (p, at)))
            .map(|(p, at)| pixel(p, at, &mut rng))
            .collect();
        let dataset = Dataset::from_pixels(network.input, pixels);
        let whitening = Whitening { shape: network.input, transform: Transform::None };
        let inputs = Inputs::new(&dataset, &whitening, usize::MAX);
        // In two sets, the second in another order.
        let (one, two): (Vec<usize>, Vec<usize>) = ((0..200).collect(), (200..401).rev().collect());
        let sets = [&one, &two].map(|pictures| Shown { inputs: &inputs, pictures });
        let labels: Vec<bool> = one.iter().chain(&two).map(|&n| positive[n]).collect();
        let groups = [Group { stage: 0, kind: Kind::Y }, Group { stage: 0, kind: Kind::A }];
        let run = |memory, threads| {
            let settings = Settings { permutations: 50, bootstraps: 60, seed: 5, memory };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut parts = Kept(HashMap::new());
            let evaluate = |parts: &mut Kept| {
                evaluate(&network, &sets, &labels, &groups, settings, &Progress::none(), parts).unwrap()
            };
            pool.install(|| {
                let found = evaluate(&mut parts);
                // Interrupted after the first part, it goes on to the same.
                parts.0.retain(|units, _| units.start == 0);
                let again = evaluate(&mut parts);
                assert_eq!(serde_json::to_string(&again).unwrap(), serde_json::to_string(&found).unwrap());
                found
            })
        };
        let found = run(1 << 30, 1);
        let json = |evaluation: &Evaluation| serde_json::to_string(evaluation).unwrap();
        assert_eq!(json(&found), json(&run(4 * 401 * 5, 3)));
        assert_eq!((found.positives, found.negatives, found.units.len()), (134, 267, 18));
        for best in &found.groups {
            let unit = &best.best[0];
            assert_eq!(unit.unit.probe.unit.map, 0);
            assert!(unit.unit.scores.paper.accuracy > 0.97 && best.held_out > 0.95, "{best:?}");
            let [low, high] = unit.accuracy_interval.unwrap();
            assert!(low <= unit.unit.scores.paper.accuracy && unit.unit.scores.paper.accuracy <= high);
            let [low, high] = unit.auc_interval.unwrap();
            assert!(low > 0.9 && low <= unit.unit.scores.auc && unit.unit.scores.auc <= high);
            assert_eq!(unit.unit.histogram[0].iter().sum::<u32>(), 134);
            let chance = best.chance.unwrap();
            assert!(
                chance.p_value <= 1.0 / 51.0 + 1e-9 && chance.optimism > 0.0 && chance.mean < 0.75,
                "{chance:?}"
            );
        }
        // A unit that is no detector is as good on the other half as always saying "no", or a little worse.
        let other = &found.units[3];
        assert!(other.held_out < found.always_no + 0.03, "{other:?}");
    }
}
