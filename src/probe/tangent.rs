//! The tangent kernel of a network with a head (Jacot et al. 2018): by how much a small step of gradient descent for one picture's number of
//! a class moves every other number.
//!
//! `Θ[(x, c), (x', c')] = Σ_w rate(w) · ∂f_c(x)/∂w · ∂f_c'(x')/∂w` over the weights w of encoders and head, each with the learning rate of its
//! group: the kernel that descent with these rates follows. The Jacobian, with a column for every weight, is never made: a filter's
//! weights at one position touch f only through its response there, so their part of the sum is the product of two small ones, of
//! what the field holds in both pictures, and of the derivatives by the responses of the filters there.

use faer::{Accum, MatRef};
use rayon::prelude::*;

use crate::analysis::evaluate::Group;
use crate::classify::head::{Head, Kind as HeadKind};
use crate::dataset::available_memory;
use crate::error::{Error, Result};
use crate::geometry::StageShape;
use crate::kernels::{Rows, product};
use crate::network::Network;
use crate::network::preprocess::Inputs;

/// Learning rates of the groups of weights; 0 leaves a group out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Of encoders.
    pub network: f64,
    /// Of the head's weights and biases.
    pub head: f64,
}

/// A tangent kernel between some pictures and the first of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Tangent {
    /// Classes.
    pub classes: usize,
    /// Pictures of the rows.
    pub rows: usize,
    /// Pictures of the columns: the first of those of the rows.
    pub cols: usize,
    /// `[picture, class, picture, class]`.
    pub values: Vec<f64>,
    /// Share of the trace, over the pictures of the columns, that comes from the head's weights.
    pub head_share: f64,
    /// The classes' numbers of all pictures, `[picture, class]`.
    pub numbers: Vec<f32>,
}

/// What one stage contributes.
struct Sides {
    shape: StageShape,
    /// What it takes, `[row, column, channel, picture]`.
    input: Vec<f32>,
    /// Derivatives by its filters' responses, `[row, column, map, picture, class]`.
    derivatives: Vec<f32>,
}

/// Pictures whose rows are made together: as many rows as stay in the cache with the kernel's columns.
const TOGETHER: usize = 16;

impl Sides {
    /// Adds the stage's part to the rows of pictures from `first` on.
    fn add(
        &self,
        (rows, cols, classes): (usize, usize, usize),
        rate: f64,
        first: usize,
        values: &mut [f64],
        (seen, products): (&mut Vec<f32>, &mut Vec<f32>),
    ) {
        let StageShape { input, filtered, field, stride, origin, .. } = self.shape;
        let (wide, narrow) = (rows * classes, cols * classes);
        let count = values.len() / (classes * narrow);
        seen.resize(count * cols, 0.0);
        products.resize(count * classes * narrow, 0.0);
        let taps = field * input.channels;
        for position in 0..filtered.rows * filtered.cols {
            let (row, col) = (position / filtered.cols, position % filtered.cols);
            seen.fill(0.0);
            for dy in 0..field {
                let place =
                    ((origin.0 + row * stride + dy) * input.cols + origin.1 + col * stride) * input.channels;
                let part =
                    MatRef::from_row_major_slice(&self.input[place * rows..][..taps * rows], taps, rows);
                let own = part.subcols(first, count).transpose();
                product(seen, (count, cols), Accum::Add, own, part.subcols(0, cols));
            }
            let maps = filtered.channels;
            let derivatives = &self.derivatives[position * maps * wide..][..maps * wide];
            let derivatives = MatRef::from_row_major_slice(derivatives, maps, wide);
            let own = derivatives.subcols(first * classes, count * classes).transpose();
            let size = (count * classes, narrow);
            product(products, size, Accum::Replace, own, derivatives.subcols(0, narrow));
            let each = values.chunks_exact_mut(narrow).zip(products.chunks_exact(narrow)).enumerate();
            for (row, (values, products)) in each {
                let seen = &seen[row / classes * cols..][..cols];
                let pairs = values.chunks_exact_mut(classes).zip(products.chunks_exact(classes)).zip(seen);
                pairs.for_each(|((values, products), &seen)| {
                    values.iter_mut().zip(products).for_each(|(sum, x)| *sum += rate * f64::from(seen * x));
                });
            }
        }
    }
}

/// Copies the lanes of `count` pictures of maps `[place, lane]` to those from `first` on of `[place, picture, class]`.
fn put(
    maps: &[f32],
    lanes: usize,
    out: &mut [f32],
    (pictures, classes): (usize, usize),
    (first, count, class): (usize, usize, usize),
) {
    let places = maps.par_chunks_exact(lanes).zip(out.par_chunks_exact_mut(pictures * classes));
    places.for_each(|(lanes, out)| {
        let out = out[first * classes + class..].iter_mut().step_by(classes);
        out.zip(&lanes[..count]).for_each(|(out, &value)| *out = value);
    });
}

