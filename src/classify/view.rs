//! What of a network a read-out sees: the units of some stages, each by itself or as means over parts of its map; or the pixels.

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::analysis::evaluate::Group;
use crate::analysis::features::{Forward, stream_by};
use crate::dataset::available_memory;
use crate::error::{Error, Result};
use crate::geometry::{Kind, MapShape};
use crate::network::preprocess::Inputs;
use crate::network::{Network, Unit, Workspace};

/// Which numbers stand for a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Of what.
    pub of: Of,
    /// Each map as means over `grid` x `grid` parts of it; all its positions without.
    pub grid: Option<usize>,
}

/// What numbers are read off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Of {
    /// The picture as the network takes it: whitened pixels.
    Pixels,
    /// Values of units.
    Units(Vec<Group>),
}

impl View {
    /// Refuses stages that the network does not have, and parts that its maps are too small for.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self, network: &Network) -> Result<()> {
        let Some(grid) = self.grid else { return Ok(()) };
        let smallest = self.shapes(network).iter().map(|shape| shape.rows.min(shape.cols)).min();
        let smallest = smallest.expect("something is looked at");
        if !(1..=smallest).contains(&grid) {
            let (key, got) = ("--grid".into(), grid.to_string());
            let want = format!("1 to {smallest}: the smallest map has {smallest} rows or columns");
            return Err(Error::Setting { key, got, want });
        }
        Ok(())
    }

    /// Maps that are looked at.
    fn shapes(&self, network: &Network) -> Vec<MapShape> {
        match &self.of {
            Of::Pixels => vec![network.input],
            Of::Units(groups) => groups.iter().map(|group| network.shape(group.stage, group.kind)).collect(),
        }
    }

    /// Numbers for each picture.
    pub fn width(&self, network: &Network) -> usize {
        let of = |shape: &MapShape| self.grid.map_or(shape.len(), |grid| shape.channels * grid * grid);
        self.shapes(network).iter().map(of).sum()
    }

    /// The numbers of some pictures, `[picture, number]`: group after group, map after map, row after row. `progress` is told of pictures
    /// done.
    ///
    /// # Errors
    /// [`Error::NoRoom`].
    pub fn features(
        &self,
        network: &Network,
        inputs: &Inputs,
        pictures: &[usize],
        progress: impl Fn(usize),
    ) -> Result<Array2<f32>> {
        let width = self.width(network);
        let (need_bytes, have_bytes) = (4 * (pictures.len() * width) as u64, available_memory());
        if need_bytes > have_bytes {
            let what = format!("{width} numbers of each of {} pictures (fewer with --grid)", pictures.len());
            return Err(Error::NoRoom { what, need_bytes, have_bytes });
        }
        let mut values = Vec::with_capacity(pictures.len() * width);
        match &self.of {
            Of::Pixels => {
                let mut row = vec![0.0; width];
                for &picture in pictures {
                    let pixels = inputs.picture(picture);
                    let value = |c: usize, y: usize, x: usize| pixels[[c, y, x]];
                    match self.grid {
                        None => values.extend(pixels.iter()),
                        Some(grid) => {
                            means(network.input, grid, value, |at, mean| row[at] = mean);
                            values.extend_from_slice(&row);
                        }
                    }
                    progress(1);
                }
            }
            Of::Units(groups) => {
                let top = groups.iter().map(|group| group.stage).max().expect("a stage");
                let forward = Forward { network, stage: top, kind: Kind::Y };
                let read = |work: &Workspace, rows: &mut [f32]| self.read(network, work, groups, rows);
                stream_by(forward, inputs, pictures, (width, read), |rows| {
                    values.extend_from_slice(rows);
                    progress(rows.len() / width);
                    Ok(true)
                })?;
            }
        }
        Ok(Array2::from_shape_vec((pictures.len(), width), values).expect("a row for each picture"))
    }

    /// The numbers of the pictures in a workspace.
    fn read(&self, network: &Network, work: &Workspace, groups: &[Group], rows: &mut [f32]) {
        let width = self.width(network);
        let mut first = 0;
        for &Group { stage, kind } in groups {
            let shape = network.shape(stage, kind);
            match self.grid {
                None => {
                    let units = shape.len();
                    let mut values = vec![0.0; work.pictures * units];
                    work.copy_values(network, stage, kind, &mut values);
                    for (row, values) in rows.chunks_exact_mut(width).zip(values.chunks_exact(units)) {
                        row[first..first + units].copy_from_slice(values);
                    }
                    first += units;
                }
                Some(grid) => {
                    for picture in 0..work.pictures {
                        let value = |map: usize, row: usize, col: usize| {
                            work.unit_values(network, stage, kind, Unit { map, row, col })[picture]
                        };
                        let row = &mut rows[picture * width + first..];
                        means(shape, grid, value, |at, mean| row[at] = mean);
                    }
                    first += shape.channels * grid * grid;
                }
            }
        }
    }
}

