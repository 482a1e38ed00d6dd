//! Shapes of maps, and what a unit sees of the picture.
//!
//! Everything is valid (no padding) and rounds down: rows and columns at the bottom or right that no receptive
//! field covers are seen by nobody.

use std::fmt;
use std::ops::Range;

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Size of a stack of maps: `channels` maps of `rows` x `cols` positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapShape {
    /// Maps; colour channels at the input.
    pub channels: usize,
    /// Height in positions.
    pub rows: usize,
    /// Width in positions.
    pub cols: usize,
}

impl MapShape {
    /// The same channels with `margin` more rows and columns.
    pub fn with_margin(self, margin: usize) -> MapShape {
        MapShape { rows: self.rows + margin, cols: self.cols + margin, ..self }
    }

    /// Values in the whole stack.
    pub fn len(&self) -> usize {
        self.channels * self.rows * self.cols
    }

    /// Values in a row of the stack: all its columns and channels.
    pub fn row_len(&self) -> usize {
        self.cols * self.channels
    }

    /// Number of a value in the order in which stacks lie in memory: row, column, channel.
    pub fn place(&self, channel: usize, row: usize, col: usize) -> usize {
        (row * self.cols + col) * self.channels + channel
    }

    /// True for a stack without a value, which no checked network has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Sizes and windows of one stage (paper §3): simple units filter, complex units pool, then contrast is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StageShape {
    /// The stage's input: the picture, or the output of the stage below.
    pub input: MapShape,
    /// Simple units (filtering).
    pub filtered: MapShape,
    /// Complex units (L2 pooling); the stage's output has the same size.
    pub pooled: MapShape,
    /// Side of a receptive field, in input positions.
    pub field: usize,
    /// Step from one receptive field to the next.
    pub stride: usize,
    /// Side of a pooling window, in filtered positions.
    pub pool: usize,
    /// Step from one pooling window to the next.
    pub pool_stride: usize,
    /// Side of the contrast-normalisation window; 0 for none.
    pub lcn: usize,
    /// Row and column of the input where the first receptive field begins: 0 but in a part of a stage, see
    /// [`needed`].
    #[serde(skip)]
    pub origin: (usize, usize),
}

/// The windows of a stage before its input size is known.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    /// Output maps.
    pub maps: usize,
    /// See [`StageShape::field`].
    pub field: usize,
    /// See [`StageShape::stride`].
    pub stride: usize,
    /// See [`StageShape::pool`].
    pub pool: usize,
    /// See [`StageShape::pool_stride`].
    pub pool_stride: usize,
    /// See [`StageShape::lcn`].
    pub lcn: usize,
}

impl StageShape {
    /// Works out the sizes of stage `number` (from 1) on `input`.
    ///
    /// # Errors
    /// [`Error::FieldTooLarge`] if a receptive field or pooling window is larger than the map it looks at.
    pub fn new(number: usize, input: MapShape, windows: Windows) -> Result<StageShape> {
        let Windows { maps, field, stride, pool, pool_stride, lcn } = windows;
        let slide = |what, rows: usize, cols: usize, size: usize, step: usize| {
            if size > rows || size > cols {
                return Err(Error::FieldTooLarge { stage: number, what, size, rows, cols });
            }
            Ok(MapShape { channels: maps, rows: (rows - size) / step + 1, cols: (cols - size) / step + 1 })
        };
        let filtered = slide("receptive field", input.rows, input.cols, field, stride)?;
        let pooled = slide("pooling window", filtered.rows, filtered.cols, pool, pool_stride)?;
        Ok(StageShape { input, filtered, pooled, field, stride, pool, pool_stride, lcn, origin: (0, 0) })
    }

    /// Weights of one simple unit: input maps x field x field.
    pub fn taps(&self) -> usize {
        self.input.channels * self.field * self.field
    }

    /// Positions of receptive fields; each has its own filters.
    pub fn positions(&self) -> usize {
        self.filtered.rows * self.filtered.cols
    }

    /// Connections of the encoder; the decoder has as many again.
    pub fn connections(&self) -> u64 {
        self.filtered.len() as u64 * self.taps() as u64
    }

    /// Number of receptive fields that cover each input row (`along_rows`) or column.
    pub fn coverage(&self, along_rows: bool) -> Vec<usize> {
        let (length, fields) = match along_rows {
            true => (self.input.rows, self.filtered.rows),
            false => (self.input.cols, self.filtered.cols),
        };
        let mut count = vec![0; length];
        for field in 0..fields {
            count[field * self.stride..][..self.field].iter_mut().for_each(|n| *n += 1);
        }
        count
    }
}

/// Which value of a unit: the three sublayers of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Simple unit: response of the filter.
    A,
    /// Complex unit: pooled response.
    H,
    /// Contrast-normalised pooled response, what the next stage sees.
    Y,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Kind::A => "a",
            Kind::H => "h",
            Kind::Y => "y",
        })
    }
}

/// What the units of a stage see of the picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Support {
    /// By filtering and pooling alone, as the paper counts.
    pub pooling_only: usize,
    /// Exact for the pooled value `h`: contrast normalisation of the stages below included.
    pub h: usize,
    /// Exact for the normalised value `y`.
    pub y: usize,
    /// Distance in pixels between the fields of neighbouring units.
    pub step: usize,
}

