//! Pictures of numbers: tiles, grids of tiles, filters.

use std::path::Path;

use image::{Rgb, RgbImage};
use ndarray::ArrayView3;
use png::{ColorType, Encoder};

use crate::error::{Error, Result};
use crate::network::{Network, Unit, Weights};

/// Filters shown side by side for one position, at most, and in all.
pub const FILTERS_ACROSS: usize = 16;

/// See [`FILTERS_ACROSS`].
pub const FILTERS_SHOWN: usize = 512;

/// Pixels between tiles of a grid.
const GAP: u32 = 2;
/// Behind the tiles of a grid.
pub const BACKGROUND: Rgb<u8> = Rgb([24; 3]);

/// Signed values `[channel, row, column]` as a picture: 0 is mid-grey, the largest magnitude black or white. One channel
/// is grey, three are RGB; of any other number, as stages above the first have, the mean is shown.
pub fn signed_tile(values: ArrayView3<f32>) -> RgbImage {
    let largest = values.iter().fold(0f32, |max, x| max.max(x.abs())).max(f32::MIN_POSITIVE);
    let (channels, rows, cols) = values.dim();
    let level = |x: f32| (127.5 + 127.5 * (x / largest).clamp(-1.0, 1.0)).round() as u8;
    RgbImage::from_fn(cols as u32, rows as u32, |x, y| {
        let at = |c: usize| values[(c, y as usize, x as usize)];
        match channels {
            3 => Rgb([level(at(0)), level(at(1)), level(at(2))]),
            _ => Rgb([level((0..channels).map(at).sum::<f32>() / channels as f32); 3]),
        }
    })
}

/// 8-bit pixels `[channel, row, column]` of one or three channels as a picture.
pub fn pixel_tile(pixels: &[u8], channels: usize, rows: usize, cols: usize) -> RgbImage {
    RgbImage::from_fn(cols as u32, rows as u32, |x, y| {
        let at = |c: usize| pixels[(c * rows + y as usize) * cols + x as usize];
        if channels == 3 { Rgb([at(0), at(1), at(2)]) } else { Rgb([at(0); 3]) }
    })
}

/// Tiles of one size in rows of `columns`, each pixel enlarged to `zoom` pixels.
pub fn grid(tiles: &[RgbImage], columns: usize, zoom: u32) -> RgbImage {
    let (width, height) = tiles.first().map_or((1, 1), |tile| tile.dimensions());
    let columns = columns.clamp(1, tiles.len().max(1)) as u32;
    let rows = (tiles.len() as u32).div_ceil(columns).max(1);
    let (step_x, step_y) = (width * zoom + GAP, height * zoom + GAP);
    let mut out = RgbImage::from_pixel(columns * step_x + GAP, rows * step_y + GAP, BACKGROUND);
    for (index, tile) in (0..).zip(tiles) {
        let (left, top) = (GAP + index % columns * step_x, GAP + index / columns * step_y);
        for y in 0..height * zoom {
            for x in 0..width * zoom {
                out.put_pixel(left + x, top + y, *tile.get_pixel(x / zoom, y / zoom));
            }
        }
    }
    out
}

/// Each pixel as a square of `zoom` pixels.
pub fn enlarged(tile: &RgbImage, zoom: u32) -> RgbImage {
    RgbImage::from_fn(tile.width() * zoom, tile.height() * zoom, |x, y| *tile.get_pixel(x / zoom, y / zoom))
}

/// Writes a PNG.
///
/// # Errors
/// The file cannot be written.
pub fn save_png(image: &RgbImage, path: &Path) -> Result<()> {
    std::fs::write(path, png(image)).map_err(Error::io(path, "write"))
}

/// A picture as PNG, grey where it has no colour.
pub fn png(image: &RgbImage) -> Vec<u8> {
    captioned_png(image, None)
}

/// The same with a caption in its metadata, as `Description`.
pub fn captioned_png(image: &RgbImage, caption: Option<&str>) -> Vec<u8> {
    let grey = image.pixels().all(|Rgb([r, g, b])| r == g && g == b);
    let (colour, pixels) = match grey {
        true => (ColorType::Grayscale, image.pixels().map(|pixel| pixel.0[0]).collect()),
        false => (ColorType::Rgb, image.as_raw().clone()),
    };
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(colour);
    let write = || {
        if let Some(caption) = caption {
            encoder.add_itxt_chunk("Description".into(), caption.into())?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        writer.finish()
    };
    write().expect("memory takes any picture");
    bytes
}

/// First-stage filters: for positions spread over the picture, from its middle to its border, the maps side by side.
pub fn filters(network: &Network, which: Weights) -> RgbImage {
    let stage = &network.stages[0];
    let (rows, cols, maps) =
        (stage.shape.filtered.rows, stage.shape.filtered.cols, stage.shape.filtered.channels);
    let across = maps.min(FILTERS_ACROSS);
    let positions: Vec<(usize, usize)> = (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))).collect();
    let wanted = (FILTERS_SHOWN / across).max(1).min(positions.len());
    let mut chosen = spread(positions, wanted);
    let to_border = |&(row, col): &(usize, usize)| row.min(rows - 1 - row).min(col).min(cols - 1 - col);
    chosen.sort_by_key(|position| std::cmp::Reverse(to_border(position)));
    let units = chosen.iter().flat_map(|&(row, col)| (0..across).map(move |map| Unit { map, row, col }));
    let tiles: Vec<RgbImage> = units.map(|unit| signed_tile(stage.filter(which, unit).view())).collect();
    let zoom = (40 / stage.shape.field as u32).max(1);
    grid(&tiles, across * (32 / across).max(1), zoom)
}

/// `count` items evenly spread over all; 0 for all.
pub fn spread<T: Copy>(items: Vec<T>, count: usize) -> Vec<T> {
    if count == 0 || count >= items.len() {
        return items;
    }
    (0..count).map(|index| items[index * items.len() / count]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr3;

    #[test]
    fn zero_is_mid_grey_and_the_extremes_black_and_white() {
        let tile = signed_tile(arr3(&[[[0.0, 2.0, -2.0]]]).view());
        assert_eq!([0, 1, 2].map(|x| tile.get_pixel(x, 0).0[0]), [128, 255, 0]);
    }

    #[test]
    fn a_grid_places_tiles_row_by_row() {
        let tile = |v| RgbImage::from_pixel(2, 1, Rgb([v; 3]));
        let grid = grid(&[tile(10), tile(20), tile(30)], 2, 3);
        assert_eq!(grid.dimensions(), (2 * (6 + GAP) + GAP, 2 * (3 + GAP) + GAP));
        assert_eq!(grid.get_pixel(GAP, GAP).0[0], 10);
        assert_eq!(grid.get_pixel(GAP + 6 + GAP, GAP + 2).0[0], 20);
        assert_eq!(grid.get_pixel(GAP + 5, GAP + 3 + GAP).0[0], 30);
    }

    #[test]
    fn a_png_keeps_its_pixels_and_has_colour_only_where_there_is_some() {
        for (colour, channels) in [([7, 7, 7], 1), ([7, 7, 8], 3)] {
            let image = RgbImage::from_fn(3, 2, |x, _| Rgb(if x == 0 { [0; 3] } else { colour }));
            let bytes = captioned_png(&image, Some("norm 1, ±2"));
            let read = image::load_from_memory(&bytes).unwrap();
            assert_eq!(read.color().channel_count(), channels);
            assert_eq!(read.to_rgb8(), image);
            let reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
            assert_eq!(reader.info().utf8_text[0].get_text().unwrap(), "norm 1, ±2");
        }
    }
}
