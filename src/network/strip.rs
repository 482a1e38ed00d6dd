//! A network split by position: each of several parts makes some rows of every map, with the filters of the positions there, and gets
//! the rows around them from the others (paper §4.1: model parallelism, which local receptive fields allow).
//!
//! Maps are as large as those of the whole network, so that rows have the same numbers everywhere; memory is touched, and so taken,
//! only where there are rows of the part, or around it.

use std::ops::Range;
use std::sync::Arc;

use super::objective::Loss;
use crate::geometry::StageShape;

/// The other parts of a network that is split. All parts do the same, one thing after another, so each knows what the others send it
/// and when.
pub trait Peers: Send + Sync {
    /// Sends values to other parts, and returns what others send, so many values from each part in `from`, in that order. Where
    /// a part is lost there is nothing to be returned but zeros; whoever made this knows that it is lost.
    fn swap(&self, to: Vec<(usize, Vec<f32>)>, from: &[(usize, usize)]) -> Vec<Vec<f32>>;
}

/// The rows of a stage's maps that are made here: all, or those of one part.
pub struct Strip {
    /// Of the stage's input: what is summed up of the reconstruction.
    pub input: Range<usize>,
    /// Of the simple units, whose filters are here.
    pub filtered: Range<usize>,
    /// Of the complex units and the output.
    pub pooled: Range<usize>,
    others: Option<Others>,
}

/// What a part exchanges with the others.
struct Others {
    peers: Arc<dyn Peers>,
    part: usize,
    /// Rows of the input that the receptive fields of the part see.
    fields: Halo,
    /// Rows of simple units that its complex units pool.
    windows: Halo,
    /// Rows of complex units that pool its simple units.
    pools: Halo,
    /// Rows of complex units in the windows of contrast normalisation.
    contrast: Halo,
}

/// The rows of one kind of maps that each part makes, and those that it needs.
struct Halo {
    made: Vec<Range<usize>>,
    needed: Vec<Range<usize>>,
}

/// The rows of one of `parts` parts, of `rows`.
pub fn share(rows: usize, part: usize, parts: usize) -> Range<usize> {
    rows * part / parts..rows * (part + 1) / parts
}

fn common(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// Some rows of a map whose rows have `len` numbers.
pub fn rows_of<'a>(map: &'a mut [f32], rows: &Range<usize>, len: usize) -> &'a mut [f32] {
    &mut map[rows.start * len..rows.end * len]
}

impl Strip {
    /// All rows.
    pub fn whole(shape: &StageShape) -> Strip {
        let StageShape { input, filtered, pooled, .. } = shape;
        Strip { input: 0..input.rows, filtered: 0..filtered.rows, pooled: 0..pooled.rows, others: None }
    }

    /// Those of a part of `parts`.
    pub fn of_part(shape: &StageShape, (part, parts): (usize, usize), peers: Arc<dyn Peers>) -> Strip {
        let s = shape;
        let made = |rows: usize| -> Vec<_> { (0..parts).map(|part| share(rows, part, parts)).collect() };
        let [input, filtered, pooled] = [s.input.rows, s.filtered.rows, s.pooled.rows].map(made);
        let halo = |made: &[Range<usize>], of: &[Range<usize>], f: &dyn Fn(&Range<usize>) -> Range<usize>| {
            let needed = of.iter().map(|rows| if rows.is_empty() { 0..0 } else { f(rows) });
            Halo { made: made.to_vec(), needed: needed.collect() }
        };
        let below =
            |rows: &Range<usize>, step: usize, size: usize| rows.start * step..(rows.end - 1) * step + size;
        let pooling = |rows: &Range<usize>| {
            let first = (rows.start + 1).saturating_sub(s.pool).div_ceil(s.pool_stride);
            first..((rows.end - 1) / s.pool_stride + 1).min(s.pooled.rows).max(first)
        };
        let reach = s.lcn / 2;
        let around =
            |rows: &Range<usize>| rows.start.saturating_sub(reach)..(rows.end + reach).min(s.pooled.rows);
        let others = Others {
            peers,
            part,
            fields: halo(&input, &filtered, &|rows| below(rows, s.stride, s.field)),
            windows: halo(&filtered, &pooled, &|rows| below(rows, s.pool_stride, s.pool)),
            pools: halo(&pooled, &filtered, &pooling),
            contrast: halo(&pooled, &pooled, &around),
        };
        let of = |all: Vec<Range<usize>>| all[part].clone();
        Strip { input: of(input), filtered: of(filtered), pooled: of(pooled), others: Some(others) }
    }

