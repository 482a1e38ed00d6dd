//! Minibatches of preprocessed pictures, as the network takes them.

use std::borrow::Cow;
use std::mem;

use ndarray::Array3;
use rayon::prelude::*;

use super::local::Room;
use super::{Whitening, dims};
use crate::dataset::{Augment, Dataset, Window};
use crate::geometry::MapShape;
use crate::kernels::LANES;
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

    /// The same for learning: of each picture the window drawn for minibatch `number`, where windows are drawn.
    pub fn fill_minibatch(
        &self,
        number: u64,
        indices: &[usize],
        lanes: usize,
        input: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let Some(augment) = &self.augment else { return self.fill(indices, lanes, input, scratch) };
        let (len, mut cut) = (self.dataset.shape.len(), mem::take(&mut scratch.cut));
        augment.windows(number, indices.len(), &mut scratch.windows);
        cut.resize(indices.len() * len, 0);
        let windows = cut.par_chunks_exact_mut(len).zip(indices).zip(&scratch.windows);
        windows.for_each(|((out, &index), window)| self.dataset.cut(index, *window, out));
        self.whitening.apply_rows(indices.len(), &|row| Cow::Borrowed(&cut[row * len..][..len]), scratch);
        scratch.cut = cut;
        self.to_lanes(indices.len(), |lane| &scratch.white[lane * len..][..len], lanes, input);
    }

    /// Writes `count` rows of values into lanes.
    fn to_lanes<'r>(&self, count: usize, row: impl Fn(usize) -> &'r [f32], lanes: usize, input: &mut [f32]) {
        /// Places that are done together: each row is read, and each line of the cache written, in one go.
        const RUN: usize = 64;
        let MapShape { channels, .. } = self.dataset.shape;
        let len = self.dataset.shape.len();
        assert!(count <= lanes && input.len() == len * lanes, "a minibatch of another size");
        let plane = len / channels;
        for (number, places) in input.chunks_mut(RUN * channels * lanes).enumerate() {
            for (channel, group) in (0..channels).flat_map(|c| (0..lanes).step_by(LANES).map(move |g| (c, g)))
            {
                for lane in group..count.min(group + LANES) {
                    let values = &row(lane)[channel * plane + number * RUN..];
                    let places = places[channel * lanes + lane..].iter_mut().step_by(channels * lanes);
                    places.zip(values).for_each(|(place, value)| *place = *value);
                }
            }
        }
    }

    /// Tells the system which pictures [`fill`](Self::fill) is about to read.
    pub fn announce(&self, indices: &[usize]) {
        if self.ready.is_none() {
            indices.iter().for_each(|&index| self.dataset.announce(index));
        }
    }

    /// Mean norm of the first pictures: the size of a natural picture.
    pub fn natural_norm(&self) -> f32 {
        let count = self.len().min(1000);
        let norm = |index| self.picture(index).iter().map(|x| x * x).sum::<f32>().sqrt();
        (0..count).into_par_iter().map(norm).sum::<f32>() / count as f32
    }
}
