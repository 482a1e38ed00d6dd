//! Pictures on disk: cut and scaled on the way in, found at random on the way out.
//!
//! A frame set is a folder of WebDataset tar shards, written by [`FrameWriter`]. [`FrameStore`] reads it back, and
//! also tar shards and folders of pictures from elsewhere.

mod cut;
mod format;
mod info;
pub mod labels;
mod layout;
mod list;
mod merge;
mod quality;
mod record;
mod shard;
mod sheet;
mod spool;
mod store;
mod table;
mod writer;

use std::borrow::Cow;
use std::cell::RefCell;

use fast_image_resize as fir;
use image::{DynamicImage, GrayImage, RgbImage};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::rng::ChaCha8Rng;
use crate::video::over_black;

pub use cut::{Cut, Cutting, cut};
pub use format::PictureFormat;
pub use info::{FrameSetInfo, Origin, info};
pub use layout::FrameSetSummary;
pub use list::{Listed, list};
pub use merge::merge;
pub use quality::{Dropped, Duplicates, Filters, Quality, quality};
pub use record::{
    DropCounts, FRAME_COLUMNS, FrameMetadata, FrameRecord, INPUT_COLUMNS, InputRecord, Outcome, Region,
};
pub(crate) use sheet::write as write_text;
pub use sheet::{SheetOptions, sheet};
pub use spool::Spool;
pub use store::FrameStore;
pub use table::{Column, Kind, TableReader, TableWriter};
pub use writer::{FrameWriter, WriterOptions};

/// Colours of a stored picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// One channel, luma of BT.601.
    Grey,
    /// Three channels.
    Rgb,
}

/// How a frame gets the shape of the stored pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// The largest part of that shape is cut out of the middle.
    Crop,
    /// It is cut out at a random place.
    RandomCrop,
    /// All of it is kept, with black bars.
    Letterbox,
    /// All of it is kept, distorted.
    Stretch,
}

/// A part of a picture, in shares of its width and height; all of it by default.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Share of the width left of it.
    pub left: f64,
    /// Share of the height above it.
    pub top: f64,
    /// Its share of the width.
    pub width: f64,
    /// Its share of the height.
    pub height: f64,
}

impl Default for Part {
    fn default() -> Part {
        Part { left: 0.0, top: 0.0, width: 1.0, height: 1.0 }
    }
}

impl Part {
    /// Whether it is all of the picture.
    fn is_whole(&self) -> bool {
        *self == Part::default()
    }

    /// In pixels of a picture of this size.
    fn pixels(&self, width: u32, height: u32) -> fir::CropBox {
        let (width, height) = (f64::from(width), f64::from(height));
        // Shares that sum up to 1 may be rounded to a little more.
        let (left, top) = (self.left * width, self.top * height);
        let side = |share: f64, whole: f64, before: f64| (share * whole).min(whole - before);
        fir::CropBox {
            left,
            top,
            width: side(self.width, width, left),
            height: side(self.height, height, top),
        }
    }
}

/// What a frame becomes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// What of the upright original is looked at; the rest is as if it were not there.
    #[serde(default, skip_serializing_if = "Part::is_whole")]
    pub part: Part,
    /// Width of the stored picture.
    pub width: u32,
    /// Height of the stored picture.
    pub height: u32,
    /// How a frame of another shape gets this one.
    pub fit: Fit,
    /// Grey or RGB.
    pub colour: Colour,
}

/// A picture after [`fit`].
pub struct Fitted {
    /// The picture, 8 bits per channel.
    pub image: DynamicImage,
    /// Left, top, width and height of what was kept of the original.
    pub crop: [f64; 4],
    /// Left, top, width and height of where that lies in the picture, if bars surround it.
    pub placed: Option<[u32; 4]>,
}

