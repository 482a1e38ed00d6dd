//! Searches for the picture each unit prefers (paper §4.4).
//!
//! A unit is a function from a picture to one number. The network stays fixed while we climb that function over the
//! sphere of pictures with one norm. A lane of the minibatch is a free slot, so many searches climb at once, those of one
//! position together: they share the part of the network that its units see ([`Crop`]).
//!
//! How to climb is in `climb`, what is moved and what is charged for in `view`.

mod climb;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;

use ndarray::{Array2, Array3};
use ndarray_rand::rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::geometry::Kind;
use crate::network::preprocess::Whitening;
use crate::network::{Crop, Network, Unit, Weights, Workspace};
use crate::rng;
use climb::{Climber, Limits, dot};
pub use climb::{Ended, Method};
use view::{Canvas, moves};
pub use view::{Parameters, View};

/// How to search.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Search {
    /// How to climb.
    pub method: Method,
    /// Most evaluations of a unit and its gradient in one search.
    pub evaluations: usize,
    /// A search has converged when the gradient along the unit sphere is this share of the value.
    pub tolerance: f64,
    /// Length of a step in radians: of the first, or of all for [`Method::FixedSteps`].
    pub step: f64,
    /// Norm of the pictures, as the network takes them.
    pub norm: f32,
    /// What is moved, and charged for.
    pub view: View,
}

impl Search {
    /// L-BFGS over the network's input, for pictures of this norm.
    pub fn new(norm: f32) -> Search {
        let view = View::default();
        Search { method: Method::Lbfgs, evaluations: 200, tolerance: 2e-3, step: 0.2, norm, view }
    }
}

/// Which way a unit is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sign {
    /// To its largest value.
    Positive,
    /// To its smallest.
    Negative,
}

impl Sign {
    /// 1 or -1.
    pub fn factor(self) -> f32 {
        if self == Sign::Positive { 1.0 } else { -1.0 }
    }
}

/// One search to be made.
#[derive(Debug, Clone)]
pub struct Request {
    /// The unit.
    pub unit: Unit,
    /// Which way.
    pub sign: Sign,
    /// Where to begin, `[channel, row, column]`, as the network takes pictures; its scale is ignored.
    pub start: Array3<f32>,
    /// Pictures that are found already, of the same norm, and how much of the unit's value a picture like one of them is charged.
    pub found: Vec<Array3<f32>>,
    /// See `found`: charged is this times the squared cosine to each.
    pub repulsion: f32,
}

impl Request {
    /// The search for the largest value from `start`.
    pub fn new(unit: Unit, start: Array3<f32>) -> Request {
        Request { unit, sign: Sign::Positive, start, found: Vec::new(), repulsion: 0.0 }
    }
}

/// A unit's preferred picture, as the search left it.
#[derive(Debug, Clone)]
pub struct Stimulus {
    /// The unit.
    pub unit: Unit,
    /// Which way it is driven.
    pub sign: Sign,
    /// The picture, `[channel, row, column]`, as the network takes it: after preprocessing. Zero where the unit does not see.
    pub image: Array3<f32>,
    /// Its pixels, if they are what was looked for; else see [`Whitening::unwhiten`].
    pub pixels: Option<Array3<f32>>,
    /// The unit's value for it.
    pub value: f32,
    /// The unit's value where the search began, at the same norm.
    pub start_value: f32,
    /// Evaluations of the unit and its gradient.
    pub evaluations: usize,
    /// Why the search ended.
    pub ended: Ended,
}

impl Stimulus {
    /// True if there was no gradient to climb.
    pub fn is_flat(&self) -> bool {
        self.ended == Ended::Flat
    }
}

/// Searches that climb side by side: enough lanes to fill the vectors, few enough for the caches.
const LANES: usize = 32;

/// Searches that a thread takes at once; as soon as one ends, the next of them gets its lane.
const PIECE: usize = 4 * LANES;

