//! `RUN/map`: a map of frames as JSON, their thumbnails on one sheet, and a picture of each map with the thumbnails in their places.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::imageops::{FilterType, replace, resize};
use image::{DynamicImage, Rgb, RgbImage};
use serde::{Deserialize, Serialize};

use super::data::Pictures;
use super::detectors::read_json;
use crate::analysis::map::{Layout, Map, Method, Neighbour};
use crate::dataset::{Dataset, resized};
use crate::error::{Error, Result};
use crate::files;
use crate::frames::PictureFormat;
use crate::geometry::MapShape;
use crate::picture::{pixel_tile, png};

/// Longest side of a thumbnail.
const THUMBNAIL_PX: usize = 64;

/// Quality of the sheet of thumbnails.
const JPEG_QUALITY: u8 = 85;

/// Width of the picture of a map.
const WIDTH_PX: u32 = 1600;

/// Free border of it.
const BORDER_PX: u32 = 16;

/// Share of the cells of the picture of a map that thumbnails take.
const FILLED: f64 = 0.5;

/// Side of a cell, at most: of few frames they would be mere pixels.
const CELL_PX: u32 = 96;

const BACKGROUND: Rgb<u8> = Rgb([18, 18, 20]);

/// What all of a map is in.
const FILE: &str = "map.json";

/// The picture of the last layout.
const LAST_PICTURE: &str = "map.png";

/// The sheet of thumbnails: frame `i` of the map is in row `i / columns` and column `i % columns`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Thumbnails {
    /// The sheet, beside the JSON.
    pub file: PathBuf,
    /// Thumbnails in a row.
    pub columns: usize,
    /// Width of each, in pixels.
    pub width: usize,
    /// Height of each, in pixels.
    pub height: usize,
}

/// `map.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MapFile {
    /// The checkpoint that it was made with.
    pub checkpoint: String,
    /// Where the frames are from.
    pub frame_set: PathBuf,
    /// Names of the frames shown.
    pub keys: Vec<String>,
    /// What they look like.
    pub thumbnails: Thumbnails,
    /// Pictures of the map, beside this file, for each layout.
    pub pictures: Vec<PathBuf>,
    /// The map.
    #[serde(flatten)]
    pub map: Map,
}

impl fmt::Display for MapFile {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Map { stage, kind, units, frame_count, explained_variance, frames, layouts, .. } = &self.map;
        let shown = frames.len();
        writeln!(f, "{shown} of {frame_count} frames by {units} values of stage {} ({kind})", stage + 1)?;
        let share = |count: usize| 100.0 * explained_variance.iter().take(count).sum::<f64>();
        let (two, all, count) = (share(2), share(usize::MAX), explained_variance.len());
        writeln!(f, "principal components: {two:.1} % of the variance by 2, {all:.1} % by {count}")?;
        for Layout { perplexity, divergence, .. } in layouts {
            if let Some((perplexity, divergence)) = perplexity.zip(*divergence) {
                writeln!(f, "t-SNE: perplexity {perplexity:.1}, divergence {divergence:.3}")?;
            }
        }
        Ok(())
    }
}

/// A map as a page's script draws it.
#[derive(Serialize)]
pub(super) struct Drawn<'a> {
    keys: &'a [String],
    /// Width and height of a thumbnail.
    tile: [usize; 2],
    columns: usize,
    /// Address of the sheet of thumbnails.
    sprite: String,
    /// For each method `[across, down]` of each frame.
    methods: BTreeMap<Method, Vec<[f64; 2]>>,
    /// For each frame number and similarity of others.
    neighbours: Vec<Vec<(usize, f64)>>,
}

impl MapFile {
    /// The map in `folder`, if there is one.
    ///
    /// # Errors
    /// It cannot be read, or is not what `striate map` writes.
    pub(super) fn read(folder: &Path) -> Result<Option<MapFile>> {
        let path = folder.join(FILE);
        if path.exists() { read_json(&path, "map").map(Some) } else { Ok(None) }
    }

