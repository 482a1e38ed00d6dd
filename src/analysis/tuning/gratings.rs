//! Gratings and bars, the pictures with which tuning is measured (Hubel and Wiesel 1962; Skottun et al. 1991).
//!
//! An orientation is that of the stripes, in degrees from 0 (horizontal) to 180, counter-clockwise as one sees it: 90 is
//! vertical. Positions are measured across the stripes from the middle of the picture, in pixels, towards the orientation
//! plus 90 degrees: upwards for horizontal stripes, to the left for vertical ones.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::geometry::MapShape;

/// The level of the uniform picture that gives the resting value, and the mean of gratings.
pub const GREY: u8 = 128;

/// The highest frequency, in cycles per pixel: the Nyquist limit over `√2`, which pixels still show at every phase.
const HIGHEST: f64 = 0.5 * std::f64::consts::FRAC_1_SQRT_2;

/// Smallest side of a picture for which gratings make sense, in pixels.
const SMALLEST: usize = 8;

/// How finely tuning is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Density {
    /// Orientations over 180 degrees.
    pub orientations: usize,
    /// Spatial frequencies.
    pub frequencies: usize,
    /// Phases of each grating.
    pub phases: usize,
    /// Positions of the bars.
    pub positions: usize,
}

/// Everything that is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// Orientations, in degrees.
    pub orientations_deg: Vec<f64>,
    /// Frequencies in cycles per pixel, from one cycle per picture, in equal steps of octaves.
    pub frequencies_per_px: Vec<f64>,
    /// Phases, in degrees.
    pub phases_deg: Vec<f64>,
    /// Positions of bars across their orientation, in pixels from the middle.
    pub bar_positions_px: Vec<f64>,
    /// Width of the bars, in pixels.
    pub bar_width_px: f64,
}

impl Grid {
    /// Stimuli for pictures of this shape.
    ///
    /// # Errors
    /// A density that nothing can be fitted to, or pictures smaller than 8 pixels a side.
    pub fn new(shape: MapShape, density: &Density) -> Result<Grid> {
        let Density { orientations, frequencies, phases, positions } = *density;
        for (key, got, least, most) in [
            ("--orientations", orientations, 4, 180),
            ("--frequencies", frequencies, 3, 64),
            ("--phases", phases, 4, 64),
            ("--positions", positions, 4, 1024),
        ] {
            if !(least..=most).contains(&got) {
                let want = format!("a whole number from {least} to {most}");
                return Err(Error::Setting { key: key.into(), got: got.to_string(), want });
            }
        }
        if shape.rows.min(shape.cols) < SMALLEST {
            let (rows, cols) = (shape.rows, shape.cols);
            let problem = format!(
                "pictures of {cols}x{rows} are too small for gratings: {SMALLEST} pixels a side at least"
            );
            return Err(Error::Mismatch(problem));
        }
        let side = shape.rows.max(shape.cols) as f64;
        let octaves = (HIGHEST * side).log2();
        let steps = |count: usize| (0..count).map(move |at| at as f64 / count as f64);
        let frequency = |at: usize| (octaves * at as f64 / (frequencies - 1) as f64).exp2() / side;
        let half_step = 0.5 / positions as f64;
        Ok(Grid {
            orientations_deg: steps(orientations).map(|part| 180.0 * part).collect(),
            frequencies_per_px: (0..frequencies).map(frequency).collect(),
            phases_deg: steps(phases).map(|part| 360.0 * part).collect(),
            bar_positions_px: steps(positions).map(|part| side * (part + half_step - 0.5)).collect(),
            bar_width_px: (side / 16.0).max(1.5),
        })
    }

    /// Number of pairs of orientation and frequency.
    pub fn conditions(&self) -> usize {
        self.orientations_deg.len() * self.frequencies_per_px.len()
    }

    /// Orientation and frequency of a pair, as places in their lists.
    pub fn condition(&self, number: usize) -> (usize, usize) {
        (number / self.frequencies_per_px.len(), number % self.frequencies_per_px.len())
    }

    /// Step from one frequency to the next, in octaves.
    pub fn octave_step(&self) -> f64 {
        (self.frequencies_per_px[1] / self.frequencies_per_px[0]).log2()
    }
}

/// A sinusoidal grating of full contrast: `½ + ½ cos(2π·frequency·position - phase)`.
#[derive(Debug, Clone, Copy)]
pub struct Grating {
    /// Orientation of its stripes, in degrees.
    pub orientation_deg: f64,
    /// Cycles per pixel.
    pub frequency_per_px: f64,
    /// Phase in the middle of the picture, in degrees.
    pub phase_deg: f64,
}

impl Grating {
    /// The picture, `[channel, row, column]`, grey in all channels.
    pub fn pixels(&self, shape: MapShape) -> Vec<u8> {
        let phase = self.phase_deg.to_radians();
        picture(shape, self.orientation_deg, |at| {
            0.5 + 0.5 * (TAU * self.frequency_per_px * at - phase).cos()
        })
    }
}

/// A long bar, white or black on grey, with edges one pixel wide.
#[derive(Debug, Clone, Copy)]
pub struct Bar {
    /// Its orientation, in degrees.
    pub orientation_deg: f64,
    /// Its middle across that, in pixels.
    pub position_px: f64,
    /// Its width, in pixels.
    pub width_px: f64,
    /// White or black.
    pub light: bool,
}