/// Maximises (or minimises) `f(x)` subject to `||x||₂ = norm` for each request of one stage; `whitening` made the network's input
/// from pixels. `progress` is told of every search done.
///
/// # Errors
/// A start that is zero everywhere, or not of the size of the network's input.
pub fn preferred_stimuli(
    network: &Network,
    whitening: &Whitening,
    (stage, kind): (usize, Kind),
    requests: &[Request],
    search: &Search,
    progress: impl Fn(usize) + Sync,
) -> Result<Vec<Stimulus>> {
    let input = network.input;
    for Request { start, .. } in requests {
        if start.dim() != (input.channels, input.rows, input.cols) {
            let problem =
                format!("a search from a picture of {:?}, the network takes {input:?}", start.dim());
            return Err(Error::Mismatch(problem));
        }
        if start.iter().all(|&x| x == 0.0) {
            let problem = "a search cannot start from a picture that is zero everywhere";
            return Err(Error::Mismatch(problem.into()));
        }
    }
    let mut positions: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (number, Request { unit, .. }) in requests.iter().enumerate() {
        positions.entry((unit.row, unit.col)).or_default().push(number);
    }
    let pieces: Vec<&[usize]> = positions.values().flat_map(|numbers| numbers.chunks(PIECE)).collect();
    let of_piece = |numbers: &&[usize]| {
        let unit = requests[numbers[0]].unit;
        let crop = Crop::new(network, stage, kind, unit.row, unit.col);
        let canvas = Canvas::new(search.view, whitening, &crop.picture);
        let moves = moves(&crop.picture, input.channels, search.view.moves);
        let piece = Piece { crop: &crop, canvas: &canvas, moves: &moves, stage, kind, search, requests };
        let found = piece.run(numbers);
        progress(numbers.len());
        numbers.iter().copied().zip(found).collect::<Vec<_>>()
    };
    let mut found: Vec<(usize, Stimulus)> = pieces.par_iter().flat_map_iter(of_piece).collect();
    found.sort_by_key(|(number, _)| *number);
    Ok(found.into_iter().map(|(_, stimulus)| stimulus).collect())
}

/// Searches of one position, on one thread.
struct Piece<'a> {
    crop: &'a Crop,
    canvas: &'a Canvas<'a>,
    /// See [`moves`]; one, which changes nothing, if only the unit's own value counts.
    moves: &'a [Vec<usize>],
    stage: usize,
    kind: Kind,
    search: &'a Search,
    requests: &'a [Request],
}

/// What the lanes' units answer.
struct Asked {
    /// Their values.
    values: Vec<f32>,
    /// What is climbed: the values, or their means over moves.
    means: Vec<f32>,
    /// Gradients of that, a row for each lane.
    gradient: Array2<f32>,
}

/// A search in its lane.
struct Lane<'a> {
    /// Its place in the piece.
    place: usize,
    request: &'a Request,
    /// What was found before, as the crop sees it.
    found: Vec<Vec<f32>>,
    climber: Climber,
    /// Value that a linear unit with the gradient at the start would reach: what charges are measured in.
    scale: f64,
    start_value: f32,
    /// The unit's value, its input and the pixels at the best point.
    best: (f32, Vec<f32>, Option<Vec<f32>>),
}

impl<'a> Piece<'a> {
    fn run(&self, numbers: &[usize]) -> Vec<Stimulus> {
        let mut done: Vec<Option<Stimulus>> = vec![None; numbers.len()];
        let mut waiting = numbers.iter().enumerate();
        let mut work = self.crop.network.workspace(LANES.min(numbers.len()));
        let mut lanes: Vec<Lane> = Vec::new();
        loop {
            while lanes.len() < work.lanes {
                let Some((place, &number)) = waiting.next() else { break };
                match self.begin(place, &self.requests[number]) {
                    Some(lane) => lanes.push(lane),
                    None => done[place] = Some(self.unseen(&self.requests[number])),
                }
            }
            if lanes.is_empty() {
                return done.into_iter().map(|found| found.expect("every search has ended")).collect();
            }
            self.advance(&mut lanes, &mut work);
            lanes.retain_mut(|lane| {
                let ended = lane.climber.ended.is_some();
                if ended {
                    done[lane.place] = Some(self.finish(lane));
                }
                !ended
            });
        }
    }

