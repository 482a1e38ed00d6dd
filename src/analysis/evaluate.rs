//! The detector test: how well does each unit tell pictures that show something from others (paper §4.2)?

use rand::Rng;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::detector::{Binned, Half, Ranked, Scores, THRESHOLDS};
use super::responses::{Probe, Responses, Shown};
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
    /// Each way.
    #[serde(skip)]
    halves: Option<[Half; 2]>,
}

/// A unit with what is uncertain about it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BestUnit {
    /// The unit.
    #[serde(flatten)]
    pub scores: UnitScores,
    /// Central 95 % of the accuracy at its threshold over draws of pictures, within positives and negatives.
    pub accuracy_interval: Option<[f64; 2]>,
    /// The same of the area under the curve.
    pub auc_interval: Option<[f64; 2]>,
    /// Positives and negatives between each two of the paper's thresholds.
    pub histogram: [Vec<usize>; 2],
}

/// The best of many units, and how good the best would be by chance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Best {
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
    pub groups: Vec<(Group, Best)>,
    /// Every unit, group after group.
    pub units: Vec<UnitScores>,
}

/// Units for which intervals are drawn in each group.
const BEST: usize = 10;

/// Tests every unit of `groups` on the pictures of `sets`, of which `positive` says in order what they show. `begin` is told of a new
/// part and how much there is to do, `add` of what is done.
///
/// # Panics
/// If there is no positive or no negative picture in either half, or not a label for each picture.
pub fn evaluate(
    network: &Network,
    sets: &[Shown],
    positive: &[bool],
    groups: &[Group],
    settings: Settings,
    begin: &dyn Fn(&str, usize),
    add: &(dyn Fn(usize) + Sync),
) -> Evaluation {
    let pictures = positive.len();
    assert_eq!(
        sets.iter().map(|set| set.pictures.len()).sum::<usize>(),
        pictures,
        "a label for each picture"
    );
    let probes: Vec<Probe> = groups
        .iter()
        .flat_map(|&Group { stage, kind }| {
            network.units(stage, kind).into_iter().map(move |unit| Probe { stage, kind, unit })
        })
        .collect();
    let first = halves(positive, settings.seed);
    let shuffles = shuffles(positive, settings);

    let at_once = (settings.memory / (4 * pictures as u64).max(1)).max(1) as usize;
    let (mut units, mut shuffled) = (Vec::new(), Vec::new());
    for probes in probes.chunks(at_once) {
        begin("pictures", pictures);
        let responses = Responses::new(network, sets, probes, add);
        begin("units", probes.len());
        let of_unit = |values: &mut Vec<f32>, number: usize| {
            responses.of(number, values);
            let scores = Ranked::new(values, positive).scores();
            let halves = Half::both(values, positive, &first);
            let binned = Binned::new(values);
            let by_chance: Vec<f64> = shuffles.iter().map(|labels| binned.accuracy(labels)).collect();
            add(1);
            let held_out = 0.5 * (halves[0].held_out + halves[1].held_out);
            (UnitScores { probe: probes[number], scores, held_out, halves: Some(halves) }, by_chance)
        };
        let done: Vec<_> = (0..probes.len()).into_par_iter().map_init(Vec::new, of_unit).collect();
        for (scores, by_chance) in done {
            units.push(scores);
            shuffled.push(by_chance);
        }
    }

    let positives = positive.iter().filter(|positive| **positive).count();
    let commoner = positives.max(pictures - positives) as f64 / pictures as f64;
    let of_group = |&group: &Group| {
        let is_here = |probe: &Probe| Group { stage: probe.stage, kind: probe.kind } == group;
        let here: Vec<usize> = (0..units.len()).filter(|&number| is_here(&units[number].probe)).collect();
        let mut ranked = here.clone();
        // Of equally good ones the first.
        ranked.sort_by(|&a, &b| units[b].scores.paper.accuracy.total_cmp(&units[a].scores.paper.accuracy));
        ranked.truncate(BEST);
        let chosen: Vec<Probe> = ranked.iter().map(|&number| units[number].probe).collect();
        begin("intervals", settings.bootstraps);
        let responses = Responses::new(network, sets, &chosen, |_| ());
        let best: Vec<UnitScores> = ranked.iter().map(|&number| units[number]).collect();
        let best = with_intervals(&best, &responses, positive, settings, add);
        let chance = chance(&here, &shuffled, commoner, best[0].scores.scores.paper.accuracy);
        let way = |way: usize| {
            let half = |number: &usize| units[*number].halves.expect("just made")[way];
            let better = |a: Half, b: Half| if b.chosen.accuracy > a.chosen.accuracy { b } else { a };
            here.iter().map(half).reduce(better).expect("a group has units").held_out
        };
        (group, Best { units: here.len(), best, held_out: 0.5 * (way(0) + way(1)), chance })
    };
    let groups = groups.iter().map(of_group).collect();
    let always_no = (pictures - positives) as f64 / pictures as f64;
    Evaluation { positives, negatives: pictures - positives, always_no, settings, groups, units }
}