/// The mean of each map over each of `grid` x `grid` parts.
fn means(
    shape: MapShape,
    grid: usize,
    value: impl Fn(usize, usize, usize) -> f32,
    mut put: impl FnMut(usize, f32),
) {
    let part = |number: usize, all: usize| number * all / grid..(number + 1) * all / grid;
    for map in 0..shape.channels {
        for cell in 0..grid * grid {
            let (rows, cols) = (part(cell / grid, shape.rows), part(cell % grid, shape.cols));
            let count = (rows.len() * cols.len()) as f32;
            let sum: f32 = rows
                .flat_map(|row| cols.clone().map(move |col| (row, col)))
                .map(|(row, col)| value(map, row, col))
                .sum();
            put(map * grid * grid + cell, sum / count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use crate::dataset::Dataset;
    use crate::network::preprocess::{Transform, Whitening};
    use crate::rng;
    use rand::Rng;

    #[test]
    fn a_view_has_every_value_or_its_mean_over_parts_of_the_map() {
        let text = "[input]\nheight = 12\nwidth = 10\npreprocess = \"contrast\"\n[[stages]]\nmaps = 3\nfield = 4\npool = 2\nlcn = 3\n\
                    [[stages]]\nmaps = 2\nfield = 3\npool = 2\nlcn = 3\n[training]\nsteps = [1, 1]\n";
        let network = Network::new(&RunConfig::parse(text, &[]).unwrap(), 4).unwrap();
        let whitening = Whitening { shape: network.input, transform: Transform::Contrast { scale: 1.0 } };
        let mut rng = rng::stream(7, "view", 0);
        let frames = Dataset::from_pixels(network.input, (0..130 * 120).map(|_| rng.random()).collect());
        let inputs = Inputs::new(&frames, &whitening, 0);
        let groups = vec![Group { stage: 0, kind: Kind::H }, Group { stage: 1, kind: Kind::Y }];
        let (pictures, mut work) = ([5, 129, 3], network.workspace(3));
        inputs.load(&pictures, &mut work);
        network.forward(&mut work, 1);
        let (low, high) = (work.values(&network, 0, Kind::H), work.values(&network, 1, Kind::Y));
        let of = |grid| View { of: Of::Units(groups.clone()), grid };
        let all = of(None).features(&network, &inputs, &pictures, |_| ()).unwrap();
        let wanted: Vec<f32> = (0..3)
            .flat_map(|n| {
                low.index_axis(ndarray::Axis(0), n)
                    .iter()
                    .chain(high.index_axis(ndarray::Axis(0), n).iter())
                    .copied()
                    .collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(all.as_slice().unwrap(), wanted);
        let (first, cells) = (3 * 8 * 6, of(Some(2)).features(&network, &inputs, &pictures, |_| ()).unwrap());
        assert_eq!((all.ncols(), cells.ncols()), (first + 2 * 5 * 3, 5 * 4));
        for picture in 0..3 {
            // The lower right part of the second map below, and of the first above: rows 2 to 5 of 5, columns 1 to 3 of 3.
            let low = low.slice(ndarray::s![picture, 1, 4..8, 3..6]).mean().unwrap();
            let high = high.slice(ndarray::s![picture, 0, 2..5, 1..3]).mean().unwrap();
            let near = |x: f32, want: f32| assert!((x - want).abs() < 1e-6, "{x}, not {want}");
            near(cells[[picture, 4 + 3]], low);
            near(cells[[picture, 3 * 4 + 3]], high);
        }
        assert!(
            of(Some(4)).check(&network).unwrap_err().to_string().contains("`--grid` is 4, expected 1 to 3")
        );
        let pixels =
            View { of: Of::Pixels, grid: None }.features(&network, &inputs, &pictures, |_| ()).unwrap();
        assert_eq!(pixels.row(1).to_vec(), inputs.picture(129).iter().copied().collect::<Vec<_>>());
    }
}
