//! One stage: what it is, what flows through it in both directions (paper §3), and what a processor does to it.

use std::ops::{Deref, Range};

use super::strip::{Strip, share};
use super::weights::{Blocks, WeightUpdate};
use crate::config::{self, LcnBorder, Precision, Reconstruction};
use crate::geometry::StageShape;
use crate::kernels::filter::Field;
use crate::kernels::lcn::{Lcn, LcnScratch};
use crate::kernels::{Buffer, Rows};

/// One stage of the network.
pub struct Stage {
    /// Its number, from 1.
    pub number: usize,
    /// Sizes.
    pub shape: StageShape,
    /// λ, ε and the rest.
    pub settings: config::Stage,
    /// W1, W2 and what the optimiser remembers.
    pub blocks: Blocks,
    /// 1 / (number of receptive fields covering each input position), for `reconstruction = "coverage"`.
    pub(super) inverse_coverage: Option<Vec<f32>>,
    /// The rows of its maps that are made here: all, but in a [part](super::Network::part) of a network.
    pub strip: Strip,
}

/// What one replica knows of a stage while it works on a minibatch: activations and their gradients.
///
/// Maps are `[row, column, channel, lane]`.
pub struct Activations {
    /// How the rows of maps are worked on.
    pub rows: Rows,
    pub(super) field: Field,
    pub(super) lcn: Option<Lcn>,
    pub(super) lcn_scratch: LcnScratch,
    /// Simple units.
    pub a: Buffer,
    /// Complex units.
    pub h: Buffer,
    /// Output of the stage.
    pub y: Buffer,
    /// Reconstruction minus input.
    pub residual: Buffer,
    /// Gradient with respect to `a`.
    pub da: Buffer,
    /// Gradient with respect to `h`.
    pub dh: Buffer,
    /// Gradient with respect to `y`.
    pub dy: Buffer,
}

/// The arithmetic of a stage on a minibatch: all that learning and inference ask of a processor. [`Cpu`](crate::kernels::Cpu) has it; another
/// processor would have its own.
///
/// `input` and `dx` are maps of the stage's input size.
pub trait StageKernels {
    /// Simple units: `a` from the stage's input.
    fn filter(&self, stage: &Stage, input: &[f32], acts: &mut Activations);

    /// Complex units: `h` from `a`.
    fn pool(&self, stage: &Stage, acts: &mut Activations);

    /// Local contrast normalisation: `y` from `h`; lanes from `pictures` on are no pictures and become 0.
    fn normalise(&self, stage: &Stage, acts: &mut Activations, pictures: usize);

    /// Decoding: `residual` = reconstruction - input.
    fn decode(&self, stage: &Stage, input: &[f32], acts: &mut Activations);

    /// Turns `residual` into the gradient with respect to the reconstruction's terms, of the mean over `pictures`; where
    /// `dx` is given, it gets that with respect to the input as the target.
    fn residual_gradient(
        &self,
        stage: &Stage,
        acts: &mut Activations,
        pictures: usize,
        dx: Option<&mut [f32]>,
    );

    /// Adds to `dh` what `dy` makes of it; `dy` is used up.
    fn normalisation_gradient(&self, stage: &Stage, acts: &mut Activations);

    /// `da` from `dh`; `dh` is used up.
    fn pooling_gradient(&self, stage: &Stage, acts: &mut Activations);

    /// Adds to `dx` what `da` gives back through the encoder.
    fn filtering_gradient(&self, stage: &Stage, acts: &Activations, dx: &mut [f32]);

    /// Gradients of both arrays of weights, applied block by block as they are made; of a tied decoder the sum of both,
    /// applied to W1.
    ///
    /// On entry `da` holds the gradient by way of `h`, and `residual` that by way of the reconstruction; each
    /// position adds to `da` what comes through W2. Where `dx` is given, what W1 gives back is added to it. Both use the
    /// weights as they are before their update.
    fn learn(
        &self,
        stage: &Stage,
        input: &[f32],
        acts: &mut Activations,
        dx: Option<&mut [f32]>,
        update: &dyn WeightUpdate,
    );

    /// Gradients of the encoder alone, by way of `da`, applied block by block as they are made.
    fn learn_encoder(&self, stage: &Stage, input: &[f32], acts: &mut Activations, update: &dyn WeightUpdate);
}

impl Stage {
    /// With random weights, drawn from streams of `seed`; `sums` allocates what the optimiser remembers.
    pub fn new(
        number: usize,
        shape: StageShape,
        settings: config::Stage,
        precision: Precision,
        seed: u64,
        sums: bool,
    ) -> Stage {
        let stage = Stage::zeros(number, shape, settings, precision, sums);
        stage.blocks.draw(number, seed);
        stage
    }

    /// All weights 0, to be read from a checkpoint.
    pub fn zeros(
        number: usize,
        shape: StageShape,
        settings: config::Stage,
        precision: Precision,
        sums: bool,
    ) -> Stage {
        Stage::with_filters(
            number,
            shape,
            settings.clone(),
            Blocks::zeros(shape, precision, settings.tied, sums),
        )
    }

    /// Of weights that are there.
    pub(super) fn with_filters(
        number: usize,
        shape: StageShape,
        settings: config::Stage,
        blocks: Blocks,
    ) -> Stage {
        let inverse_coverage = (settings.reconstruction == Reconstruction::Coverage).then(|| {
            let (rows, cols) = (shape.coverage(true), shape.coverage(false));
            let inverse = |n: usize| 1.0 / n.max(1) as f32;
            rows.iter().flat_map(|&row| cols.iter().map(move |&col| inverse(row * col))).collect()
        });
        let strip = Strip::whole(&shape);
        Stage { number, shape, settings, blocks, inverse_coverage, strip }
    }

    /// The blocks of weights that are here.
    pub fn held(&self) -> Range<usize> {
        self.blocks.of_rows(&self.strip.filtered)
    }

    /// The blocks of weights that one of `parts` parts of the network has.
    pub fn of_part(&self, part: usize, parts: usize) -> Range<usize> {
        self.blocks.of_rows(&share(self.shape.filtered.rows, part, parts))
    }

    /// A copy that can only encode.
    pub(super) fn encoder(&self) -> Stage {
        let filters = self.part(self.shape, (0, 0));
        Stage::with_filters(self.number, self.shape, self.settings.clone(), filters)
    }

    /// Room for a minibatch of this many lanes.
    pub fn activations(&self, lanes: usize) -> Activations {
        let s = &self.shape;
        let shapes = [s.filtered, s.pooled, s.pooled, s.input, s.filtered, s.pooled, s.pooled];
        let mut maps = Buffer::zeros_together(shapes.map(|shape| shape.len() * lanes)).into_iter();
        let [a, h, y, residual, da, dh, dy] = shapes.map(|_| maps.next().expect("one for each shape"));
        let renormalise = self.settings.lcn_border == LcnBorder::Renorm;
        let lcn = |side| Lcn::new(s.pooled, lanes, side, self.settings.lcn_floor as f32, renormalise);
        Activations {
            rows: Rows::InTurn,
            field: Field::new(s, lanes),
            lcn: (s.lcn > 0).then(|| lcn(s.lcn)),
            lcn_scratch: LcnScratch::new(s.pooled, lanes),
            a,
            h,
            y,
            residual,
            da,
            dh,
            dy,
        }
    }
}

impl Deref for Stage {
    type Target = Blocks;
    fn deref(&self) -> &Blocks {
        &self.blocks
    }
}
