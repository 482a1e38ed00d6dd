//! Which of many detectors is the best?

use std::ops::Range;

use rayon::prelude::*;

use crate::analysis::Progress;
use crate::analysis::detector::{Half, Ranked, Scores};
use crate::analysis::evaluate::Group;
use crate::analysis::responses::{Probe, Responses, Shown};
use crate::geometry::Kind;
use crate::network::Network;

/// The best of the detectors seen so far.
#[derive(Debug, Clone)]
pub struct Standing {
    /// How many.
    pub count: usize,
    /// Number of the best by the paper's rule, and its scores.
    pub best: (usize, Scores),
    /// The best accuracy with the sign turned.
    pub flipped: f64,
    /// The best on each half, and what it is worth on the other.
    halves: [Half; 2],
}

impl Standing {
    /// Of one detector.
    fn of(number: usize, values: &[f32], test: &Test) -> Standing {
        let ranked = Ranked::new(values, test.positive);
        let scores = ranked.scores();
        let halves = Half::both(&ranked, &test.first);
        Standing { count: 1, best: (number, scores), flipped: scores.flipped.accuracy, halves }
    }

    /// Of equally good ones the first.
    fn and(self, other: Standing) -> Standing {
        let accuracy = |standing: &Standing| standing.best.1.paper.accuracy;
        let by = accuracy(&other).total_cmp(&accuracy(&self)).then(self.best.0.cmp(&other.best.0));
        let better = |a: Half, b: Half| if b.chosen.accuracy > a.chosen.accuracy { b } else { a };
        Standing {
            count: self.count + other.count,
            best: if by.is_gt() { other.best } else { self.best },
            flipped: self.flipped.max(other.flipped),
            halves: [0, 1].map(|way| better(self.halves[way], other.halves[way])),
        }
    }

    /// Accuracy if detector and threshold are chosen on one half and tested on the other: mean of both ways.
    pub fn held_out(&self) -> f64 {
        0.5 * (self.halves[0].held_out + self.halves[1].held_out)
    }
}

/// What detectors are tested on.
pub struct Test<'a> {
    /// What each picture shows.
    pub positive: &'a [bool],
    /// Which pictures are in the first half.
    pub first: Vec<bool>,
    /// Most bytes of values held at once.
    pub memory: u64,
    /// Told of what is done.
    pub progress: &'a Progress,
}

impl Test<'_> {
    /// Detectors of which `bytes` are held for each at a time, beside their values.
    fn at_once(&self, bytes: usize) -> usize {
        (self.memory / (4 * self.positive.len() + bytes) as u64).max(1) as usize
    }

    /// The best of `count` detectors, numbered from `first`.
    fn best(&self, responses: &Responses, first: usize, count: usize) -> Standing {
        self.progress.begin("detectors", count);
        let one = |values: &mut Vec<f32>, number: usize| {
            responses.of(number, values);
            self.progress.add(1);
            Standing::of(first + number, values, self)
        };
        let all: Vec<Standing> = (0..count).into_par_iter().map_init(Vec::new, one).collect();
        all.into_iter().reduce(Standing::and).expect("at least one detector")
    }

    /// The best of `count` detectors, each of which takes so many bytes beside its values. Of a range of them `detectors` makes
    /// what gives their values for pictures, one a row: `[detector, picture]`.
    pub fn best_of<F: Fn(&[f32]) -> Vec<f32> + Sync>(
        &self,
        count: usize,
        bytes: usize,
        shown: &[Shown],
        detectors: impl Fn(Range<usize>) -> F,
    ) -> Standing {
        let at_once = self.at_once(bytes);
        let of_chunk = |first: usize| {
            let chunk = first..count.min(first + at_once);
            let values = detectors(chunk.clone());
            self.progress.begin("pictures", self.positive.len());
            let responses = Responses::of_vectors(shown, values, |count| self.progress.add(count));
            self.best(&responses, first, chunk.len())
        };
        (0..count).step_by(at_once).map(of_chunk).reduce(Standing::and).expect("at least one detector")
    }

    /// The best unit of a stage, by the better of some of its values.
    pub fn best_unit(
        &self,
        network: &Network,
        shown: &[Shown],
        stage: usize,
        kinds: &[Kind],
    ) -> (Standing, Probe) {
        let groups = kinds.iter().map(|&kind| Group { stage, kind });
        let probes: Vec<Probe> = groups.flat_map(|group| group.probes(network)).collect();
        let mut first = 0;
        let of_chunk = |probes: &[Probe]| {
            self.progress.begin("pictures", self.positive.len());
            let responses = Responses::new(network, shown, probes, |count| self.progress.add(count));
            let standing = self.best(&responses, first, probes.len());
            first += probes.len();
            standing
        };
        let standing =
            probes.chunks(self.at_once(0)).map(of_chunk).reduce(Standing::and).expect("a stage has units");
        let probe = probes[standing.best.0];
        // Values of one unit are not several detectors.
        let standing = Standing { count: network.units(stage, Kind::Y).len(), ..standing };
        (standing, probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use rand::Rng;

    #[test]
    fn the_best_does_not_depend_on_the_order_and_of_equals_the_first_wins() {
        let mut rng = rng::stream(6, "contest", 0);
        let positive: Vec<bool> = (0..40).map(|n| n % 3 == 0).collect();
        let first: Vec<bool> = (0..40).map(|n| n % 2 == 0).collect();
        let progress = Progress::none();
        let test = Test { positive: &positive, first, memory: 1, progress: &progress };
        let mut all: Vec<Vec<f32>> =
            (0..30).map(|_| (0..40).map(|_| rng.random_range(0.0..1.0)).collect()).collect();
        all.extend(all.clone());
        let each = |numbers: &mut dyn Iterator<Item = usize>| {
            numbers.map(|number| Standing::of(number, &all[number], &test)).reduce(Standing::and).unwrap()
        };
        let (there, back) = (each(&mut (0..60)), each(&mut (0..60).rev()));
        let accuracy = |number: usize| Ranked::new(&all[number], &positive).paper().accuracy;
        let most = (0..60).map(accuracy).fold(0.0, f64::max);
        assert_eq!((there.count, there.best.1.paper.accuracy), (60, most));
        assert!(there.best.0 < 30 && there.best.0 == back.best.0 && there.flipped == back.flipped);
        let held_out = (0..60).map(|number| Half::both(&Ranked::new(&all[number], &positive), &test.first));
        let best =
            |way: usize| held_out.clone().map(|halves| halves[way].chosen.accuracy).fold(0.0, f64::max);
        assert_eq!([0, 1].map(|way| there.halves[way].chosen.accuracy), [best(0), best(1)]);
    }
}
