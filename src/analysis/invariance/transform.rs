//! Changes of a picture that leave what it shows the same (paper §4.5), or nearly so.
//!
//! They act on the picture as it is on disk, before it is cut, scaled and preprocessed like any other. Lengths are shares of what the
//! network sees of it: the largest part of the network's shape, in the middle. Pixels from beyond the border are mirrored in
//! it or repeat it ([`Edges`]). Moved pictures are interpolated bilinearly; shrunk ones averaged over as many samples as a pixel
//! covers. Changed levels are cut off at black and white.

use image::{DynamicImage, ImageBuffer, Pixel};
use serde::{Deserialize, Serialize};

/// Squares along each side of the map of occlusion.
pub const MAP_SIDE: usize = 8;

/// Side of the square that slides over the picture for the map, as a share of what the network sees.
const MAP_SQUARE: f64 = 0.25;

/// The level of an occluding square.
const GREY: u8 = 128;

/// What is done to a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transformation {
    /// Moved to the right, in per cent of the width.
    ShiftX,
    /// Moved downwards, in per cent of the height.
    ShiftY,
    /// Enlarged about the middle, by a factor.
    Scale,
    /// Turned in the picture plane, in degrees counter-clockwise.
    Rotation,
    /// Made brighter, in per cent of the range from black to white.
    Brightness,
    /// Contrast about the picture's mean, by a factor.
    Contrast,
    /// Gaussian blur, its σ in per cent of the width.
    Blur,
    /// A grey rectangle over the middle, in per cent of the area.
    Occlusion,
}

/// What lies beyond the border of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Edges {
    /// The picture mirrored: as natural as the picture is.
    Mirror,
    /// The nearest pixel of the border.
    Border,
}

/// σ in pixels below which a Gaussian takes less than a tenth of a level from one of 255 beside black.
const LEAST_BLUR: f32 = 0.25;

impl Transformation {
    /// All of them.
    pub const ALL: [Transformation; 8] = [
        Transformation::ShiftX,
        Transformation::ShiftY,
        Transformation::Scale,
        Transformation::Rotation,
        Transformation::Brightness,
        Transformation::Contrast,
        Transformation::Blur,
        Transformation::Occlusion,
    ];

    /// Its name and that of its amount, for an axis.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Transformation::ShiftX => ("translation, horizontal", "% of the width, to the right"),
            Transformation::ShiftY => ("translation, vertical", "% of the height, downwards"),
            Transformation::Scale => ("scale", "log2 of the factor"),
            Transformation::Rotation => ("rotation in the plane", "degrees counter-clockwise"),
            Transformation::Brightness => ("brightness", "% of the range"),
            Transformation::Contrast => ("contrast", "log2 of the factor"),
            Transformation::Blur => ("blur", "σ in % of the width"),
            Transformation::Occlusion => ("occlusion of the middle", "% of the area"),
        }
    }

    /// Where an amount lies on that axis.
    pub fn on_axis(self, amount: f64) -> f64 {
        match self {
            Transformation::Scale | Transformation::Contrast => amount.log2(),
            _ => amount,
        }
    }

    /// The amounts that are tried, rising; the one that changes nothing is among them.
    pub fn amounts(self) -> Vec<f64> {
        let even = |from: i32, to: i32, step: usize| (from..=to).step_by(step).map(f64::from).collect();
        match self {
            Transformation::ShiftX | Transformation::ShiftY => even(-30, 30, 5),
            Transformation::Scale => (-4..=4).map(|n| 2f64.powf(f64::from(n) / 4.0)).collect(),
            Transformation::Rotation => even(-180, 180, 15),
            Transformation::Brightness => even(-40, 40, 10),
            Transformation::Contrast => (-6..=4).map(|n| 2f64.powf(f64::from(n) / 2.0)).collect(),
            Transformation::Blur => vec![0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0],
            Transformation::Occlusion => vec![0.0, 2.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 80.0],
        }
    }

    /// The amount that changes nothing.
    pub fn identity(self) -> f64 {
        match self {
            Transformation::Scale | Transformation::Contrast => 1.0,
            _ => 0.0,
        }
    }

    /// The picture changed by `amount`. `seen` is the width and height of what the network sees of it, in its pixels.
    ///
    /// # Panics
    /// The picture is not 8-bit grey or RGB.
    pub fn apply(self, picture: &DynamicImage, amount: f64, seen: [f64; 2], edges: Edges) -> DynamicImage {
        if amount == self.identity() {
            return picture.clone();
        }
        let [width, height] = seen;
        match self {
            Transformation::ShiftX => moved(picture, edges, 1, move |[x, y]| [x - amount / 100.0 * width, y]),
            Transformation::ShiftY => {
                moved(picture, edges, 1, move |[x, y]| [x, y - amount / 100.0 * height])
            }
            Transformation::Scale => {
                let samples = (1.0 / amount).ceil().max(1.0) as usize;
                moved(picture, edges, samples, move |[x, y]| [x / amount, y / amount])
            }
            Transformation::Rotation => {
                let (sin, cos) = amount.to_radians().sin_cos();
                // Rows count downwards: where a point of the turned picture was before.
                moved(picture, edges, 1, move |[x, y]| [cos * x - sin * y, sin * x + cos * y])
            }
            Transformation::Brightness => levels(picture, |level, _| level + 2.55 * amount),
            Transformation::Contrast => levels(picture, |level, mean| mean + amount * (level - mean)),
            Transformation::Blur => match (amount / 100.0 * width) as f32 {
                // Nothing of a pixel's neighbours reaches it in 8 bits; `image` 0.25.10 would move the picture by a pixel.
                sigma if sigma < LEAST_BLUR => picture.clone(),
                sigma => picture.blur(sigma),
            },
            Transformation::Occlusion => {
                let part = (amount / 100.0).sqrt();
                covered(picture, [0.0; 2], [part * width, part * height])
            }
        }
    }
}