/// The support of each stage's units (side of a square, before clipping at the picture's border).
pub fn supports(stages: &[StageShape]) -> Vec<Support> {
    let (mut plain, mut exact, mut step) = (1, 1, 1);
    stages
        .iter()
        .map(|s| {
            let filter = (s.field - 1) * step;
            step *= s.stride;
            let pool = (s.pool - 1) * step;
            step *= s.pool_stride;
            plain += filter + pool;
            let h = exact + filter + pool;
            // y depends on h through the deviation of g, and g on h through the local mean: two windows.
            exact = h + 2 * (s.lcn / 2) * 2 * step;
            Support { pooling_only: plain, h, y: exact, step }
        })
        .collect()
}

/// The parts of a stage's maps that something depends on: rows and columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Rows.
    pub rows: Range<usize>,
    /// Columns.
    pub cols: Range<usize>,
}

/// What the units of one position need: the parts of a stage's three kinds of maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// Of the stage's input.
    pub input: Part,
    /// Of the simple units.
    pub filtered: Part,
    /// Of the complex units. Those at its edge serve the contrast normalisation of others only, so the stage above needs less.
    pub pooled: Part,
}

/// What the value `kind` of the units at one position of the last of `stages` depends on, in each stage; exact, and cut off where
/// maps end. The first stage's input is the part of the picture.
pub fn needed(stages: &[StageShape], kind: Kind, row: usize, col: usize) -> Vec<Needed> {
    let mut wanted = Part { rows: row..row + 1, cols: col..col + 1 };
    let mut parts = Vec::new();
    for (index, s) in stages.iter().enumerate().rev() {
        let kind = if index + 1 == stages.len() { kind } else { Kind::Y };
        // The deviation at a place needs the means around it, and each of those what is around it.
        let reach = if kind == Kind::Y { 2 * (s.lcn / 2) } else { 0 };
        let around = |r: &Range<usize>, len: usize| r.start.saturating_sub(reach)..(r.end + reach).min(len);
        let below = |r: &Range<usize>, step: usize, size: usize| r.start * step..(r.end - 1) * step + size;
        let each = |part: &Part, f: &dyn Fn(&Range<usize>) -> Range<usize>| Part {
            rows: f(&part.rows),
            cols: f(&part.cols),
        };
        let (pooled, filtered) = if kind == Kind::A {
            (Part { rows: 0..0, cols: 0..0 }, wanted)
        } else {
            let pooled =
                Part { rows: around(&wanted.rows, s.pooled.rows), cols: around(&wanted.cols, s.pooled.cols) };
            let filtered = each(&pooled, &|r| below(r, s.pool_stride, s.pool));
            (pooled, filtered)
        };
        let input = each(&filtered, &|r| below(r, s.stride, s.field));
        wanted = input.clone();
        parts.push(Needed { input, filtered, pooled });
    }
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper() -> Vec<StageShape> {
        let windows = Windows { maps: 8, field: 18, stride: 1, pool: 5, pool_stride: 1, lcn: 5 };
        let mut input = MapShape { channels: 3, rows: 200, cols: 200 };
        (1..=3)
            .map(|number| {
                let stage = StageShape::new(number, input, windows).unwrap();
                input = stage.pooled;
                stage
            })
            .collect()
    }

    #[test]
    fn the_papers_network_has_1_217_billion_connections() {
        let connections: Vec<u64> = paper().iter().map(StageShape::connections).collect();
        assert_eq!(connections, [260_410_464, 544_195_584, 412_252_416]);
    }

    #[test]
    fn a_top_unit_of_the_paper_sees_64_pixels_and_88_through_normalisation() {
        let top = supports(&paper())[2];
        assert_eq!((top.pooling_only, top.h, top.y, top.step), (64, 80, 88, 1));
    }

    #[test]
    fn what_a_unit_needs_agrees_with_its_support_inside_and_is_cut_off_at_the_border() {
        let stages = paper();
        for (count, kind) in [(1, Kind::H), (1, Kind::Y), (2, Kind::Y), (3, Kind::H), (3, Kind::Y)] {
            let support = supports(&stages)[count - 1];
            let side = if kind == Kind::H { support.h } else { support.y };
            let picture = &needed(&stages[..count], kind, 60, 70)[0].input;
            assert_eq!((picture.rows.len(), picture.cols.len()), (side, side), "{count} {kind:?}");
        }
        let corner = &needed(&stages, Kind::Y, 0, 136)[0].input;
        assert_eq!((corner.rows.clone(), corner.cols.end), (0..76, 200));
        let simple = &needed(&stages[..1], Kind::A, 3, 182)[0];
        assert_eq!(simple.input, Part { rows: 3..21, cols: 182..200 });
    }

    #[test]
    fn coverage_counts_the_uncovered_row() {
        let windows = Windows { maps: 2, field: 5, stride: 2, pool: 2, pool_stride: 1, lcn: 5 };
        let stage = StageShape::new(1, MapShape { channels: 3, rows: 18, cols: 15 }, windows).unwrap();
        assert_eq!(stage.coverage(true).last(), Some(&0));
        assert_eq!(stage.coverage(true).iter().sum::<usize>(), 7 * 5);
    }

    #[test]
    fn a_field_larger_than_its_map_is_refused_by_stage() {
        let windows = Windows { maps: 1, field: 9, stride: 1, pool: 1, pool_stride: 1, lcn: 0 };
        let error = StageShape::new(2, MapShape { channels: 1, rows: 8, cols: 20 }, windows).unwrap_err();
        assert_eq!(error.to_string(), "stage 2: a 9x9 receptive field does not fit a 8x20 map");
    }
}
