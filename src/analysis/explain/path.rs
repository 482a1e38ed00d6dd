//! Integrals of a unit's gradient along the straight way from a baseline to what it answered.
//!
//! A unit's value has kinks, and near a baseline of 0 it changes fast: `h = sqrt(ε + Σ a²)`, and normalisation that does not see
//! contrast. So the way is cut where it bends. The value is known at both ends of a piece, and what the integral over the piece misses
//! is therefore known too: a piece that misses more than its share is halved.

use super::Completeness;
use crate::analysis::responses::Probe;
use crate::network::{Network, Workspace};

/// Gauss-Legendre quadrature with 4 points over [0, 1]: places and weights.
const NODES: [(f64, f64); 4] = [
    (0.069_431_844_202_973_71, 0.173_927_422_568_726_9),
    (0.330_009_478_207_571_9, 0.326_072_577_431_273_1),
    (0.669_990_521_792_428_1, 0.326_072_577_431_273_1),
    (0.930_568_155_797_026_3, 0.173_927_422_568_726_9),
];

/// Pieces looked at together; each takes a lane for every point, and one for its middle.
const PIECES: usize = 9;
const LANES: usize = PIECES * (NODES.len() + 1);

/// Pieces at the start.
const FIRST: usize = 16;

/// Once so many gradients were taken, no piece is halved any more.
const MOST: usize = 20_000;

/// What values are off by rounding, as a share of them: no piece is asked to be better.
const ROUNDING: f64 = 1e-6;

/// What the sum may miss of the difference before everything is done again more finely, and how often that is tried.
const MISSED: f64 = 0.003;
const TRIES: i32 = 4;

/// Parts of the difference between two answers.
pub struct Integral {
    /// For each value that was moved, in the order of maps, `[row, column, channel]`.
    pub parts: Vec<f64>,
    /// The unit's value at the end of the way.
    pub value: f64,
    /// And at its beginning.
    pub baseline_value: f64,
    evaluations: usize,
}

impl Integral {
    /// What the parts add up to.
    pub fn completeness(&self) -> Completeness {
        let (sum, difference) = (self.parts.iter().sum::<f64>(), self.value - self.baseline_value);
        let gap = if difference == 0.0 { sum.abs() } else { ((sum - difference) / difference).abs() };
        Completeness { sum, difference, gap, evaluations: self.evaluations }
    }
}

/// A part of the way.
#[derive(Clone, Copy)]
struct Piece {
    from: f64,
    to: f64,
    /// The unit's value at both ends.
    values: [f64; 2],
}

/// Integrated gradients of a unit with respect to what stage `first` (from 0) takes, on the straight way from one to another.
pub fn integrate(network: &Network, first: usize, probe: Probe, from: &[f32], to: &[f32]) -> Integral {
    let mut way = Way { network, work: network.workspace(LANES), first, probe, from, to, evaluations: 0 };
    let ends: Vec<f64> = (0..=FIRST).map(|n| n as f64 / FIRST as f64).collect();
    let values = way.values(&ends);
    let [baseline_value, value] = [values[0], values[FIRST]];
    let mut found = Vec::new();
    for attempt in 0..TRIES {
        let tolerance = 1e-3 * 0.1f64.powi(attempt);
        found = way.parts(&ends, &values, tolerance);
        let missed = found.iter().sum::<f64>() - (value - baseline_value);
        if missed.abs() <= MISSED * (value - baseline_value).abs() {
            break;
        }
    }
    Integral { parts: found, value, baseline_value, evaluations: way.evaluations }
}

/// The gradient of a unit with respect to a picture, in the order of maps.
pub fn gradient(network: &Network, probe: Probe, picture: &[f32]) -> Vec<f32> {
    let mut work = network.workspace(1);
    work.start(1);
    load(&mut work, 0, 0, picture.iter().copied());
    network.forward_to(&mut work, probe.stage, probe.kind);
    network.input_gradient(&mut work, probe.stage, probe.kind, &[probe.unit]);
    work.input_gradient.iter().step_by(work.lanes).copied().collect()
}

/// A stage's outputs y for some pictures, all in the order of maps.
pub fn outputs<const N: usize>(network: &Network, stage: usize, pictures: [&[f32]; N]) -> [Vec<f32>; N] {
    let mut work = network.workspace(N);
    work.start(N);
    for (lane, picture) in pictures.iter().enumerate() {
        load(&mut work, 0, lane, picture.iter().copied());
    }
    network.forward(&mut work, stage);
    std::array::from_fn(|lane| work.stages[stage].y.iter().skip(lane).step_by(work.lanes).copied().collect())
}

