//! Minibatches of preprocessed pictures, as the network takes them.

use std::borrow::Cow;
use std::mem;

use ndarray::Array3;
use rayon::prelude::*;

use super::local::Room;
use super::{Whitening, dims};
use crate::dataset::{Augment, Dataset, Window};
use crate::error::{Error, Result};
use crate::geometry::MapShape;
use crate::kernels::{LANES, prefetch};
use crate::network::Workspace;

/// Memory for preprocessing, kept so that nothing is allocated from the second minibatch on.
#[derive(Default)]
pub struct Scratch {
    /// Pictures with mean and contrast removed, one a row.
    pub(super) normal: Vec<f32>,
    /// Preprocessed pictures, one a row.
    pub(super) white: Vec<f32>,
    /// Windows of a minibatch, and what they show: 8-bit pictures, one a row.
    windows: Vec<Window>,
    cut: Vec<u8>,
    /// Pictures as kept, and whether each could be read.
    kept: Vec<u8>,
    was_read: Vec<bool>,
    /// For local contrast normalisation.
    pub(super) room: Room,
}

/// Pictures of a dataset as the network takes them: preprocessed once where that fits in memory, else when asked for.
pub struct Inputs<'a> {
    dataset: &'a Dataset,
    whitening: &'a Whitening,
    /// All of them, one a row.
    ready: Option<Vec<f32>>,
    /// What is drawn anew for each minibatch, if anything.
    augment: Option<Augment>,
}

