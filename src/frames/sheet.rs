//! Contact sheets: many frames in one picture, so that a person can see what was sampled.

use font8x8::UnicodeFonts;
use image::imageops::replace;
use image::{DynamicImage, Rgb, RgbImage};
use rayon::prelude::*;

use super::store::FrameStore;
use super::{Colour, Fit, Part, Shape, fit};
use crate::error::Result;

const BACKGROUND: Rgb<u8> = Rgb([24, 24, 27]);
const BESIDE_PICTURES: Rgb<u8> = Rgb([39, 39, 42]);
const TEXT: Rgb<u8> = Rgb([212, 212, 216]);
const FAINT_TEXT: Rgb<u8> = Rgb([150, 150, 158]);
/// Pixels between tiles.
const GAP: u32 = 10;
/// Side of a letter.
const LETTER: u32 = 8;
/// Height of the two lines below a tile.
const CAPTION: u32 = 2 * LETTER + 8;

/// What a contact sheet looks like.
#[derive(Debug, Clone, Copy)]
pub struct SheetOptions {
    /// Most frames on it; of more they are evenly spread over the set.
    pub frames: usize,
    /// Frames in a row; without, about as many columns as rows.
    pub columns: Option<u32>,
    /// Side of the square that a frame is fitted into, in pixels.
    pub tile: u32,
    /// Whether the name of the video and the time are written below each.
    pub captions: bool,
}

/// Draws frames of a set side by side. Frames that cannot be read are crossed out, with a warning each.
///
/// # Errors
/// If the sheet would have a side of more than 65,535 pixels.
pub fn sheet(store: &FrameStore, options: &SheetOptions) -> Result<(RgbImage, Vec<String>)> {
    let count = options.frames.min(store.len()).max(1);
    let numbers: Vec<usize> = (0..count).map(|i| i * store.len() / count).collect();
    let columns = options.columns.unwrap_or_else(|| (count as f64).sqrt().ceil() as u32);
    let columns = u64::from(columns.clamp(1, count as u32));
    let rows = (count as u64).div_ceil(columns);
    let caption = if options.captions { CAPTION } else { 0 };
    let (across, down) = (options.tile + GAP, options.tile + caption + GAP);
    let (width, height) =
        (columns * u64::from(across) + u64::from(GAP), rows * u64::from(down) + u64::from(GAP));
    if width.max(height) > u64::from(u16::MAX) {
        let problem =
            format!("a contact sheet of {width}x{height} pixels is too large; show fewer or smaller frames");
        return Err(crate::error::Error::Mismatch(problem));
    }
    let tiles: Vec<_> = numbers.par_iter().map(|&number| tile(store, number, options.tile)).collect();
    let mut sheet = RgbImage::from_pixel(width as u32, height as u32, BACKGROUND);
    let mut warnings = Vec::new();
    for (place, (picture, warning)) in tiles.into_iter().enumerate() {
        let left = GAP + (place as u64 % columns) as u32 * across;
        let top = GAP + (place as u64 / columns) as u32 * down;
        replace(&mut sheet, &picture, left.into(), top.into());
        warnings.extend(warning);
        if options.captions {
            let [first, second] = captions(store, numbers[place], (options.tile / LETTER) as usize);
            write(&mut sheet, &first, left, top + options.tile + 4, TEXT);
            write(&mut sheet, &second, left, top + options.tile + 6 + LETTER, FAINT_TEXT);
        }
    }
    Ok((sheet, warnings))
}

/// A frame fitted into a square, or a crossed one with the reason why not.
fn tile(store: &FrameStore, number: usize, side: u32) -> (RgbImage, Option<String>) {
    let mut tile = RgbImage::from_pixel(side, side, BESIDE_PICTURES);
    match store.picture(number) {
        Ok(picture) => {
            let factor = (f64::from(side) / f64::from(picture.width()))
                .min(f64::from(side) / f64::from(picture.height()));
            let scaled = |length: u32| ((f64::from(length) * factor).round() as u32).clamp(1, side);
            let (width, height) = (scaled(picture.width()), scaled(picture.height()));
            let part = Part::default();
            let shape = Shape { part, width, height, fit: Fit::Stretch, colour: Colour::Rgb };
            // Stretching draws no random numbers.
            let fitted = fit(&picture, &shape, &mut crate::rng::stream(0, "sheet", 0)).image;
            if let DynamicImage::ImageRgb8(fitted) = fitted {
                replace(&mut tile, &fitted, ((side - width) / 2).into(), ((side - height) / 2).into());
            }
            (tile, None)
        }
        Err(error) => {
            for i in 0..side {
                tile.put_pixel(i, i, FAINT_TEXT);
                tile.put_pixel(side - 1 - i, i, FAINT_TEXT);
            }
            (tile, Some(error.to_string()))
        }
    }
}

