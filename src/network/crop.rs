//! The part of a network that the units of one position see.
//!
//! A top unit of the paper's network sees 88x88 of 200x200 pixels, so a search for its preferred picture needs a tenth of the
//! network. The part is exact: it has the unit's whole support, and maps end where those of the network end.

use super::{Network, Stage, Unit};
use crate::geometry::{Kind, MapShape, Part, needed};

/// A network of its own with copies of the encoder's filters that the units of one position depend on.
pub struct Crop {
    /// It. Its last stage is that of the units. It can only encode.
    pub network: Network,
    /// What it sees of the picture.
    pub picture: Part,
    /// Where its maps of the wanted kind begin in those of the whole network's stage.
    first: (usize, usize),
}

impl Crop {
    /// The part of `network` that the values `kind` of the units at `(row, col)` of `stage` (from 0) depend on.
    pub fn new(network: &Network, stage: usize, kind: Kind, row: usize, col: usize) -> Crop {
        let shapes: Vec<_> = network.stages[..=stage].iter().map(|stage| stage.shape).collect();
        let parts = needed(&shapes, kind, row, col);
        let size = |channels: usize, part: &Part| MapShape {
            channels,
            rows: part.rows.len(),
            cols: part.cols.len(),
        };
        let picture = parts[0].input.clone();
        let mut below = picture.clone();
        let mut stages = Vec::new();
        for (whole, part) in network.stages.iter().zip(&parts) {
            let (mut shape, maps) = (whole.shape, whole.shape.filtered.channels);
            shape.origin =
                (part.input.rows.start - below.rows.start, part.input.cols.start - below.cols.start);
            shape.input = size(shape.input.channels, &below);
            shape.filtered = size(maps, &part.filtered);
            shape.pooled = size(maps, &part.pooled);
            if stages.len() == stage && kind != Kind::Y {
                shape.lcn = 0;
            }
            let filters = whole.part(shape, (part.filtered.rows.start, part.filtered.cols.start));
            stages.push(Stage::with_filters(whole.number, shape, whole.settings.clone(), filters));
            below = part.pooled.clone();
        }
        let last = parts.last().expect("at least one stage");
        let maps = if kind == Kind::A { &last.filtered } else { &last.pooled };
        let first = (maps.rows.start, maps.cols.start);
        Crop { network: Network { cpu: network.cpu, input: stages[0].shape.input, stages }, picture, first }
    }

    /// The unit of the crop that is this unit of the whole network.
    pub fn unit(&self, unit: Unit) -> Unit {
        Unit { map: unit.map, row: unit.row - self.first.0, col: unit.col - self.first.1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use crate::rng;
    use ndarray::{Array4, s};
    use ndarray_rand::rand_distr::{Distribution, StandardNormal};

    #[test]
    fn a_crop_gives_the_same_values_and_gradients_as_the_whole() {
        let network = |border: &str| {
            let text = format!(
                "[input]\nchannels = 3\nheight = 41\nwidth = 37\npreprocess = \"none\"\n[[stages]]\nmaps = 3\nfield = 5\n\
                 stride = 2\npool = 3\nlcn = 3\nlcn_border = \"{border}\"\n[[stages]]\nmaps = 4\nfield = 4\npool = 3\n\
                 pool_stride = 2\nlcn = 5\nlcn_border = \"{border}\"\n[training]\nsteps = [1, 1]\n"
            );
            Network::new(&RunConfig::parse(&text, &[]).unwrap(), 4).unwrap()
        };
        let mut rng = rng::stream(3, "crop", 0);
        let pictures =
            Array4::<f32>::from_shape_simple_fn((3, 3, 41, 37), || StandardNormal.sample(&mut rng));
        let mut cut = 0;
        for network in [network("renorm"), network("zero")] {
            let mut whole = network.workspace(3);
            whole.load(pictures.view());
            network.forward(&mut whole, 1);
            for (stage, kind) in
                [(0, Kind::A), (0, Kind::H), (0, Kind::Y), (1, Kind::A), (1, Kind::H), (1, Kind::Y)]
            {
                let units = network.units(stage, kind);
                for &unit in units.iter().step_by(units.len() / 13) {
                    let crop = Crop::new(&network, stage, kind, unit.row, unit.col);
                    let part = crop.picture.clone();
                    let mut work = crop.network.workspace(3);
                    let seen = pictures.slice(s![.., .., part.rows.clone(), part.cols.clone()]);
                    work.load(seen);
                    crop.network.forward_to(&mut work, stage, kind);
                    let got = work.unit_values(&crop.network, stage, kind, crop.unit(unit)).to_vec();
                    assert_eq!(
                        got,
                        whole.unit_values(&network, stage, kind, unit),
                        "{stage} {kind:?} {unit:?}"
                    );

                    network.input_gradient(&mut whole, stage, kind, &[unit; 3]);
                    let wanted = whole.unpack(&whole.input_gradient, network.input);
                    crop.network.input_gradient(&mut work, stage, kind, &[crop.unit(unit); 3]);
                    let got = work.unpack(&work.input_gradient, crop.network.input);
                    let seen = wanted.slice(s![.., .., part.rows.clone(), part.cols.clone()]);
                    let largest = wanted.iter().fold(0f32, |max, g| max.max(g.abs()));
                    let off = (&got - &seen).iter().fold(0f32, |max, d| max.max(d.abs()));
                    assert!(off <= 1e-5 * largest, "{stage} {kind:?} {unit:?}: off by {off} of {largest}");
                    // What lies outside has no part in it.
                    let square = |x: ndarray::ArrayView4<f32>| x.iter().map(|x| x * x).sum::<f32>();
                    assert!((square(seen) - square(wanted.view())).abs() <= 1e-6 * square(wanted.view()));
                    cut += usize::from(crop.network.input.len() < network.input.len());
                }
            }
        }
        assert!(cut > 80, "only {cut} crops were smaller than the picture");
    }
}