    /// A search that begins; none if the start is zero where the unit sees it.
    fn begin(&self, place: usize, request: &'a Request) -> Option<Lane<'a>> {
        let start = self.canvas.parameters_of(request.start.view());
        if dot(&start, &start) == 0.0 {
            return None;
        }
        let Search { method, evaluations, tolerance, step, .. } = *self.search;
        // Fixed steps are counted without the value at the start.
        let evaluations = evaluations + usize::from(method == Method::FixedSteps);
        let climber = Climber::new(method, Limits { evaluations, tolerance, step }, start);
        let found = request.found.iter().map(|picture| self.canvas.seen(picture.view())).collect();
        Some(Lane {
            place,
            request,
            found,
            climber,
            scale: 0.0,
            start_value: 0.0,
            best: (0.0, Vec::new(), None),
        })
    }

    /// The unit's values and gradients where the lanes want them, and each lane's next step.
    fn advance(&self, lanes: &mut [Lane], work: &mut Workspace) {
        let norm = f64::from(self.search.norm);
        let dims = lanes[0].climber.trial().len();
        let mut parameters = Array2::zeros((lanes.len(), dims));
        for (mut row, lane) in parameters.outer_iter_mut().zip(lanes.iter()) {
            row.iter_mut().zip(lane.climber.trial()).for_each(|(to, &from)| *to = from);
        }
        // `sizes[lane]` turns parameters into those of a picture of the wanted norm.
        let (mut input, mut pixels) = self.canvas.show(parameters);
        let sizes: Vec<f64> = input
            .outer_iter_mut()
            .map(|mut row| {
                let row = row.as_slice_mut().expect("a row");
                let size = norm / dot(row, row).sqrt().max(f64::MIN_POSITIVE);
                row.iter_mut().for_each(|x| *x *= size as f32);
                size
            })
            .collect();
        if let Some(pixels) = &mut pixels {
            let rows = pixels.outer_iter_mut().zip(&sizes);
            rows.for_each(|(mut row, &size)| row.iter_mut().for_each(|p| *p *= size as f32));
        }
        let Asked { values, means, mut gradient } = self.ask_moved(lanes, &input, work);

        let mut of_pixels = pixels.as_ref().map(|pixels| Array2::zeros(pixels.dim()));
        let mut told = Vec::with_capacity(lanes.len());
        for (number, lane) in lanes.iter_mut().enumerate() {
            let x = input.row(number);
            let x = x.as_slice().expect("a row");
            let mut row = gradient.row_mut(number);
            let g = row.as_slice_mut().expect("a row");
            let steep = norm * dot(g, g).sqrt();
            if lane.climber.evaluations == 0 {
                (lane.scale, lane.start_value) = (steep.max(f64::MIN_POSITIVE), values[number]);
            }
            let sign = f64::from(lane.request.sign.factor());
            let mut objective = sign * f64::from(means[number]) / lane.scale;
            g.iter_mut().for_each(|g| *g = (sign * f64::from(*g) / lane.scale) as f32);
            for found in &lane.found {
                let (repulsion, square) = (f64::from(lane.request.repulsion), norm * norm);
                let cosine = dot(x, found) / square;
                objective -= repulsion * cosine * cosine;
                let factor = (2.0 * repulsion * cosine / square) as f32;
                g.iter_mut().zip(found).for_each(|(g, found)| *g -= factor * found);
            }
            // What remains along the radius: of the unit, and of the charges for pixels.
            let mut radial = dot(g, x);
            let size = dot(g, g);
            if let (Some(pixels), Some(charged)) = (&pixels, &mut of_pixels) {
                let (p, mut charged) = (pixels.row(number), charged.row_mut(number));
                let (p, charged) = (p.as_slice().expect("a row"), charged.as_slice_mut().expect("a row"));
                objective -= self.canvas.charge(p, charged);
                radial += dot(charged, p);
            }
            let back = (radial / (norm * norm)) as f32;
            g.iter_mut().zip(x).for_each(|(g, x)| *g -= back * x);
            // What rounding leaves of a purely radial gradient is no direction.
            if steep == 0.0 || (of_pixels.is_none() && dot(g, g) < 1e-10 * size) {
                g.fill(0.0);
            }
            told.push(objective);
        }
        let mut gradient = self.canvas.back(gradient, of_pixels);
        for (number, (lane, objective)) in lanes.iter_mut().zip(told).enumerate() {
            let mut row = gradient.row_mut(number);
            let z = row.as_slice_mut().expect("a row");
            z.iter_mut().for_each(|z| *z *= sizes[number] as f32);
            if lane.climber.told(objective, z) {
                let pixels = pixels.as_ref().map(|pixels| pixels.row(number).to_vec());
                lane.best = (values[number], input.row(number).to_vec(), pixels);
            }
        }
    }

    /// The same as [`ask`](Self::ask) for the rows of `input` moved in all ways, and the mean.
    fn ask_moved(&self, lanes: &[Lane], input: &Array2<f32>, work: &mut Workspace) -> Asked {
        if let [_] = self.moves {
            let (values, gradient) = self.ask(lanes, input, work);
            return Asked { means: values.clone(), values, gradient };
        }
        let share = 1.0 / self.moves.len() as f32;
        let (mut values, mut means) = (Vec::new(), vec![0.0; lanes.len()]);
        let (mut gradient, mut moved) = (Array2::zeros(input.dim()), Array2::zeros(input.dim()));
        for (number, from) in self.moves.iter().enumerate() {
            for (mut to, row) in moved.outer_iter_mut().zip(input.outer_iter()) {
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = row[from]);
            }
            let (of_moved, back) = self.ask(lanes, &moved, work);
            means.iter_mut().zip(&of_moved).for_each(|(mean, value)| *mean += share * value);
            for (mut to, row) in gradient.outer_iter_mut().zip(back.outer_iter()) {
                row.iter().zip(from).for_each(|(g, &from)| to[from] += share * g);
            }
            // The one in the middle stays where it is.
            if number == self.moves.len() / 2 {
                values = of_moved;
            }
        }
        Asked { values, means, gradient }
    }