impl<'a> Inputs<'a> {
    /// Preprocesses all pictures now if they take at most `budget` bytes.
    pub fn new(dataset: &'a Dataset, whitening: &'a Whitening, budget: usize) -> Inputs<'a> {
        let fits = 4 * dataset.len() * dataset.shape.len() <= budget;
        let all = || {
            let mut scratch = Scratch::default();
            whitening.apply_rows(dataset.len(), &|index| dataset.pixels(index), &mut scratch);
            scratch.white
        };
        Inputs { dataset, whitening, ready: fits.then(all), augment: None }
    }

    /// The same for minibatches of windows that `augment` draws, if there is one: then nothing is preprocessed now, since windows
    /// are cut before. Other pictures than those of [`fill_minibatch`](Self::fill_minibatch) are as ever.
    pub fn for_training(
        dataset: &'a Dataset,
        whitening: &'a Whitening,
        budget: usize,
        augment: Option<Augment>,
    ) -> Inputs<'a> {
        match augment {
            None => Self::new(dataset, whitening, budget),
            Some(_) => Inputs { dataset, whitening, ready: None, augment },
        }
    }

    /// Pictures there are.
    pub fn len(&self) -> usize {
        self.dataset.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pictures, from the first, that can be read now, see [`Dataset::readable`].
    pub fn readable(&self) -> usize {
        if self.ready.is_some() { self.len() } else { self.dataset.readable() }
    }

    /// One picture's values.
    pub fn picture(&self, index: usize) -> Array3<f32> {
        let len = self.dataset.shape.len();
        let values = match &self.ready {
            Some(ready) => ready[index * len..][..len].to_vec(),
            None => self.whitening.apply(&self.dataset.pixels(index)),
        };
        Array3::from_shape_vec(dims(self.dataset.shape), values).expect("a picture's values")
    }

    /// Makes these pictures the minibatch of `work`.
    pub fn load(&self, indices: &[usize], work: &mut Workspace) {
        work.start(indices.len());
        self.fill(indices, work.lanes, &mut work.input, &mut Scratch::default());
    }

    /// Writes these pictures into the first of `lanes` lanes of `input`, `[row, column, channel, lane]`.
    pub fn fill(&self, indices: &[usize], lanes: usize, input: &mut [f32], scratch: &mut Scratch) {
        let len = self.dataset.shape.len();
        if let Some(ready) = &self.ready {
            return self.to_lanes(indices.len(), |lane| &ready[indices[lane] * len..][..len], lanes, input);
        }
        self.whitening.apply_rows(indices.len(), &|row| self.dataset.pixels(indices[row]), scratch);
        self.to_lanes(indices.len(), |lane| &scratch.white[lane * len..][..len], lanes, input);
    }

    /// The same for training, which goes on when the file of pictures is cut short: pictures that cannot be read are replaced by
    /// others of the minibatch. Of each picture the window drawn for minibatch `number` is shown, where windows are drawn; without a
    /// number its middle.
    /// Returns how many were replaced.
    ///
    /// # Errors
    /// None of them can be read.
    pub fn fill_minibatch(
        &self,
        number: Option<u64>,
        indices: &[usize],
        lanes: usize,
        input: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<usize> {
        if self.ready.is_some() {
            self.fill(indices, lanes, input, scratch);
            return Ok(0);
        }
        let (kept, shape) = (self.dataset.kept, self.dataset.shape);
        let (mut whole, mut cut) = (mem::take(&mut scratch.kept), mem::take(&mut scratch.cut));
        let replaced = self.read(indices, &mut whole, &mut scratch.was_read)?;
        let augment = number.zip(self.augment.as_ref());
        let shown = if kept == shape && augment.is_none() {
            &whole
        } else {
            match augment {
                Some((number, augment)) => augment.windows(number, indices.len(), &mut scratch.windows),
                None => {
                    scratch.windows.clear();
                    scratch.windows.resize(indices.len(), Window::middle(self.dataset.margin()));
                }
            }
            cut.resize(indices.len() * shape.len(), 0);
            let windows = cut.par_chunks_exact_mut(shape.len()).zip(whole.par_chunks_exact(kept.len()));
            windows
                .zip(&scratch.windows)
                .for_each(|((out, pixels), window)| window.cut(pixels, kept, out, shape));
            &cut
        };
        let row = |row: usize| Cow::Borrowed(&shown[row * shape.len()..][..shape.len()]);
        self.whitening.apply_rows(indices.len(), &row, scratch);
        (scratch.kept, scratch.cut) = (whole, cut);
        self.to_lanes(
            indices.len(),
            |lane| &scratch.white[lane * shape.len()..][..shape.len()],
            lanes,
            input,
        );
        Ok(replaced)
    }

    /// Reads pictures as kept, one a row, and puts others of them in the place of those that cannot be read; returns how many.
    fn read(&self, indices: &[usize], rows: &mut Vec<u8>, was_read: &mut Vec<bool>) -> Result<usize> {
        let len = self.dataset.kept.len();
        rows.resize(indices.len() * len, 0);
        was_read.resize(indices.len(), false);
        let each = rows.par_chunks_exact_mut(len).zip(indices).zip(was_read.par_iter_mut());
        each.for_each(|((row, &index), was_read)| *was_read = self.dataset.read(index, row));
        let missing = was_read.iter().filter(|was_read| !**was_read).count();
        if missing == indices.len() {
            let problem =
                "none of a minibatch's pictures can be read: frames.u8 was cut short while the run trained";
            return Err(Error::Mismatch(problem.into()));
        }
        let mut from = 0;
        for to in (0..indices.len()).filter(|&row| missing > 0 && !was_read[row]) {
            from = (1..=indices.len())
                .map(|n| (from + n) % indices.len())
                .find(|&n| was_read[n])
                .expect("one was read");
            rows.copy_within(from * len..(from + 1) * len, to * len);
        }
        Ok(missing)
    }

    /// Writes `count` rows of values into lanes.
    fn to_lanes<'r>(
        &self,
        count: usize,
        row: impl Fn(usize) -> &'r [f32] + Sync,
        lanes: usize,
        input: &mut [f32],
    ) {
        /// Places that a thread does together.
        const RUN: usize = 128;
        let MapShape { channels, .. } = self.dataset.shape;
        let len = self.dataset.shape.len();
        assert!(count <= lanes && input.len() == len * lanes, "a minibatch of another size");
        let plane = len / channels;
        input.par_chunks_mut(RUN * channels * lanes).enumerate().for_each(|(number, places)| {
            let run = places.len() / (channels * lanes);
            // Part by part: what some lanes see of a channel.
            let part = |number: usize| (number / channels * LANES, number % channels);
            let seen = |lane: usize, channel: usize| {
                &row(lane.min(count - 1))[channel * plane + number * RUN..][..run]
            };
            let parts = count.div_ceil(LANES) * channels;
            for this in 0..parts {
                // Rows lie anywhere in memory: it is asked for those of the next part in the meantime.
                let (group, channel) = part((this + 1).min(parts - 1));
                for lane in group..group + LANES {
                    seen(lane, channel).iter().step_by(LANES).for_each(|value| prefetch(value));
                }
                let (group, channel) = part(this);
                let width = (count - group).min(LANES);
                let rows: [&[f32]; LANES] = std::array::from_fn(|at| seen(group + at, channel));
                let line_of = |at: usize| (at * channels + channel) * lanes + group;
                let (fours, whole) = (rows.map(|row| row.as_chunks::<4>().0), run - run % 4);
                for four in 0..whole / 4 {
                    let values: [[f32; 4]; LANES] = std::array::from_fn(|lane| fours[lane][four]);
                    for at in 0..4 {
                        let line: [f32; LANES] = std::array::from_fn(|lane| values[lane][at]);
                        places[line_of(4 * four + at)..][..width].copy_from_slice(&line[..width]);
                    }
                }
                for at in whole..run {
                    let line = &mut places[line_of(at)..][..width];
                    line.iter_mut().zip(&rows).for_each(|(to, row)| *to = row[at]);
                }
            }
        });
    }

    /// Tells the system which pictures [`fill`](Self::fill) is about to read.
    pub fn announce(&self, indices: &[usize]) {
        if self.ready.is_none() {
            indices.iter().for_each(|&index| self.dataset.announce(index));
        }
    }

    /// Mean norm of the first pictures: the size of a natural picture. The same however many threads there are.
    pub fn natural_norm(&self) -> f32 {
        let square = |index| self.picture(index).iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        // Summed in their order: threads that add up what they have each round differently every time.
        let squares: Vec<f64> = (0..self.len().min(1000)).into_par_iter().map(square).collect();
        (squares.iter().map(|square| square.sqrt()).sum::<f64>() / squares.len() as f64) as f32
    }
}