/// Gives a picture the shape and size asked, scaled by Lanczos without aliasing; `rng` is for random crops.
///
/// Transparent parts are laid over black.
///
/// # Panics
/// If the shape has no pixels.
pub fn fit(image: &DynamicImage, shape: &Shape, rng: &mut ChaCha8Rng) -> Fitted {
    let Shape { width, height, .. } = *shape;
    assert!(width > 0 && height > 0, "a picture of {width}x{height} is asked");
    let flat = to_colour(Cow::Borrowed(image), shape.colour);
    let flat = flat.as_ref();
    let (from_width, from_height) = (flat.width(), flat.height());
    let whole = shape.part.pixels(from_width, from_height);
    let middle = middle_of(whole, width, height);
    let mut placed = None;
    let (crop, image) = match shape.fit {
        Fit::Crop => (middle, scale(flat, middle, width, height)),
        Fit::RandomCrop => {
            let mut place = |room: f64| if room > 0.0 { rng.random_range(0.0..=room) } else { 0.0 };
            let left = whole.left + place(whole.width - middle.width);
            let top = whole.top + place(whole.height - middle.height);
            let crop = fir::CropBox { left, top, ..middle };
            (crop, scale(flat, crop, width, height))
        }
        Fit::Stretch => (whole, scale(flat, whole, width, height)),
        Fit::Letterbox => {
            let factor = (f64::from(width) / whole.width).min(f64::from(height) / whole.height);
            let side = |side: f64, most: u32| ((side * factor).round() as u32).clamp(1, most);
            let (inner_width, inner_height) = (side(whole.width, width), side(whole.height, height));
            let inner = scale(flat, whole, inner_width, inner_height);
            if (inner_width, inner_height) == (width, height) {
                (whole, inner)
            } else {
                let (left, top) = ((width - inner_width) / 2, (height - inner_height) / 2);
                placed = Some([left, top, inner_width, inner_height]);
                let mut all: DynamicImage = match shape.colour {
                    Colour::Grey => GrayImage::new(width, height).into(),
                    Colour::Rgb => RgbImage::new(width, height).into(),
                };
                match (&mut all, &inner) {
                    (DynamicImage::ImageLuma8(all), DynamicImage::ImageLuma8(inner)) => {
                        image::imageops::replace(all, inner, left.into(), top.into());
                    }
                    (DynamicImage::ImageRgb8(all), DynamicImage::ImageRgb8(inner)) => {
                        image::imageops::replace(all, inner, left.into(), top.into());
                    }
                    _ => unreachable!("to_colour gave both the same colours"),
                }
                (whole, all)
            }
        }
    };
    Fitted { image, crop: [crop.left, crop.top, crop.width, crop.height], placed }
}

/// The largest part of the shape `width` to `height` out of the middle of a picture, scaled to that size.
pub fn cut_middle(image: &DynamicImage, width: u32, height: u32, colour: Colour) -> DynamicImage {
    let flat = to_colour(Cow::Borrowed(image), colour);
    let middle = middle_of(Part::default().pixels(flat.width(), flat.height()), width, height);
    scale(&flat, middle, width, height)
}

/// The largest part of the shape `width` to `height` out of the middle of another.
fn middle_of(whole: fir::CropBox, width: u32, height: u32) -> fir::CropBox {
    let (width, height) = (f64::from(width), f64::from(height));
    let factor = (whole.width / width).min(whole.height / height);
    let side = |side: f64, most: f64| (factor * side).min(most);
    let (width, height) = (side(width, whole.width), side(height, whole.height));
    let (left, top) = (whole.left + (whole.width - width) / 2.0, whole.top + (whole.height - height) / 2.0);
    fir::CropBox { left, top, width, height }
}

/// A part of a grey or RGB picture in another size.
fn scale(flat: &DynamicImage, crop: fir::CropBox, width: u32, height: u32) -> DynamicImage {
    let (from_width, from_height) = (flat.width(), flat.height());
    let whole = crop.width == f64::from(from_width) && crop.height == f64::from(from_height);
    if whole && (from_width, from_height) == (width, height) {
        return flat.clone();
    }
    let (kind, pixels) = match flat {
        DynamicImage::ImageLuma8(grey) => (fir::PixelType::U8, grey.as_raw()),
        DynamicImage::ImageRgb8(rgb) => (fir::PixelType::U8x3, rgb.as_raw()),
        _ => unreachable!("to_colour gives grey or RGB"),
    };
    let source = fir::images::ImageRef::new(from_width, from_height, pixels, kind);
    let mut scaled = fir::images::Image::new(width, height, kind);
    let options = fir::ResizeOptions::new()
        .resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::Lanczos3))
        .crop(crop.left, crop.top, crop.width, crop.height);
    // It keeps its memory, which would take longer to get than to use.
    thread_local!(static RESIZER: RefCell<fir::Resizer> = RefCell::new(fir::Resizer::new()));
    let resize = |source| RESIZER.with_borrow_mut(|resizer| resizer.resize(&source, &mut scaled, &options));
    let resized = source.map(resize);
    assert!(matches!(resized, Ok(Ok(()))), "{from_width}x{from_height} to {width}x{height}: {resized:?}");
    let pixels = scaled.into_vec();
    match kind {
        fir::PixelType::U8 => GrayImage::from_raw(width, height, pixels).map(Into::into),
        _ => RgbImage::from_raw(width, height, pixels).map(Into::into),
    }
    .expect("as many pixels as asked")
}