    /// As a page shows it that has its pictures in itself or beside it.
    ///
    /// # Errors
    /// The sheet of thumbnails cannot be read.
    pub(super) fn drawn(&self, folder: &Path, pictures: Pictures) -> Result<Drawn<'_>> {
        let rounded = |x: f32, places: i32| (f64::from(x) * 10f64.powi(places)).round() / 10f64.powi(places);
        let Thumbnails { file, columns, width, height } = &self.thumbnails;
        let sprite = match pictures {
            Pictures::Served => format!("map/{}", file.display()),
            Pictures::Embedded => {
                let path = folder.join(file.file_name().unwrap_or_default());
                let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
                format!("data:image/jpeg;base64,{}", STANDARD.encode(bytes))
            }
        };
        let places = |layout: &Layout| layout.positions.iter().map(|p| p.map(|x| rounded(x, 4))).collect();
        let near = |of_frame: &Vec<Neighbour>| {
            of_frame.iter().map(|near| (near.index, rounded(near.similarity, 3))).collect()
        };
        Ok(Drawn {
            keys: &self.keys,
            tile: [*width, *height],
            columns: *columns,
            sprite,
            methods: self.map.layouts.iter().map(|layout| (layout.method, places(layout))).collect(),
            neighbours: self.map.neighbours.iter().map(near).collect(),
        })
    }
}

/// Draws a map of frames of `dataset` and writes `map.json`, `thumbnails.jpg`, and `map.png` of the last of its layouts, `map-METHOD.png`
/// of others, into the folder `out`.
///
/// # Errors
/// The folder cannot be written, or the sheet would be larger than a JPEG can be.
pub fn write(
    map: Map,
    checkpoint: &str,
    (frame_set, dataset): (&Path, &Dataset),
    out: &Path,
) -> Result<MapFile> {
    fs::create_dir_all(out).map_err(Error::io(out, "create"))?;
    let tile = thumbnail_shape(dataset.shape);
    let MapShape { channels, rows, cols } = tile;
    let thumbnail = |&frame: &usize| {
        pixel_tile(&resized(&dataset.pixels(frame), dataset.shape, tile), channels, rows, cols)
    };
    let tiles: Vec<RgbImage> = map.frames.iter().map(thumbnail).collect();
    let columns = (tiles.len() as f64).sqrt().ceil() as usize;
    let sheet = DynamicImage::from(sheet(&tiles, columns));
    let sheet = if channels == 1 { sheet.to_luma8().into() } else { sheet };
    let file = PathBuf::from("thumbnails.jpg");
    files::replace(&out.join(&file), PictureFormat::Jpg(JPEG_QUALITY).encode(&sheet)?)?;
    let mut pictures = Vec::new();
    for (number, layout) in (1..).zip(&map.layouts) {
        let last = number == map.layouts.len();
        let name = if last { LAST_PICTURE } else { picture_of(layout.method) };
        files::replace(&out.join(name), png(&overview(&tiles, &layout.positions)))?;
        pictures.push(PathBuf::from(name));
    }
    for name in [Method::Pca, Method::Tsne].map(picture_of) {
        if !pictures.iter().any(|picture| picture == Path::new(name)) {
            // Of an earlier map; mostly there is none.
            let _ = fs::remove_file(out.join(name));
        }
    }
    let keys = map.frames.iter().map(|&frame| dataset.keys[frame].clone()).collect();
    let thumbnails = Thumbnails { file, columns, width: cols, height: rows };
    let (checkpoint, frame_set) = (checkpoint.to_owned(), frame_set.to_owned());
    let made = MapFile { checkpoint, frame_set, keys, thumbnails, pictures, map };
    files::replace(&out.join(FILE), serde_json::to_vec(&made).expect("results are plain data"))?;
    Ok(made)
}

fn picture_of(method: Method) -> &'static str {
    match method {
        Method::Pca => "map-pca.png",
        Method::Tsne => "map-tsne.png",
    }
}

/// The size of a picture, or smaller in the same proportion.
fn thumbnail_shape(shape: MapShape) -> MapShape {
    let longest = shape.rows.max(shape.cols);
    let side = |side: usize| match longest > THUMBNAIL_PX {
        true => ((side * THUMBNAIL_PX) as f64 / longest as f64).round().max(1.0) as usize,
        false => side,
    };
    MapShape { rows: side(shape.rows), cols: side(shape.cols), ..shape }
}

/// Tiles of one size, without anything between.
fn sheet(tiles: &[RgbImage], columns: usize) -> RgbImage {
    let (width, height) = tiles[0].dimensions();
    let rows = tiles.len().div_ceil(columns);
    let mut sheet = RgbImage::new(columns as u32 * width, rows as u32 * height);
    for (at, tile) in tiles.iter().enumerate() {
        let (row, column) = ((at / columns) as i64, (at % columns) as i64);
        replace(&mut sheet, tile, column * i64::from(width), row * i64::from(height));
    }
    sheet
}

