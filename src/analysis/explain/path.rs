//! Integrals of a unit's gradient along the straight way from a baseline to what it answered.
//!
//! A unit's value has kinks, and near a baseline of 0 it changes fast: `h = sqrt(ε + Σ a²)`, and normalisation that does not see
//! contrast. So the way is cut where it bends. The value is known at both ends of a piece, and what the integral over the piece misses
//! is therefore known too: those that miss most are halved, until all together miss little.

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
const PIECES: usize = 16;
const LANES: usize = PIECES * (NODES.len() + 1);

/// When no piece is halved any more.
#[derive(Clone, Copy)]
pub struct Effort {
    /// All pieces together miss so much of the difference.
    missed: f64,
    /// Or so many gradients were taken.
    most: usize,
}

/// For what is told.
pub const EXACT: Effort = Effort { missed: 0.002, most: 20_000 };

/// For what is only compared by rank: random weights give small differences, and kinks where they are.
pub const ROUGH: Effort = Effort { missed: 0.02, most: 1_000 };

/// Nor is a shorter one: rounding is all that it could miss, or a jump.
const SHORTEST: f64 = 1e-6;

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

/// A piece of the way.
#[derive(Clone, Copy)]
struct Piece {
    from: f64,
    to: f64,
    /// The unit's value at both ends.
    values: [f64; 2],
}

/// What is known of a piece once it has been looked at.
#[derive(Clone, Copy)]
struct Seen {
    piece: Piece,
    /// How far the integral is from the rise.
    missed: f64,
    /// The unit's value in the middle.
    middle_value: f64,
}

/// Integrated gradients of a unit with respect to what stage `first` (from 0) takes, on the straight way from one to another.
pub fn integrate(
    network: &Network,
    first: usize,
    probe: Probe,
    (from, to): (&[f32], &[f32]),
    effort: Effort,
) -> Integral {
    let mut way = Way { network, work: network.workspace(LANES), first, probe, from, to, evaluations: 0 };
    let ends: Vec<f64> = (0..=PIECES).map(|n| n as f64 / PIECES as f64).collect();
    let values = way.forward(&ends);
    let pieces = way.cut(&ends, &values, effort);
    let parts = way.parts(&pieces);
    Integral { parts, value: values[PIECES], baseline_value: values[0], evaluations: way.evaluations }
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

    /// Cuts the way at `ends`, where the unit has these values, and then where that misses most.
    fn cut(&mut self, ends: &[f64], values: &[f64], effort: Effort) -> Vec<Piece> {
        let whole = values[values.len() - 1] - values[0];
        let piece = |n: usize| Piece { from: ends[n], to: ends[n + 1], values: [values[n], values[n + 1]] };
        let mut seen = self.look(&(0..ends.len() - 1).map(piece).collect::<Vec<_>>());
        loop {
            let missed: f64 = seen.iter().map(|seen| seen.missed).sum();
            if missed <= effort.missed * whole.abs() || self.evaluations >= effort.most {
                break;
            }
            seen.sort_by(|a, b| a.missed.total_cmp(&b.missed));
            let worst = seen.iter().rev().filter(|seen| seen.piece.to - seen.piece.from > SHORTEST);
            let Some(least) = worst.take(PIECES / 2).last().map(|seen| seen.missed) else { break };
            let is_halved = |seen: &Seen| seen.missed >= least && seen.piece.to - seen.piece.from > SHORTEST;
            let halved: Vec<Piece> =
                seen.extract_if(.., |seen| is_halved(seen)).flat_map(|seen| seen.halves()).collect();
            seen.extend(halved.chunks(PIECES).flat_map(|some| self.look(some)));
        }
        seen.into_iter().map(|seen| seen.piece).collect()
    }

    /// Takes the gradient at the points of some pieces.
    fn backward(&mut self, pieces: &[Piece]) -> Vec<f64> {
        let places: Vec<f64> = pieces.iter().flat_map(|piece| piece.places()).collect();
        let values = self.forward(&places);
        let Probe { stage, kind, unit } = self.probe;
        self.network.gradient_to(&mut self.work, self.first, stage, kind, &vec![unit; places.len()]);
        values
    }

    fn look(&mut self, pieces: &[Piece]) -> Vec<Seen> {
        let values = self.backward(pieces);
        let of_piece = |(number, piece): (usize, &Piece)| {
            let lane = number * (NODES.len() + 1);
            let sum: f64 = self.along(lane, piece.to - piece.from).sum();
            let missed = (sum - (piece.values[1] - piece.values[0])).abs();
            Seen { piece: *piece, missed, middle_value: values[lane + NODES.len()] }
        };
        pieces.iter().enumerate().map(of_piece).collect()
    }

    /// What all pieces add.
    fn parts(&mut self, pieces: &[Piece]) -> Vec<f64> {
        let mut parts = vec![0.0; self.from.len()];
        for some in pieces.chunks(PIECES) {
            self.backward(some);
            for (number, piece) in some.iter().enumerate() {
                let along = self.along(number * (NODES.len() + 1), piece.to - piece.from);
                parts.iter_mut().zip(along).for_each(|(part, here)| *part += here);
            }
        }
        parts
    }

    /// The parts on a piece of this length whose points begin at a lane.
    fn along(&self, lane: usize, length: f64) -> impl Iterator<Item = f64> {
        let gradients = self.work.input_gradient_of(self.first).chunks_exact(self.work.lanes);
        let way = self.from.iter().zip(self.to).map(|(&from, &to)| f64::from(to) - f64::from(from));
        gradients.zip(way).map(move |(lanes, way)| {
            let nodes = NODES.iter().zip(&lanes[lane..]);
            nodes.map(|((_, weight), g)| weight * f64::from(*g)).sum::<f64>() * way * length
        })
    }
}

impl Piece {
    /// Where it is looked at: the points of the quadrature, and its middle.
    fn places(&self) -> impl Iterator<Item = f64> + use<> {
        let Piece { from, to, .. } = *self;
        NODES.into_iter().map(|(place, _)| place).chain([0.5]).map(move |place| from + place * (to - from))
    }
}

impl Seen {
    fn halves(&self) -> [Piece; 2] {
        let Seen { piece, middle_value, .. } = *self;
        let middle = 0.5 * (piece.from + piece.to);
        let first = Piece { to: middle, values: [piece.values[0], middle_value], ..piece };
        [first, Piece { from: middle, values: [middle_value, piece.values[1]], ..piece }]
    }
}