/// The picture as 8-bit grey or RGB; transparent parts are laid over black. One that is so already is only lent on.
pub fn to_colour(image: Cow<DynamicImage>, colour: Colour) -> Cow<DynamicImage> {
    let has_colour = image.color().has_color();
    if image.color().has_alpha() {
        return Cow::Owned(to_colour(Cow::Owned(over_black(&image).into()), colour).into_owned());
    }
    let converted: DynamicImage = match colour {
        Colour::Rgb if matches!(*image, DynamicImage::ImageRgb8(_)) => return image,
        Colour::Grey if matches!(*image, DynamicImage::ImageLuma8(_)) => return image,
        Colour::Rgb => image.to_rgb8().into(),
        Colour::Grey if !has_colour => image.to_luma8().into(),
        Colour::Grey => {
            let rgb = match *image {
                DynamicImage::ImageRgb8(ref rgb) => Cow::Borrowed(rgb),
                ref other => Cow::Owned(other.to_rgb8()),
            };
            let luma = |p: &image::Rgb<u8>| {
                let [r, g, b] = p.0.map(u32::from);
                // 0.299, 0.587 and 0.114 in 16 bits.
                image::Luma([((19_595 * r + 38_470 * g + 7_471 * b + 32_768) >> 16) as u8])
            };
            let pixels = rgb.pixels().map(|p| luma(p).0[0]).collect();
            GrayImage::from_raw(rgb.width(), rgb.height(), pixels).expect("one value per pixel").into()
        }
    };
    Cow::Owned(converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(image: &DynamicImage, width: u32, height: u32, colour: Colour) -> Fitted {
        as_asked(image, Shape { part: Part::default(), width, height, fit: Fit::Crop, colour }, 0)
    }

    fn as_asked(image: &DynamicImage, shape: Shape, seed: u64) -> Fitted {
        super::fit(image, &shape, &mut crate::rng::stream(seed, "test", 0))
    }

    #[test]
    fn the_middle_is_kept_in_the_shape_of_the_target() {
        // Three vertical bands; only the middle one survives a square crop.
        let wide = RgbImage::from_fn(300, 100, |x, _| image::Rgb([0, (x / 100) as u8 * 100, 9]));
        let fitted = fit(&wide.into(), 50, 50, Colour::Rgb);
        assert_eq!(fitted.crop, [100.0, 0.0, 100.0, 100.0]);
        // The filter looks a little beyond the cut.
        let rgb = fitted.image.to_rgb8();
        assert!(rgb.enumerate_pixels().all(|(x, _, p)| !(3..47).contains(&x) || p.0 == [0, 100, 9]));
        let tall = GrayImage::from_fn(10, 40, |_, y| image::Luma([y as u8]));
        let fitted = fit(&tall.into(), 20, 10, Colour::Grey);
        assert_eq!(fitted.crop, [0.0, 17.5, 10.0, 5.0]);
        let middle = fitted.image.to_luma8().get_pixel(10, 5).0[0];
        assert!((19..=21).contains(&middle), "{middle}");
    }

    #[test]
    fn fine_stripes_become_even_grey_instead_of_moire() {
        let stripes = GrayImage::from_fn(900, 900, |x, _| image::Luma([if x % 2 == 0 { 0 } else { 255 }]));
        let small = fit(&stripes.into(), 100, 100, Colour::Grey).image.to_luma8();
        let inside = (5..95).flat_map(|y| (5..95).map(move |x| (x, y)));
        let extreme = inside.map(|(x, y)| small.get_pixel(x, y).0[0].abs_diff(128)).max();
        assert!(extreme <= Some(4), "{extreme:?}");
    }

    #[test]
    fn a_picture_of_the_right_size_is_not_touched() {
        let noise = RgbImage::from_fn(33, 17, |x, y| image::Rgb([(x * 91 + y * 57) as u8, x as u8, y as u8]));
        assert_eq!(fit(&noise.clone().into(), 33, 17, Colour::Rgb).image.to_rgb8(), noise);
        let tiny = RgbImage::from_pixel(1, 3, image::Rgb([1, 2, 3]));
        assert_eq!(fit(&tiny.into(), 200, 100, Colour::Rgb).image.to_rgb8().get_pixel(7, 7).0, [1, 2, 3]);
    }

    #[test]
    fn grey_is_the_luma_of_bt_601_and_transparency_is_black() {
        let grey = |p: [u8; 3]| {
            let image = RgbImage::from_pixel(1, 1, image::Rgb(p)).into();
            to_colour(Cow::Owned(image), Colour::Grey).to_luma8().get_pixel(0, 0).0[0]
        };
        let seen = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]].map(grey);
        assert_eq!(seen, [76, 150, 29, 255]);
        let half = image::RgbaImage::from_pixel(1, 1, image::Rgba([200, 100, 0, 128]));
        let flat = to_colour(Cow::Owned(half.into()), Colour::Rgb);
        assert_eq!(flat.to_rgb8().get_pixel(0, 0).0, [100, 50, 0]);
    }

    #[test]
    fn a_random_crop_is_anywhere_and_the_whole_is_kept_between_bars_or_distorted() {
        // The value of a pixel is its column.
        let wide: DynamicImage = GrayImage::from_fn(200, 50, |x, _| image::Luma([x as u8])).into();
        let shape = |fit| Shape { part: Part::default(), width: 50, height: 50, fit, colour: Colour::Grey };
        let lefts: Vec<f64> =
            (0..200).map(|seed| as_asked(&wide, shape(Fit::RandomCrop), seed).crop[0]).collect();
        assert!(lefts.iter().all(|left| (0.0..=150.0).contains(left)));
        let mean = lefts.iter().sum::<f64>() / 200.0;
        assert!((mean - 75.0).abs() < 4.0 * 43.3 / 200f64.sqrt(), "{mean}");
        let random = as_asked(&wide, shape(Fit::RandomCrop), 5);
        let middle = f64::from(random.image.to_luma8().get_pixel(25, 25).0[0]);
        assert!((middle - random.crop[0] - 25.0).abs() < 1.5 && random.placed.is_none());

        let boxed = as_asked(&wide, shape(Fit::Letterbox), 0);
        assert_eq!((boxed.crop, boxed.placed), ([0.0, 0.0, 200.0, 50.0], Some([0, 18, 50, 13])));
        let grey = boxed.image.to_luma8();
        assert_eq!((grey.get_pixel(40, 17).0[0], grey.get_pixel(40, 31).0[0]), (0, 0));
        assert!(grey.get_pixel(40, 25).0[0].abs_diff(162) <= 2);

        let stretched = as_asked(&wide, shape(Fit::Stretch), 0);
        assert!(
            stretched.placed.is_none() && stretched.image.to_luma8().get_pixel(40, 3).0[0].abs_diff(162) <= 2
        );
        // Of a part, the same.
        let part = Part { left: 0.25, top: 0.0, width: 0.5, height: 1.0 };
        let of_part = |fit| as_asked(&wide, Shape { part, ..shape(fit) }, 5);
        assert_eq!(of_part(Fit::Crop).crop, [75.0, 0.0, 50.0, 50.0]);
        assert!((50.0..=100.0).contains(&of_part(Fit::RandomCrop).crop[0]));
        let boxed = of_part(Fit::Letterbox);
        assert_eq!((boxed.crop, boxed.placed), ([50.0, 0.0, 100.0, 50.0], Some([0, 12, 50, 25])));
        assert!(boxed.image.to_luma8().get_pixel(0, 24).0[0].abs_diff(51) <= 2);
        assert_eq!(of_part(Fit::Stretch).crop, [50.0, 0.0, 100.0, 50.0]);

        let rgb = Shape { colour: Colour::Rgb, ..shape(Fit::Letterbox) };
        assert_eq!(as_asked(&wide, rgb, 0).image.color(), image::ColorType::Rgb8);
    }
}