impl Bar {
    /// The picture, `[channel, row, column]`, grey in all channels.
    pub fn pixels(&self, shape: MapShape) -> Vec<u8> {
        let (ground, bar) = (f64::from(GREY) / 255.0, if self.light { 1.0 } else { 0.0 });
        let cover = |at: f64| (0.5 * (self.width_px + 1.0) - (at - self.position_px).abs()).clamp(0.0, 1.0);
        picture(shape, self.orientation_deg, |at| ground + (bar - ground) * cover(at))
    }
}

/// The uniform picture.
pub fn grey(shape: MapShape) -> Vec<u8> {
    vec![GREY; shape.len()]
}

/// Where the middle of a pixel lies across stripes of an orientation, in pixels from the middle of the picture.
pub fn position(shape: MapShape, orientation_deg: f64, row: usize, col: usize) -> f64 {
    let (sin, cos) = orientation_deg.to_radians().sin_cos();
    let from_middle = |at: usize, len: usize| at as f64 + 0.5 - len as f64 / 2.0;
    -sin * from_middle(col, shape.cols) - cos * from_middle(row, shape.rows)
}

fn picture(shape: MapShape, orientation_deg: f64, level: impl Fn(f64) -> f64) -> Vec<u8> {
    let rows = 0..shape.rows;
    let plane: Vec<u8> = rows
        .flat_map(|row| (0..shape.cols).map(move |col| (row, col)))
        .map(|(row, col)| (255.0 * level(position(shape, orientation_deg, row, col))).round() as u8)
        .collect();
    plane.repeat(shape.channels)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: MapShape = MapShape { channels: 1, rows: 16, cols: 24 };
    const DENSITY: Density = Density { orientations: 12, frequencies: 8, phases: 8, positions: 24 };

    fn at(pixels: &[u8], row: usize, col: usize) -> u8 {
        pixels[row * SHAPE.cols + col]
    }

    #[test]
    fn orientation_0_is_horizontal_and_turns_counter_clockwise() {
        let grating = |orientation_deg| Grating { orientation_deg, frequency_per_px: 0.125, phase_deg: 0.0 };
        let (flat, upright) = (grating(0.0).pixels(SHAPE), grating(90.0).pixels(SHAPE));
        for row in 1..16 {
            assert_eq!(at(&upright, row, 5), at(&upright, 0, 5));
            assert_eq!(at(&flat, row, 0), at(&flat, row, 23));
        }
        assert!(at(&flat, 0, 0) != at(&flat, 2, 0) && at(&upright, 0, 0) != at(&upright, 0, 2));
        // At 45 degrees a stripe rises to the right.
        let rising = grating(45.0).pixels(SHAPE);
        assert_eq!(at(&rising, 10, 4), at(&rising, 6, 8));
        assert_ne!(at(&rising, 10, 4), at(&rising, 14, 8));
    }

    #[test]
    fn a_bar_lies_where_it_is_said_to_and_a_phase_moves_a_grating_the_same_way() {
        let bar = |orientation_deg| {
            Bar { orientation_deg, position_px: 5.5, width_px: 1.0, light: true }.pixels(SHAPE)
        };
        // 5.5 above the middle is the middle of row 2; as far to the left is that of column 6.
        assert!((0..24).all(|col| at(&bar(0.0), 2, col) == 255 && at(&bar(0.0), 4, col) == GREY));
        assert!((0..16).all(|row| at(&bar(90.0), row, 6) == 255 && at(&bar(90.0), row, 8) == GREY));
        let grating =
            Grating { orientation_deg: 0.0, frequency_per_px: 1.0 / 16.0, phase_deg: 5.5 / 16.0 * 360.0 };
        assert_eq!(at(&grating.pixels(SHAPE), 2, 3), 255);
    }

    #[test]
    fn the_grid_goes_from_one_cycle_a_picture_to_the_limit_in_equal_octaves() {
        let grid = Grid::new(SHAPE, &DENSITY).unwrap();
        let frequencies = &grid.frequencies_per_px;
        assert!((frequencies[0] - 1.0 / 24.0).abs() < 1e-12 && (frequencies[7] - HIGHEST).abs() < 1e-12);
        assert!(frequencies.windows(2).all(|f| ((f[1] / f[0]).log2() - grid.octave_step()).abs() < 1e-9));
        assert_eq!((grid.orientations_deg[1], grid.phases_deg[1], grid.conditions()), (15.0, 45.0, 96));
        let ends = grid.bar_positions_px[0] + 11.5..=grid.bar_positions_px[23] - 11.5;
        assert!(ends.start().abs() < 1e-9 && ends.end().abs() < 1e-9, "{ends:?}");
        let few = Grid::new(SHAPE, &Density { phases: 3, ..DENSITY }).unwrap_err();
        assert_eq!(few.to_string(), "setting `--phases` is 3, expected a whole number from 4 to 64");
        assert!(Grid::new(MapShape { rows: 7, ..SHAPE }, &DENSITY).unwrap_err().to_string().contains("24x7"));
    }
}