    /// True if all rows are made here.
    pub fn is_whole(&self) -> bool {
        self.others.is_none()
    }

    /// Rows of the input that receptive fields here see, and those that are summed up here.
    pub fn reach(&self) -> Range<usize> {
        let Some(others) = &self.others else { return self.input.clone() };
        let (own, seen) = (&self.input, &others.fields.needed[others.part]);
        match (own.is_empty(), seen.is_empty()) {
            (_, true) => own.clone(),
            (true, _) => seen.clone(),
            _ => own.start.min(seen.start)..own.end.max(seen.end),
        }
    }

    /// Gets what receptive fields here see of maps of the input's size, with rows of `len` numbers.
    pub fn fill_fields(&self, map: &mut [f32], len: usize) {
        self.with(|others| others.fill(&others.fields, map, len));
    }

    /// Makes those rows of such maps 0 that are summed up elsewhere.
    pub fn clear_fields(&self, map: &mut [f32], len: usize) {
        self.with(|_| {
            let reach = self.reach();
            for rows in
                [reach.start..self.input.start.max(reach.start), self.input.end.min(reach.end)..reach.end]
            {
                rows_of(map, &rows, len).fill(0.0);
            }
        });
    }

    /// Adds up what all parts give to each row of such maps.
    pub fn add_fields(&self, map: &mut [f32], len: usize) {
        self.with(|others| others.add(&others.fields, map, len));
    }

    /// Gets the simple units that are pooled here.
    pub fn fill_windows(&self, map: &mut [f32], len: usize) {
        self.with(|others| others.fill(&others.windows, map, len));
    }

    /// Gets what belongs to complex units that pool simple units of here.
    pub fn fill_pools(&self, map: &mut [f32], len: usize) {
        self.with(|others| others.fill(&others.pools, map, len));
    }

    /// Gets the rows of a single map that contrast is normalised by here.
    pub fn fill_contrast(&self, map: &mut [f32], len: usize) {
        self.with(|others| others.fill(&others.contrast, map, len));
    }

    /// Gets all simple units.
    pub fn gather_simple(&self, map: &mut [f32], len: usize) {
        self.with(|others| others.gather(&others.windows, map, len));
    }

    /// Gets all complex units.
    pub fn gather_complex(&self, map: &mut [f32], len: usize) {
        self.with(|others| others.gather(&others.pools, map, len));
    }

    /// Adds up the losses of all parts.
    pub fn add_losses(&self, losses: &mut [Loss]) {
        self.with(|others| {
            /// A number in f64 as two in f32.
            fn halves(x: f64) -> [f32; 2] {
                [x as f32, (x - f64::from(x as f32)) as f32]
            }
            let own = losses.iter().flat_map(|loss| [loss.reconstruction, loss.sparsity, loss.signal]);
            let own: Vec<f32> = own.flat_map(halves).collect();
            let parts = others.fields.made.len();
            let rest = || (0..parts).filter(|part| *part != others.part);
            let to = rest().map(|part| (part, own.clone())).collect();
            let from: Vec<_> = rest().map(|part| (part, own.len())).collect();
            let mut of_parts = others.peers.swap(to, &from);
            // In the order of parts, so that all come to the same.
            of_parts.insert(others.part, own);
            losses.fill(Loss::default());
            for values in of_parts {
                let numbers: Vec<f64> =
                    values.as_chunks::<2>().0.iter().map(|[a, b]| f64::from(*a) + f64::from(*b)).collect();
                for (loss, &[reconstruction, sparsity, signal]) in
                    losses.iter_mut().zip(numbers.as_chunks().0)
                {
                    *loss += Loss { reconstruction, sparsity, signal };
                }
            }
        });
    }

    fn with(&self, work: impl FnOnce(&Others)) {
        if let Some(others) = &self.others {
            work(others);
        }
    }
}