    /// Values of the lanes' units for the rows of `input`, and gradients.
    fn ask(&self, lanes: &[Lane], input: &Array2<f32>, work: &mut Workspace) -> (Vec<f32>, Array2<f32>) {
        let network = &self.crop.network;
        work.start(lanes.len());
        let all = work.lanes;
        for (lane, row) in input.outer_iter().enumerate() {
            let places = work.input[lane..].iter_mut().step_by(all);
            places.zip(row).for_each(|(place, &x)| *place = x);
        }
        network.forward_to(work, self.stage, self.kind);
        let units: Vec<Unit> = lanes.iter().map(|lane| self.crop.unit(lane.request.unit)).collect();
        let value =
            |(lane, unit): (usize, &Unit)| work.unit_values(network, self.stage, self.kind, *unit)[lane];
        let values = units.iter().enumerate().map(value).collect();
        network.input_gradient(work, self.stage, self.kind, &units);
        let mut gradient = Array2::zeros(input.dim());
        for (lane, mut row) in gradient.outer_iter_mut().enumerate() {
            let places = work.input_gradient[lane..].iter().step_by(all);
            row.iter_mut().zip(places).for_each(|(g, &place)| *g = place);
        }
        (values, gradient)
    }

    fn finish(&self, lane: &mut Lane) -> Stimulus {
        let (value, input, pixels) = std::mem::take(&mut lane.best);
        let ended = lane.climber.ended.expect("it has ended");
        let image = self.canvas.placed(&input);
        let pixels = pixels.map(|p| Array3::from_shape_vec(image.dim(), p).expect("a picture's pixels"));
        let (unit, sign) = (lane.request.unit, lane.request.sign);
        let evaluations = lane.climber.evaluations;
        Stimulus { unit, sign, image, pixels, value, start_value: lane.start_value, evaluations, ended }
    }

    /// What is found from a start that is zero where the unit sees it: nothing.
    fn unseen(&self, request: &Request) -> Stimulus {
        let (unit, sign, image) = (request.unit, request.sign, request.start.clone());
        Stimulus {
            unit,
            sign,
            image,
            pixels: None,
            value: f32::NAN,
            start_value: f32::NAN,
            evaluations: 0,
            ended: Ended::Flat,
        }
    }
}

/// Where a search began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Gaussian noise.
    Noise,
    /// One of the frames that drive the unit most.
    TopFrame,
}

/// Stimuli of one unit, and where the searches for them began.
pub type Stimuli = Vec<(Stimulus, Start)>;

/// What to look for in each unit.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Wanted {
    /// Which way.
    pub sign: Sign,
    /// Searches from different noise.
    pub restarts: usize,
    /// Different pictures: each after the first is kept away from those before it.
    pub optima: usize,
    /// How much: charged for the squared cosine to each, as a share of the unit's value.
    pub repulsion: f32,
    /// Seed of the noise.
    pub seed: u64,
}

/// How much was done for something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effort {
    /// Searches.
    pub searches: u64,
    /// Evaluations of a unit and its gradient.
    pub evaluations: u64,
}

impl std::ops::AddAssign for Effort {
    fn add_assign(&mut self, other: Effort) {
        self.searches += other.searches;
        self.evaluations += other.evaluations;
    }
}