/// The picture with a grey square in place `(row, col)` of [`MAP_SIDE`] by [`MAP_SIDE`], evenly spread over what the network sees.
pub fn occluded(picture: &DynamicImage, row: usize, col: usize, seen: [f64; 2]) -> DynamicImage {
    let from_middle = |at: usize| (at as f64 + 0.5) / MAP_SIDE as f64 - 0.5;
    let [width, height] = seen;
    let middle = [from_middle(col) * width, from_middle(row) * height];
    covered(picture, middle, [MAP_SQUARE * width, MAP_SQUARE * height])
}

/// Does the same for grey and RGB pictures.
macro_rules! each_kind {
    ($picture:expr, $pixels:ident => $change:expr) => {
        match $picture {
            DynamicImage::ImageLuma8($pixels) => DynamicImage::ImageLuma8($change),
            DynamicImage::ImageRgb8($pixels) => DynamicImage::ImageRgb8($change),
            other => panic!("a picture of colours {:?}", other.color()),
        }
    };
}

/// A picture whose point `p`, from the middle, is taken from `back(p)`; each pixel is the mean of `samples` by `samples` points.
fn moved(
    picture: &DynamicImage,
    edges: Edges,
    samples: usize,
    back: impl Fn([f64; 2]) -> [f64; 2],
) -> DynamicImage {
    each_kind!(picture, pixels => resampled(pixels, edges, samples, back))
}

fn resampled<P: Pixel<Subpixel = u8>>(
    from: &ImageBuffer<P, Vec<u8>>,
    edges: Edges,
    samples: usize,
    back: impl Fn([f64; 2]) -> [f64; 2],
) -> ImageBuffer<P, Vec<u8>> {
    let (width, height) = from.dimensions();
    let middle = [f64::from(width) / 2.0, f64::from(height) / 2.0];
    let inside = |at: i64, len: u32| -> u32 {
        let len = i64::from(len);
        let at = match edges {
            Edges::Border => at.clamp(0, len - 1),
            Edges::Mirror => {
                let at = at.rem_euclid(2 * len);
                at.min(2 * len - 1 - at)
            }
        };
        at as u32
    };
    let channels = usize::from(P::CHANNEL_COUNT);
    ImageBuffer::from_fn(width, height, |column, row| {
        let mut sum = [0.0; 4];
        for sample in 0..samples * samples {
            let part = |at: usize| (at as f64 + 0.5) / samples as f64;
            let point = [
                f64::from(column) + part(sample % samples) - middle[0],
                f64::from(row) + part(sample / samples) - middle[1],
            ];
            let [x, y] = back(point);
            let (x, y) = (x + middle[0] - 0.5, y + middle[1] - 0.5);
            let (left, top) = (x.floor(), y.floor());
            for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let share =
                    |at: f64, floor: f64, next: i64| if next == 1 { at - floor } else { 1.0 - (at - floor) };
                let weight = share(x, left, dx) * share(y, top, dy);
                let pixel = from.get_pixel(inside(left as i64 + dx, width), inside(top as i64 + dy, height));
                sum.iter_mut()
                    .zip(pixel.channels())
                    .for_each(|(sum, &level)| *sum += weight * f64::from(level));
            }
        }
        let levels = sum.map(|sum| (sum / (samples * samples) as f64).round() as u8);
        *P::from_slice(&levels[..channels])
    })
}

/// Changes each level, given that and the mean of all.
fn levels(picture: &DynamicImage, change: impl Fn(f64, f64) -> f64) -> DynamicImage {
    let bytes = picture.as_bytes();
    let mean = bytes.iter().map(|&b| f64::from(b)).sum::<f64>() / bytes.len() as f64;
    each_kind!(picture, pixels => {
        let mut changed = pixels.clone();
        // Levels are cut off where a conversion to 8 bits cuts them off.
        changed.iter_mut().for_each(|level| *level = change(f64::from(*level), mean).round() as u8);
        changed
    })
}

