//! Pictures on disk: cut and scaled on the way in, found at random on the way out.
//!
//! A frame set is a folder of WebDataset tar shards, written by [`FrameWriter`]. [`FrameStore`] reads it back, and
//! also tar shards and folders of pictures from elsewhere.

mod store;
mod writer;

use fast_image_resize as fir;
use image::{DynamicImage, GrayImage, RgbImage};
use serde::{Deserialize, Serialize};

use crate::video::sampler::Strategy;

pub use store::FrameStore;
pub use writer::{FrameSetSummary, FrameWriter, PictureFormat, WriterOptions};

/// Pictures with a longer side than this are refused, so that a hostile file cannot take all memory.
pub const MAX_SIDE: u32 = 16_384;

/// Colours of a stored picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// One channel, luma of BT.601.
    Grey,
    /// Three channels.
    Rgb,
}

/// Where a frame came from and what was done to it; stored beside each picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrameMetadata {
    /// The video file as it was named.
    pub source: String,
    /// Its path relative to the folder that was named.
    pub name: String,
    /// Index of the video stream.
    pub stream: usize,
    /// Presentation timestamp in units of the stream.
    pub pts: i64,
    /// The same in seconds.
    pub seconds: f64,
    /// Width as coded, before rotation.
    pub original_width: u32,
    /// Height as coded, before rotation.
    pub original_height: u32,
    /// Degrees clockwise by which the coded picture was turned.
    pub rotation: u32,
    /// Whether it was mirrored before.
    pub mirrored: bool,
    /// How the frame was found.
    pub strategy: Strategy,
    /// Seed of the random instants.
    pub seed: u64,
    /// Left, top, width and height of what was kept, in pixels of the upright picture.
    pub crop: [f64; 4],
    /// FNV-1a hash of the stored picture's pixels before compression, in hexadecimal.
    pub hash: String,
}

/// A picture after [`fit`].
pub struct Fitted {
    /// The picture, 8 bits per channel.
    pub image: DynamicImage,
    /// Left, top, width and height of what was kept of the original.
    pub crop: [f64; 4],
}

/// Cuts the middle out of a picture in the shape of the target, then scales it by Lanczos, without aliasing.
///
/// Transparent parts are laid over black.
pub fn fit(image: &DynamicImage, width: u32, height: u32, colour: Colour) -> Fitted {
    assert!(width > 0 && height > 0, "a picture of {width}x{height} is asked");
    let flat = to_colour(image, colour);
    let (from_width, from_height) = (flat.width(), flat.height());
    let crop = fir::CropBox::fit_src_into_dst_size(from_width, from_height, width, height, None);
    let (kind, pixels) = match &flat {
        DynamicImage::ImageLuma8(grey) => (fir::PixelType::U8, grey.as_raw()),
        DynamicImage::ImageRgb8(rgb) => (fir::PixelType::U8x3, rgb.as_raw()),
        _ => unreachable!("to_colour gives grey or RGB"),
    };
    let scaled = if (from_width, from_height) == (width, height) {
        flat
    } else {
        let source = fir::images::ImageRef::new(from_width, from_height, pixels, kind);
        let mut scaled = fir::images::Image::new(width, height, kind);
        let options = fir::ResizeOptions::new()
            .resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::Lanczos3))
            .crop(crop.left, crop.top, crop.width, crop.height);
        let resized = source.map(|source| fir::Resizer::new().resize(&source, &mut scaled, &options));
        assert!(matches!(resized, Ok(Ok(()))), "{from_width}x{from_height} to {width}x{height}: {resized:?}");
        let pixels = scaled.into_vec();
        match colour {
            Colour::Grey => GrayImage::from_raw(width, height, pixels).map(Into::into),
            Colour::Rgb => RgbImage::from_raw(width, height, pixels).map(Into::into),
        }
        .expect("as many pixels as asked")
    };
    Fitted { image: scaled, crop: [crop.left, crop.top, crop.width, crop.height] }
}

/// The picture as 8-bit grey or RGB; transparent parts are laid over black.
pub fn to_colour(image: &DynamicImage, colour: Colour) -> DynamicImage {
    let has_colour = image.color().has_color();
    if image.color().has_alpha() {
        let mut rgba = image.to_rgba8();
        for pixel in rgba.pixels_mut() {
            let [colours @ .., alpha] = &mut pixel.0;
            for v in colours {
                *v = ((u16::from(*v) * u16::from(*alpha) + 127) / 255) as u8;
            }
        }
        return to_colour(&DynamicImage::ImageRgba8(rgba).to_rgb8().into(), colour);
    }
    match colour {
        Colour::Rgb => image.to_rgb8().into(),
        Colour::Grey if !has_colour => image.to_luma8().into(),
        Colour::Grey => {
            let rgb = image.to_rgb8();
            let luma = |p: &image::Rgb<u8>| {
                let [r, g, b] = p.0.map(u32::from);
                // 0.299, 0.587 and 0.114 in 16 bits.
                image::Luma([((19_595 * r + 38_470 * g + 7_471 * b + 32_768) >> 16) as u8])
            };
            let pixels = rgb.pixels().map(|p| luma(p).0[0]).collect();
            GrayImage::from_raw(rgb.width(), rgb.height(), pixels).expect("one value per pixel").into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            to_colour(&image, Colour::Grey).to_luma8().get_pixel(0, 0).0[0]
        };
        let seen = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]].map(grey);
        assert_eq!(seen, [76, 150, 29, 255]);
        let half = image::RgbaImage::from_pixel(1, 1, image::Rgba([200, 100, 0, 128]));
        let flat = to_colour(&half.into(), Colour::Rgb);
        assert_eq!(flat.to_rgb8().get_pixel(0, 0).0, [100, 50, 0]);
    }
}