/// The thumbnails at their places, or as near to them as there is room: none hides another.
fn overview(tiles: &[RgbImage], positions: &[[f32; 2]]) -> RgbImage {
    let inside = WIDTH_PX - 2 * BORDER_PX;
    let across = (tiles.len() as f64 / FILLED).sqrt().ceil() as u32;
    let cell = (inside / across).clamp(1, CELL_PX);
    let columns = inside / cell;
    let ends = positions.iter().fold((f32::MAX, f32::MIN), |(low, high), p| (low.min(p[1]), high.max(p[1])));
    // From the middle of the first cell to that of the last.
    let steps = (columns - 1) as f32;
    let rows =
        (((ends.1 - ends.0) * steps).ceil() as u32 + 1).max((tiles.len() as u32).div_ceil(columns) + 1);
    let middle = 0.5 * (ends.0 + ends.1);
    let wanted = |p: &[f32; 2]| [0.5 + p[0] * steps, 0.5 * rows as f32 + (p[1] - middle) * steps];
    let cells = cells(&positions.iter().map(wanted).collect::<Vec<_>>(), columns, rows);

    let (width, height) = tiles[0].dimensions();
    let scale = (cell - 1).max(1) as f32 / width.max(height) as f32;
    let side = |side: u32| ((side as f32 * scale).round() as u32).max(1);
    let (width, height) = (side(width), side(height));
    let size = (columns * cell + 2 * BORDER_PX, rows * cell + 2 * BORDER_PX);
    let mut picture = RgbImage::from_pixel(size.0, size.1, BACKGROUND);
    for (tile, [column, row]) in tiles.iter().zip(cells) {
        let tile = resize(tile, width, height, FilterType::CatmullRom);
        let at = |number: u32, side: u32| i64::from(BORDER_PX + number * cell + (cell - side) / 2);
        replace(&mut picture, &tile, at(column, width), at(row, height));
    }
    picture
}

/// For each place, in cells, the free cell that is nearest, column and row; those that lie closest to the middle of theirs choose first.
fn cells(places: &[[f32; 2]], columns: u32, rows: u32) -> Vec<[u32; 2]> {
    assert!(places.len() <= (columns * rows) as usize, "more places than cells");
    let distance = |place: &[f32; 2], column: u32, row: u32| {
        let (x, y) = (column as f32 + 0.5 - place[0], row as f32 + 0.5 - place[1]);
        x * x + y * y
    };
    let own = |place: &[f32; 2]| {
        let number = |x: f32, count: u32| (x.max(0.0) as u32).min(count - 1);
        [number(place[0], columns), number(place[1], rows)]
    };
    let from_middle = |&at: &usize| {
        let [column, row] = own(&places[at]);
        distance(&places[at], column, row)
    };
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by(|a, b| from_middle(a).total_cmp(&from_middle(b)).then(a.cmp(b)));
    let mut taken = vec![false; (columns * rows) as usize];
    let mut found = vec![[0; 2]; places.len()];
    for at in order {
        let place = &places[at];
        let [column, row] = own(place);
        let mut best: Option<(f32, [u32; 2])> = None;
        // In squares around its own cell, until none that is further out can be nearer.
        for ring in 0..columns.max(rows) {
            if best.is_some_and(|(best, _)| (ring as f32 - 1.0).max(0.0).powi(2) > best) {
                break;
            }
            let ends = [column.checked_sub(ring), Some(column + ring).filter(|&x| x < columns)];
            for y in row.saturating_sub(ring)..=(row + ring).min(rows - 1) {
                let look = |x: u32| {
                    let far = distance(place, x, y);
                    if !taken[(y * columns + x) as usize] && best.is_none_or(|(best, _)| far < best) {
                        best = Some((far, [x, y]));
                    }
                };
                match y.abs_diff(row) == ring {
                    true => (ends[0].unwrap_or(0)..=ends[1].unwrap_or(columns - 1)).for_each(look),
                    false => ends.into_iter().flatten().for_each(look),
                }
            }
        }
        let (_, cell) = best.expect("more cells than places");
        taken[(cell[1] * columns + cell[0]) as usize] = true;
        found[at] = cell;
    }
    found
}

#[cfg(test)]
mod tests;