impl Others {
    /// What `ours` of one part and `theirs` of another have in common, for every part but this.
    fn each<'a>(
        &self,
        ours: &'a Range<usize>,
        theirs: &'a [Range<usize>],
    ) -> impl Iterator<Item = (usize, Range<usize>)> + 'a {
        let own = self.part;
        let rows = theirs.iter().enumerate().filter(move |(part, _)| *part != own);
        rows.map(move |(part, theirs)| (part, common(ours, theirs))).filter(|(_, rows)| !rows.is_empty())
    }

    /// Gets the rows that are needed here from where they are made.
    fn fill(&self, halo: &Halo, map: &mut [f32], len: usize) {
        let rows_to = self.each(&halo.made[self.part], &halo.needed);
        let to = rows_to.map(|(part, rows)| (part, rows_of(map, &rows, len).to_vec())).collect();
        let missing: Vec<_> = self.each(&halo.needed[self.part], &halo.made).collect();
        let from: Vec<_> = missing.iter().map(|(part, rows)| (*part, rows.len() * len)).collect();
        for ((_, rows), values) in missing.iter().zip(self.peers.swap(to, &from)) {
            rows_of(map, rows, len).copy_from_slice(&values);
        }
    }

    /// Gets all rows from where they are made.
    fn gather(&self, halo: &Halo, map: &mut [f32], len: usize) {
        let rows = halo.made.last().map_or(0, |rows| rows.end);
        let needed = halo.made.iter().map(|_| 0..rows).collect();
        self.fill(&Halo { made: halo.made.clone(), needed }, map, len);
    }

    /// Adds what this part has of the rows of others to them, and what they have of its own.
    fn add(&self, halo: &Halo, map: &mut [f32], len: usize) {
        let rows_to = self.each(&halo.needed[self.part], &halo.made);
        let to = rows_to.map(|(part, rows)| (part, rows_of(map, &rows, len).to_vec())).collect();
        let mine: Vec<_> = self.each(&halo.made[self.part], &halo.needed).collect();
        let from: Vec<_> = mine.iter().map(|(part, rows)| (*part, rows.len() * len)).collect();
        for ((_, rows), values) in mine.iter().zip(self.peers.swap(to, &from)) {
            rows_of(map, rows, len).iter_mut().zip(&values).for_each(|(sum, x)| *sum += x);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Mutex, mpsc};
    use std::thread;

    use rand::Rng;

    use super::*;
    use crate::config::{Objective, RunConfig};
    use crate::kernels::Rows;
    use crate::network::{At, Network, WeightUpdate, Weights, Workspace};
    use crate::rng;

    /// Parts in this process.
    struct Threads {
        to: Vec<Sender<Vec<f32>>>,
        from: Vec<Mutex<Receiver<Vec<f32>>>>,
    }

    impl Peers for Threads {
        fn swap(&self, to: Vec<(usize, Vec<f32>)>, from: &[(usize, usize)]) -> Vec<Vec<f32>> {
            to.into_iter().for_each(|(part, values)| self.to[part].send(values).unwrap());
            let receive = |&(part, len): &(usize, usize)| {
                let values = self.from[part].lock().unwrap().recv().unwrap();
                assert_eq!(values.len(), len, "from part {part}");
                values
            };
            from.iter().map(receive).collect()
        }
    }

    fn peers(parts: usize) -> Vec<Arc<dyn Peers>> {
        let mut to: Vec<Vec<Sender<Vec<f32>>>> = (0..parts).map(|_| Vec::new()).collect();
        let mut from: Vec<Vec<Mutex<Receiver<Vec<f32>>>>> = (0..parts).map(|_| Vec::new()).collect();
        for to in &mut to {
            for from in &mut from {
                let (sender, receiver): (_, mpsc::Receiver<_>) = channel();
                to.push(sender);
                from.push(Mutex::new(receiver));
            }
        }
        let all = to.into_iter().zip(from);
        all.map(|(to, from)| Arc::new(Threads { to, from }) as Arc<dyn Peers>).collect()
    }

    struct KeepGradient;

    impl WeightUpdate for KeepGradient {
        fn update(&self, _: At, _: usize, _: &mut [f32], sums: &mut [f32], gradient: &mut [f32]) {
            sums.copy_from_slice(gradient);
        }
    }

    fn learned(network: &Network, objective: Objective, stages: Range<usize>) -> (Workspace, Vec<Loss>) {
        let mut work = network.workspace(5).with_rows(Rows::InTurn);
        let mut rng = rng::stream(7, "strips", 0);
        let mut picture =
            || (0..network.input.len()).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
        work.start(5);
        (0..5).for_each(|lane| work.load_picture(lane, picture().into_iter()));
        // Twice: what the first time leaves behind must not matter.
        network.learn(&mut work, stages.clone(), objective, &KeepGradient);
        let losses = network.learn(&mut work, stages, objective, &KeepGradient).to_vec();
        (work, losses)
    }

    /// Gradients of some blocks of a stage.
    fn gradients(network: &Network, stage: usize, blocks: Range<usize>) -> Vec<f32> {
        let blocks = blocks.map(|number| network.stages[stage].blocks.all()[number].read());
        let of = |arrays: &crate::network::weights::Arrays, which| {
            let array = arrays.get(which);
            (0..array.len()).map(|at| array.get(at)).collect::<Vec<_>>()
        };
        let both =
            blocks.flat_map(|arrays| [Weights::EncoderSums, Weights::DecoderSums].map(|w| of(&arrays, w)));
        both.flatten().collect()
    }

    fn assert_close(part: &[f32], whole: &[f32], what: &str) {
        assert_eq!(part.len(), whole.len(), "{what}");
        let most = whole.iter().fold(0f32, |most, x| most.max(x.abs()));
        let off = part.iter().zip(whole).fold(0f32, |off, (a, b)| off.max((a - b).abs()));
        assert!(off <= 1e-5 * most, "{what}: {off} of {most}");
    }

    #[test]
    fn parts_of_a_network_compute_what_the_whole_does() {
        let text = |stage1: &str, stage2: &str, training: &str| {
            format!(
                "[input]\nchannels = 3\nheight = 29\nwidth = 21\npreprocess = \"none\"\n\
                 [[stages]]\nmaps = 3\nfield = 4\nstride = 2\npool = 3\nepsilon = 1e-3\n{stage1}\n\
                 [[stages]]\nmaps = 5\nfield = 3\npool = 2\nepsilon = 1e-3\n{stage2}\n\
                 [training]\noptimiser = \"adagrad\"\nschedule = \"together\"\nsteps = [1]\n{training}"
            )
        };
        let texts = [
            text("lcn = 3\nlcn_floor = 0.1\nreconstruction = \"coverage\"", "lcn = 5", ""),
            text("lcn = 5\npool_stride = 2", "lcn = 3\nlcn_border = \"zero\"\npool_stride = 2", ""),
            text("lcn = 0\ntied = true", "lcn = 7\nlcn_floor = 0.3\ntied = true", ""),
        ];
        for (number, text) in texts.iter().enumerate() {
            let config = RunConfig::parse(text, &[]).unwrap();
            for (objective, stages) in [
                (Objective::JointFull, 0..2),
                (Objective::JointDetachedTarget, 0..2),
                (Objective::Local, 0..2),
                (Objective::Local, 1..2),
            ] {
                let whole = Network::new(&config, 4).unwrap();
                let (all, wanted) = learned(&whole, objective, stages.clone());
                for parts in [2, 3, 7] {
                    let (whole, all, wanted, config) = (&whole, &all, &wanted, &config);
                    thread::scope(|scope| {
                        for (part, peers) in peers(parts).into_iter().enumerate() {
                            let stages = stages.clone();
                            scope.spawn(move || {
                                let here = Network::new(config, 4).unwrap().part((part, parts), &peers);
                                let (own, losses) = learned(&here, objective, stages.clone());
                                let what = format!(
                                    "config {number}, {objective:?} {stages:?}, part {part} of {parts}"
                                );
                                let totals = |losses: &[Loss]| -> Vec<f32> {
                                    losses
                                        .iter()
                                        .flat_map(|l| {
                                            [l.reconstruction, l.sparsity, l.signal].map(|x| x as f32)
                                        })
                                        .collect()
                                };
                                assert_close(&totals(&losses), &totals(wanted), &what);
                                for (index, stage) in here.stages.iter().enumerate() {
                                    let (s, strip) = (&stage.shape, &stage.strip);
                                    let (own, all) = (&own.stages[index], &all.stages[index]);
                                    for (name, own, all, made, row) in [
                                        ("a", &own.a, &all.a, &strip.filtered, s.filtered.row_len()),
                                        ("h", &own.h, &all.h, &strip.pooled, s.pooled.row_len()),
                                        ("y", &own.y, &all.y, &strip.pooled, s.pooled.row_len()),
                                    ] {
                                        let rows = made.start * row * 16..made.end * row * 16;
                                        assert_close(
                                            &own[rows.clone()],
                                            &all[rows],
                                            &format!("{what}: {name} of stage {index}"),
                                        );
                                    }
                                    let blocks = stage.held();
                                    let (own, all) = (
                                        gradients(&here, index, blocks.clone()),
                                        gradients(whole, index, blocks),
                                    );
                                    assert_close(&own, &all, &format!("{what}: gradients of stage {index}"));
                                }
                            });
                        }
                    });
                }
            }
        }
    }
}