/// Pictures that each unit prefers, the best first, with where their searches began: the best of `restarts` from different noise and
/// one from each of the unit's `frames`, then as many more optima as are wanted. One without a picture if no search got anywhere.
///
/// # Errors
/// As [`preferred_stimuli`].
pub fn best_stimuli(
    network: &Network,
    whitening: &Whitening,
    (stage, kind): (usize, Kind),
    units: &[(Unit, Vec<Array3<f32>>)],
    search: &Search,
    wanted: &Wanted,
    progress: impl Fn(usize) + Sync,
) -> Result<(Vec<Stimuli>, Effort)> {
    let shape = (network.input.channels, network.input.rows, network.input.cols);
    let noise = |unit: &Unit, number: usize| -> Array3<f32> {
        let name = format!("stimulus {stage} {} {} {}", unit.map, unit.row, unit.col);
        let mut rng = rng::stream(wanted.seed, &name, number as u64);
        Array3::from_shape_simple_fn(shape, || StandardNormal.sample(&mut rng))
    };
    let mut best: Vec<Stimuli> = vec![Vec::new(); units.len()];
    let mut effort = Effort::default();
    for round in 0..wanted.optima.max(1) {
        let (mut requests, mut origins) = (Vec::new(), Vec::new());
        for (number, (unit, frames)) in units.iter().enumerate() {
            let found: Vec<_> = best[number].iter().map(|(found, _)| found).collect();
            if found.iter().any(|found| found.is_flat()) {
                continue;
            }
            let noises =
                (0..wanted.restarts).map(|n| (noise(unit, round * wanted.restarts + n), Start::Noise));
            let frames = frames.iter().map(|frame| (frame.clone(), Start::TopFrame));
            for (start, origin) in noises.chain(frames) {
                requests.push(Request {
                    unit: *unit,
                    sign: wanted.sign,
                    start,
                    found: found.iter().map(|found| found.image.clone()).collect(),
                    repulsion: wanted.repulsion,
                });
                origins.push((number, origin));
            }
        }
        let found = preferred_stimuli(network, whitening, (stage, kind), &requests, search, &progress)?;
        effort += Effort {
            searches: found.len() as u64,
            evaluations: found.iter().map(|stimulus| stimulus.evaluations as u64).sum(),
        };
        let mut tries: Vec<Option<(f32, Stimulus, Start)>> = vec![None; units.len()];
        for ((stimulus, (number, origin)), request) in found.into_iter().zip(origins).zip(&requests) {
            let score = score(&stimulus, request, search.norm);
            // Of equal ones the first.
            if tries[number].as_ref().is_none_or(|(best, ..)| score > *best) {
                tries[number] = Some((score, stimulus, origin));
            }
        }
        for (best, found) in best.iter_mut().zip(tries) {
            best.extend(found.map(|(_, stimulus, origin)| (stimulus, origin)));
        }
    }
    Ok((best, effort))
}

/// What is compared between searches of one unit: the value, less what it is charged for being like those found before.
fn score(stimulus: &Stimulus, request: &Request, norm: f32) -> f32 {
    let value = request.sign.factor() * stimulus.value;
    let like = |found: &Array3<f32>| ((&stimulus.image * found).sum() / (norm * norm)).powi(2);
    let charge = request.repulsion * value.abs() * request.found.iter().map(like).sum::<f32>();
    if stimulus.is_flat() { f32::NEG_INFINITY } else { value - charge }
}

/// Why a unit has no gradient anywhere.
pub fn why_flat(network: &Network, stage: usize, kind: Kind, unit: Unit) -> String {
    let layer = &network.stages[stage];
    let (pool, step) = (layer.shape.pool, layer.shape.pool_stride);
    let window = match kind {
        Kind::A => vec![unit],
        Kind::H | Kind::Y => {
            let places = (0..pool).flat_map(|dy| (0..pool).map(move |dx| (dy, dx)));
            let simple =
                |(dy, dx)| Unit { map: unit.map, row: unit.row * step + dy, col: unit.col * step + dx };
            places.map(simple).collect()
        }
    };
    let dead = window.iter().all(|&simple| layer.filter(Weights::Encoder, simple).iter().all(|&w| w == 0.0));
    match (dead, stage) {
        (true, _) => "all weights of its filters are 0: a dead unit".into(),
        (false, 0) => "its value is the same for all pictures that were tried".into(),
        (false, _) => format!("none of the units of stage {stage} that it looks at changed with the picture"),
    }
}