/// Puts values in the order of maps into a lane of what a stage takes.
fn load(work: &mut Workspace, stage: usize, lane: usize, values: impl Iterator<Item = f32>) {
    let lanes = work.lanes;
    let places = work.input_of(stage).iter_mut().skip(lane).step_by(lanes);
    places.zip(values).for_each(|(place, value)| *place = value);
}

/// The straight way, and memory for looking at it.
struct Way<'a> {
    network: &'a Network,
    work: Workspace,
    first: usize,
    probe: Probe,
    from: &'a [f32],
    to: &'a [f32],
    evaluations: usize,
}

impl Way<'_> {
    /// The unit's values at some places of the way, each from 0 to 1, for which the network is run forwards.
    fn forward(&mut self, places: &[f64]) -> Vec<f64> {
        let Probe { stage, kind, unit } = self.probe;
        self.work.pictures = places.len();
        for (lane, &place) in places.iter().enumerate() {
            let between = self
                .from
                .iter()
                .zip(self.to)
                .map(|(&from, &to)| (f64::from(from) + place * (f64::from(to) - f64::from(from))) as f32);
            load(&mut self.work, self.first, lane, between);
        }
        self.network.forward_from(&mut self.work, self.first, stage, kind);
        self.evaluations += places.len();
        let values = self.work.unit_values(self.network, stage, kind, unit);
        values.iter().map(|&value| f64::from(value)).collect()
    }

    fn values(&mut self, places: &[f64]) -> Vec<f64> {
        places.chunks(LANES).flat_map(|some| self.forward(some)).collect()
    }

    /// The parts, where a piece may miss `tolerance` of what the value does on it, and of the whole in proportion to its length.
    fn parts(&mut self, ends: &[f64], values: &[f64], tolerance: f64) -> Vec<f64> {
        let scale = values.windows(2).map(|pair| (pair[1] - pair[0]).abs()).sum::<f64>();
        let piece = |n: usize| Piece { from: ends[n], to: ends[n + 1], values: [values[n], values[n + 1]] };
        // The last is taken first, so in the order of the way.
        let mut left: Vec<Piece> = (0..ends.len() - 1).rev().map(piece).collect();
        let mut parts = vec![0.0; self.from.len()];
        let before = self.evaluations;
        while !left.is_empty() {
            let some = left.split_off(left.len().saturating_sub(PIECES));
            let places: Vec<f64> = some.iter().flat_map(|piece| piece.places()).collect();
            let values = self.forward(&places);
            let units = vec![self.probe.unit; places.len()];
            self.network.gradient_to(&mut self.work, self.first, self.probe.stage, self.probe.kind, &units);
            let mut next = Vec::new();
            for (number, piece) in some.iter().enumerate() {
                let lane = number * (NODES.len() + 1);
                let along = self.along(lane, piece.to - piece.from);
                let rise = piece.values[1] - piece.values[0];
                let missed = (along.iter().sum::<f64>() - rise).abs();
                let rounding = ROUNDING * piece.values[0].abs().max(piece.values[1].abs());
                let allowed = tolerance * (rise.abs() + scale * (piece.to - piece.from)) + rounding;
                if missed <= allowed || self.evaluations - before >= MOST {
                    parts.iter_mut().zip(along).for_each(|(part, here)| *part += here);
                } else {
                    next.extend(piece.halves(values[lane + NODES.len()]));
                }
            }
            left.extend(next);
        }
        parts
    }

    /// The parts on a piece of this length whose points begin at a lane.
    fn along(&self, lane: usize, length: f64) -> Vec<f64> {
        let lanes = self.work.lanes;
        let gradients = self.work.input_gradient_of(self.first).chunks_exact(lanes);
        let way = self.from.iter().zip(self.to).map(|(&from, &to)| f64::from(to) - f64::from(from));
        gradients
            .zip(way)
            .map(|(lanes, way)| {
                let mean: f64 =
                    NODES.iter().zip(&lanes[lane..]).map(|((_, weight), g)| weight * f64::from(*g)).sum();
                mean * way * length
            })
            .collect()
    }
}

impl Piece {
    /// Where it is looked at: the points of the quadrature, and its middle.
    fn places(&self) -> impl Iterator<Item = f64> + use<> {
        let Piece { from, to, .. } = *self;
        NODES.into_iter().map(|(place, _)| place).chain([0.5]).map(move |place| from + place * (to - from))
    }

    fn halves(&self, middle_value: f64) -> [Piece; 2] {
        let middle = 0.5 * (self.from + self.to);
        let second = Piece { from: middle, values: [middle_value, self.values[1]], ..*self };
        [second, Piece { to: middle, values: [self.values[0], middle_value], ..*self }]
    }
}