/// Two lines of at most `width` letters: the video and the time, or the key where neither is known.
fn captions(store: &FrameStore, number: usize, width: usize) -> [String; 2] {
    let metadata = store.metadata(number).ok().flatten().unwrap_or_default();
    match (metadata["name"].as_str(), metadata["seconds"].as_f64()) {
        (Some(name), Some(seconds)) => {
            let name = name.rsplit('/').next().unwrap_or(name);
            [shortened(name, width), shortened(&clock(seconds), width)]
        }
        _ => [shortened(store.key(number), width), String::new()],
    }
}

/// Hours, minutes and seconds.
fn clock(seconds: f64) -> String {
    let sign = if seconds < 0.0 { "-" } else { "" };
    let hundredths = (seconds.abs() * 100.0).round() as u64;
    let (minutes, rest) = (hundredths / 6000, hundredths % 6000);
    let (seconds, hundredths) = (rest / 100, rest % 100);
    match minutes / 60 {
        0 => format!("{sign}{minutes}:{seconds:02}.{hundredths:02}"),
        hours => format!("{sign}{hours}:{:02}:{seconds:02}.{hundredths:02}", minutes % 60),
    }
}

/// The text with letters left out in the middle if it is longer than `width`.
fn shortened(text: &str, width: usize) -> String {
    let letters: Vec<char> = text.chars().collect();
    if letters.len() <= width || width < 5 {
        return letters.into_iter().take(width).collect();
    }
    let (end, start) = ((width - 2) / 2, (width - 2).div_ceil(2));
    letters[..start].iter().chain(&['.', '.']).chain(&letters[letters.len() - end..]).collect()
}

/// Writes a line of text, in letters of 8x8 pixels; what lies outside is cut off.
pub(crate) fn write(sheet: &mut RgbImage, text: &str, left: u32, top: u32, colour: Rgb<u8>) {
    for (place, letter) in text.chars().enumerate() {
        let glyph = font8x8::BASIC_FONTS.get(letter).or_else(|| font8x8::LATIN_FONTS.get(letter));
        let glyph = glyph.or_else(|| font8x8::BASIC_FONTS.get('?')).unwrap_or_default();
        for (y, row) in glyph.into_iter().enumerate() {
            for x in (0..LETTER).filter(|x| row >> x & 1 == 1) {
                let (x, y) = (left + place as u32 * LETTER + x, top + y as u32);
                if x < sheet.width() && y < sheet.height() {
                    sheet.put_pixel(x, y, colour);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shortened_in_the_middle_and_times_are_readable() {
        assert_eq!(shortened("short.mp4", 16), "short.mp4");
        assert_eq!(shortened("a_long_name_of_a_file.mp4", 16), "a_long_..ile.mp4");
        assert_eq!(shortened("größer", 3), "grö");
        assert_eq!([0.0, 61.256, 3600.0, -1.5].map(clock), ["0:00.00", "1:01.26", "1:00:00.00", "-0:01.50"]);
    }

    #[test]
    fn a_sheet_has_each_frame_in_its_place_and_crosses_out_what_cannot_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        RgbImage::from_pixel(64, 32, Rgb([250, 0, 0])).save(at("a.png")).unwrap();
        RgbImage::from_pixel(8, 8, Rgb([0, 250, 0])).save(at("b.png")).unwrap();
        std::fs::write(at("c.png"), b"no picture").unwrap();
        let store = FrameStore::open(folder.path()).unwrap();
        let options = SheetOptions { frames: 9, columns: None, tile: 40, captions: true };
        let (drawn, warnings) = sheet(&store, &options).unwrap();
        // Two columns and rows of 40 pixels, 24 more for captions, 10 around each.
        assert_eq!(drawn.dimensions(), (110, 158));
        assert_eq!(drawn.get_pixel(30, 30).0, [250, 0, 0]);
        assert_eq!(*drawn.get_pixel(30, 15), BESIDE_PICTURES);
        assert_eq!(drawn.get_pixel(62, 12).0, [0, 250, 0]);
        assert_eq!((*drawn.get_pixel(10, 84), *drawn.get_pixel(60, 84)), (FAINT_TEXT, BACKGROUND));
        assert!(warnings.len() == 1 && warnings[0].contains("c.png"), "{warnings:?}");
        let caption = (10..50).flat_map(|x| (50..74).map(move |y| (x, y)));
        assert!(caption.filter(|&(x, y)| *drawn.get_pixel(x, y) == TEXT).count() > 8);
        let wide = SheetOptions { columns: Some(7), captions: false, ..options };
        assert_eq!(sheet(&store, &wide).unwrap().0.dimensions(), (160, 60));
        let huge = SheetOptions { tile: 60_000, ..options };
        assert!(sheet(&store, &huge).unwrap_err().to_string().contains("too large"));
    }
}
