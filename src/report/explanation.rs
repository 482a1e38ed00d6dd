//! Explanations as pictures: heat maps over what the network saw.

use image::{Rgb, RgbImage};

use crate::analysis::explain::{Explanation, HeatMap};
use crate::frames::write_text;
use crate::picture::enlarged;

/// Side of a tile of a panel, about.
const SIDE_PX: u32 = 256;

/// Free room around tiles, and height of a line of text.
const GAP_PX: u32 = 12;
const LINE_PX: u32 = 12;

const BACKGROUND: Rgb<u8> = Rgb([24, 24, 26]);
const TEXT: Rgb<u8> = Rgb([212, 212, 216]);

/// Colours of what raises the value and of what lowers it: orange and blue, which look different to everyone.
const RAISES: [f32; 3] = [255.0, 140.0, 26.0];
const LOWERS: [f32; 3] = [64.0, 148.0, 255.0];

/// A heat map over a dimmed picture of its size: the largest magnitude is full colour, 0 leaves the picture as it is.
pub fn overlay(picture: &RgbImage, map: &HeatMap) -> RgbImage {
    assert_eq!(
        (picture.height() as usize, picture.width() as usize),
        (map.rows, map.cols),
        "as large as the picture"
    );
    let largest = map.values.iter().fold(0f32, |most, value| most.max(value.abs())).max(f32::MIN_POSITIVE);
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let share = map.values[y as usize * map.cols + x as usize] / largest;
        let colour = if share > 0.0 { RAISES } else { LOWERS };
        // The square root lets the eye see what is a tenth of the largest.
        let opacity = share.abs().sqrt();
        let pixel = picture.get_pixel(x, y).0.map(|level| 0.6 * f32::from(level));
        Rgb(std::array::from_fn(|c| (pixel[c] + opacity * (colour[c] - pixel[c])).round() as u8))
    })
}

/// What the network saw, and the maps of an explanation side by side, with their names.
pub fn panel(picture: &RgbImage, explanation: &Explanation) -> RgbImage {
    let zoom = (SIDE_PX / picture.width().max(1)).max(1);
    let plain = [("seen by the network", enlarged(picture, zoom))];
    let maps = [
        ("gradient x input", &explanation.gradient_input),
        ("integrated gradients", &explanation.integrated),
        ("occlusion", &explanation.occlusion),
    ];
    let maps = maps.map(|(name, map)| (name, enlarged(&overlay(picture, map), zoom)));
    let tiles: Vec<(&str, RgbImage)> = plain.into_iter().chain(maps).collect();
    let (width, height) = tiles[0].1.dimensions();
    let count = tiles.len() as u32;
    let size = (count * (width + GAP_PX) + GAP_PX, height + 2 * GAP_PX + 3 * LINE_PX);
    let mut panel = RgbImage::from_pixel(size.0, size.1, BACKGROUND);
    let probe = &explanation.probe;
    let title = format!("unit {} ({}), value {:.4}", probe.name(), probe.kind, explanation.value);
    write_text(&mut panel, &title, GAP_PX, GAP_PX / 2, TEXT);
    for (number, (name, tile)) in (0..).zip(&tiles) {
        let left = GAP_PX + number * (width + GAP_PX);
        write_text(&mut panel, name, left, GAP_PX / 2 + LINE_PX + LINE_PX / 2, TEXT);
        image::imageops::replace(&mut panel, tile, left.into(), (GAP_PX + 2 * LINE_PX).into());
    }
    write_text(
        &mut panel,
        "orange raises the value, blue lowers it; each map to its own maximum",
        GAP_PX,
        size.1 - GAP_PX - 2,
        TEXT,
    );
    panel
}