/// Covers the pixels whose middle lies in a rectangle; its middle is given from the picture's.
fn covered(picture: &DynamicImage, middle: [f64; 2], size: [f64; 2]) -> DynamicImage {
    let (width, height) = (f64::from(picture.width()), f64::from(picture.height()));
    each_kind!(picture, pixels => {
        let mut changed = pixels.clone();
        for (column, row, pixel) in changed.enumerate_pixels_mut() {
            let across = f64::from(column) + 0.5 - width / 2.0 - middle[0];
            let down = f64::from(row) + 0.5 - height / 2.0 - middle[1];
            if 2.0 * across.abs() <= size[0] && 2.0 * down.abs() <= size[1] {
                pixel.apply(|_| GREY);
            }
        }
        changed
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, RgbImage};

    fn picture() -> GrayImage {
        GrayImage::from_fn(20, 20, |x, y| Luma([(40 + 7 * x + 3 * y) as u8]))
    }

    fn changed(of: Transformation, amount: f64, edges: Edges) -> GrayImage {
        of.apply(&picture().into(), amount, [20.0, 20.0], edges).to_luma8()
    }

    #[test]
    fn every_transformation_has_an_amount_that_changes_nothing_and_others_that_do() {
        for of in Transformation::ALL {
            let amounts = of.amounts();
            assert!(amounts.contains(&of.identity()) && amounts.is_sorted(), "{of:?} {amounts:?}");
            let textured: DynamicImage =
                GrayImage::from_fn(100, 100, |x, y| Luma([((x * x + 3 * y * y) % 200) as u8])).into();
            for amount in amounts {
                let same = of.apply(&textured, amount, [100.0, 100.0], Edges::Mirror) == textured;
                assert_eq!(same, amount == of.identity(), "{of:?} by {amount}");
            }
        }
    }

    #[test]
    fn pixels_go_where_they_should() {
        let at = |image: &GrayImage, x: u32, y: u32| i32::from(image.get_pixel(x, y).0[0]);
        let was = picture();
        let right = changed(Transformation::ShiftX, 10.0, Edges::Border);
        assert_eq!(at(&right, 7, 5), at(&was, 5, 5));
        assert_eq!((at(&right, 0, 5), at(&right, 1, 5)), (at(&was, 0, 5), at(&was, 0, 5)));
        let mirrored = changed(Transformation::ShiftX, 10.0, Edges::Mirror);
        assert_eq!((at(&mirrored, 1, 5), at(&mirrored, 0, 5)), (at(&was, 0, 5), at(&was, 1, 5)));
        let down = changed(Transformation::ShiftY, 25.0, Edges::Border);
        assert_eq!(at(&down, 3, 12), at(&was, 3, 7));
        // A quarter of a turn counter-clockwise brings the right side up.
        let turned = changed(Transformation::Rotation, 90.0, Edges::Border);
        assert_eq!(at(&turned, 4, 1), at(&was, 18, 4));
        assert_eq!(at(&changed(Transformation::Rotation, 180.0, Edges::Border), 2, 3), at(&was, 17, 16));
        // Twice as large: what was halfway to the middle is at the border.
        let large = changed(Transformation::Scale, 2.0, Edges::Border);
        assert!((at(&large, 0, 10) - at(&was, 5, 10)).abs() <= 4, "{}", at(&large, 0, 10));
        let small = changed(Transformation::Scale, 0.5, Edges::Border);
        assert!((at(&small, 5, 10) - at(&was, 0, 10)).abs() <= 5, "{}", at(&small, 5, 10));
    }

    #[test]
    fn stripes_as_fine_as_pixels_become_even_when_shrunk() {
        let stripes = GrayImage::from_fn(20, 20, |x, _| Luma([if x % 2 == 0 { 0 } else { 200 }]));
        let small = Transformation::Scale.apply(&stripes.into(), 0.5, [20.0, 20.0], Edges::Mirror);
        let inner = (6..14).map(|x| small.to_luma8().get_pixel(x, 10).0[0]);
        assert!(inner.clone().all(|level| level.abs_diff(100) <= 1), "{:?}", inner.collect::<Vec<_>>());
    }

    #[test]
    fn levels_are_cut_off_and_squares_cover_their_share() {
        let bright = changed(Transformation::Brightness, 40.0, Edges::Mirror);
        assert!(bright.pixels().zip(picture().pixels()).all(|(b, p)| b.0[0] == p.0[0].saturating_add(102)));
        let grey = changed(Transformation::Occlusion, 20.0, Edges::Mirror);
        let share = grey.pixels().filter(|p| p.0[0] == GREY).count();
        assert!((64..=100).contains(&share), "{share} of 400 pixels");
        let rgb: DynamicImage = RgbImage::from_pixel(40, 24, image::Rgb([9, 10, 11])).into();
        // Of 40x24 pixels the network sees the middle 24x24.
        let corner = occluded(&rgb, 0, 7, [24.0, 24.0]).to_rgb8();
        assert_eq!(corner.get_pixel(30, 1).0, [GREY; 3]);
        assert_eq!((corner.get_pixel(9, 1).0, corner.get_pixel(30, 12).0), ([9, 10, 11], [9, 10, 11]));
    }
}