/// Which pictures are in the first half: half of the positives and half of the negatives, by chance.
fn halves(positive: &[bool], seed: u64) -> Vec<bool> {
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

/// How good the best of `units` is over the shuffles, `[unit][shuffle]`.
fn chance(units: &[usize], shuffled: &[Vec<f64>], commoner: f64, found: f64) -> Option<Chance> {
    let count = shuffled[units[0]].len();
    let best = |shuffle: usize| units.iter().map(|&unit| shuffled[unit][shuffle]).fold(0.0, f64::max);
    let mut best: Vec<f64> = (0..count).map(best).collect();
    best.sort_by(f64::total_cmp);
    (count > 0).then(|| {
        let mean = best.iter().sum::<f64>() / count as f64;
        let as_good = best.iter().filter(|&&best| best >= found).count();
        Chance {
            mean,
            percentile_95: percentile(&best, 0.95),
            optimism: mean - commoner,
            p_value: (1 + as_good) as f64 / (1 + count) as f64,
        }
    })
}

/// Of sorted values, between neighbours in proportion.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// Adds intervals and histograms; `responses` holds the units' values.
fn with_intervals(
    units: &[UnitScores],
    responses: &Responses,
    positive: &[bool],
    settings: Settings,
    add: &(dyn Fn(usize) + Sync),
) -> Vec<BestUnit> {
    // Each unit's pictures from its least value, and how many of them are not above its threshold.
    struct Order {
        pictures: Vec<u32>,
        /// True where the value differs from the one before.
        new: Vec<bool>,
        below: usize,
        histogram: [Vec<usize>; 2],
    }
    let order = |(number, unit): (usize, &UnitScores)| {
        let mut values = Vec::new();
        responses.of(number, &mut values);
        let mut pictures: Vec<u32> = (0..values.len() as u32).collect();
        let value = |picture: u32| values[picture as usize];
        pictures.sort_unstable_by(|&a, &b| value(a).total_cmp(&value(b)));
        let new =
            (0..pictures.len()).map(|n| n == 0 || value(pictures[n]) != value(pictures[n - 1])).collect();
        let threshold = unit.scores.paper.threshold;
        let below = pictures.partition_point(|&picture| f64::from(value(picture)) <= threshold);
        let mut histogram = [vec![0; THRESHOLDS - 1], vec![0; THRESHOLDS - 1]];
        let (min, max) = (f64::from(unit.scores.min), f64::from(unit.scores.max));
        for (&value, &positive) in values.iter().zip(positive) {
            let place = (f64::from(value) - min) / (max - min).max(f64::MIN_POSITIVE);
            let bin = ((place * (THRESHOLDS - 1) as f64) as usize).min(THRESHOLDS - 2);
            histogram[usize::from(!positive)][bin] += 1;
        }
        Order { pictures, new, below, histogram }
    };
    let orders: Vec<Order> = units.iter().enumerate().map(order).collect();
    let classes =
        [true, false].map(|class| (0..positive.len()).filter(|&n| positive[n] == class).collect::<Vec<_>>());
    let draw = |number: u64| -> Vec<[f64; 2]> {
        let mut rng = rng::stream(settings.seed, "bootstrap", number);
        let mut times = vec![0u32; positive.len()];
        for class in &classes {
            (0..class.len()).for_each(|_| times[class[rng.random_range(0..class.len())]] += 1);
        }
        let of = |order: &Order| {
            let (mut right, mut area, mut below) = (0u64, 0.0, 0.0);
            // Of the group of equal values at hand.
            let (mut positives, mut negatives) = (0.0, 0.0);
            for (place, (&picture, &new)) in order.pictures.iter().zip(&order.new).enumerate() {
                let (times, positive) = (times[picture as usize], positive[picture as usize]);
                if new {
                    area += positives * (below + 0.5 * negatives);
                    below += negatives;
                    (positives, negatives) = (0.0, 0.0);
                }
                if positive {
                    positives += f64::from(times)
                } else {
                    negatives += f64::from(times)
                }
                right += u64::from(times) * u64::from(positive == (place >= order.below));
            }
            area += positives * (below + 0.5 * negatives);
            let pairs = (classes[0].len() * classes[1].len()) as f64;
            [right as f64 / order.pictures.len() as f64, area / pairs]
        };
        let drawn = orders.iter().map(of).collect();
        add(1);
        drawn
    };
    let drawn: Vec<Vec<[f64; 2]>> = (0..settings.bootstraps as u64).into_par_iter().map(draw).collect();
    let interval = |unit: usize, which: usize| {
        let mut values: Vec<f64> = drawn.iter().map(|units| units[unit][which]).collect();
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then(|| [0.025, 0.975].map(|share| percentile(&values, share)))
    };
    let best = |(number, (unit, order)): (usize, (&UnitScores, Order))| BestUnit {
        scores: *unit,
        accuracy_interval: interval(number, 0),
        auc_interval: interval(number, 1),
        histogram: order.histogram,
    };
    units.iter().zip(orders).enumerate().map(best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use crate::dataset::Dataset;
    use crate::network::Weights;
    use crate::network::preprocess::{Inputs, Transform, Whitening};

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
            pool.install(|| evaluate(&network, &sets, &labels, &groups, settings, &|_, _| (), &|_| ()))
        };
        let found = run(1 << 30, 1);
        let json = |evaluation: &Evaluation| serde_json::to_string(evaluation).unwrap();
        assert_eq!(json(&found), json(&run(4 * 401 * 5, 3)));
        assert_eq!((found.positives, found.negatives, found.units.len()), (134, 267, 18));
        for (_, best) in &found.groups {
            let unit = &best.best[0];
            assert_eq!(unit.scores.probe.unit.map, 0);
            assert!(unit.scores.scores.paper.accuracy > 0.97 && best.held_out > 0.95, "{best:?}");
            let [low, high] = unit.accuracy_interval.unwrap();
            assert!(low <= unit.scores.scores.paper.accuracy && unit.scores.scores.paper.accuracy <= high);
            let [low, high] = unit.auc_interval.unwrap();
            assert!(low > 0.9 && low <= unit.scores.scores.auc && unit.scores.scores.auc <= high);
            assert_eq!(unit.histogram[0].iter().sum::<usize>(), 134);
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