/// The kernel of all pictures of `inputs` with the first `cols` of them. The head is on the values `group` of the network; what it
/// sees are its standardised values.
///
/// # Errors
/// The head has attention, or there is not enough memory.
pub fn tangent(
    network: &Network,
    head: &mut Head,
    group: Group,
    inputs: &Inputs,
    cols: usize,
    rates: Rates,
) -> Result<Tangent> {
    if let HeadKind::Attention(_) = head.kind {
        let (key, got) = ("--head".into(), "attention".into());
        return Err(Error::Setting {
            key,
            got,
            want: "full or mean: the kernel of attention is not made".into(),
        });
    }
    let (Group { stage, kind }, rows, classes) = (group, inputs.len(), head.classes);
    assert!((1..=rows).contains(&cols), "columns are the first of the rows");
    let (wide, narrow) = (rows * classes, cols * classes);
    let stages: Vec<StageShape> = network.stages[..=stage].iter().map(|stage| stage.shape).collect();
    let of_stage = |shape: &StageShape| 4 * (shape.input.len() * rows + shape.filtered.len() * wide);
    let of_stages = if rates.network > 0.0 { stages.iter().map(of_stage).sum() } else { 0 };
    let need_bytes = (of_stages + 4 * head.parameters[0].inputs * rows + 8 * wide * narrow) as u64;
    let have_bytes = available_memory();
    if need_bytes > have_bytes {
        let what = format!("the tangent kernel of {rows} pictures and {classes} classes");
        return Err(Error::NoRoom { what, need_bytes, have_bytes });
    }
    let sides = |shape: StageShape| Sides {
        shape,
        input: vec![0.0; shape.input.len() * rows],
        derivatives: vec![0.0; shape.filtered.len() * wide],
    };
    let mut sides: Vec<Sides> = match rates.network > 0.0 {
        true => stages.into_iter().map(sides).collect(),
        false => Vec::new(),
    };
    let mut work = network.workspace(rows.min(64)).with_rows(Rows::Shared);
    let (lanes, batch) = (work.lanes, work.pictures);
    let mut seen = vec![0.0; head.parameters[0].inputs * rows];
    let mut numbers = vec![0.0; wide];
    let pictures: Vec<usize> = (0..rows).collect();
    for (first, some) in (0..rows).step_by(batch).zip(pictures.chunks(batch)) {
        inputs.load(some, &mut work);
        network.forward_to(&mut work, stage, kind);
        let of_classes = head.forward(work.maps(stage, kind), lanes);
        for (class, of_class) in of_classes.chunks_exact(lanes).enumerate() {
            put(of_class, lanes, &mut numbers, (rows, classes), (first, some.len(), class));
        }
        put(head.seen(), lanes, &mut seen, (rows, 1), (first, some.len(), 0));
        if sides.is_empty() {
            continue;
        }
        for class in 0..classes {
            let seed = |work: &mut crate::network::Workspace| {
                head.derivative(class, lanes, work.seeds(stage, kind));
            };
            network.gradient_by(&mut work, (stage, kind), seed, |index, input, derivatives| {
                let side = &mut sides[index];
                if class == 0 {
                    put(input, lanes, &mut side.input, (rows, 1), (first, some.len(), 0));
                }
                let at = (first, some.len(), class);
                put(derivatives, lanes, &mut side.derivatives, (rows, classes), at);
            });
        }
    }
    let mut values = vec![0.0; wide * narrow];
    let block = TOGETHER * classes * narrow;
    let trace: f64 = values
        .par_chunks_mut(block)
        .enumerate()
        .map_init(
            || (Vec::new(), Vec::new()),
            |(fields, products), (number, values)| {
                let first = number * TOGETHER;
                let of_head = add_head(&seen, (rows, cols, classes), rates.head, first, (values, fields));
                for side in &sides {
                    side.add((rows, cols, classes), rates.network, first, values, (fields, products));
                }
                of_head
            },
        )
        .collect::<Vec<f64>>()
        .into_iter()
        .sum();
    let all: f64 = (0..narrow).map(|at| values[at * narrow + at]).sum();
    Ok(Tangent { classes, rows, cols, values, head_share: trace / all.max(f64::MIN_POSITIVE), numbers })
}

/// Adds the head's part, which is the same for every class and nothing between two; returns what it adds to the trace.
fn add_head(
    seen: &[f32],
    (rows, cols, classes): (usize, usize, usize),
    rate: f64,
    first: usize,
    (values, products): (&mut [f64], &mut Vec<f32>),
) -> f64 {
    let (inputs, narrow) = (seen.len() / rows, cols * classes);
    let count = values.len() / (classes * narrow);
    products.resize(count * cols, 0.0);
    let seen = MatRef::from_row_major_slice(seen, inputs, rows);
    let own = seen.subcols(first, count).transpose();
    product(products, (count, cols), Accum::Replace, own, seen.subcols(0, cols));
    let mut trace = 0.0;
    for (row, values) in values.chunks_exact_mut(narrow).enumerate() {
        let (picture, class) = (row / classes, row % classes);
        for (other, &product) in products[picture * cols..][..cols].iter().enumerate() {
            // One more for the bias.
            let part = rate * (f64::from(product) + 1.0);
            values[other * classes + class] += part;
            trace += if first + picture == other { part } else { 0.0 };
        }
    }
    trace
}

#[cfg(test)]
mod tests;
