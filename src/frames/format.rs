//! How stored pictures are compressed.

use std::io;

use image::DynamicImage;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How pictures are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PictureFormat {
    /// JPEG of a quality from 1 to 100.
    Jpg(u8),
    /// PNG, without loss.
    Png,
    /// WebP, without loss.
    WebP,
}

impl PictureFormat {
    /// The end of the file name: `jpg`, `png` or `webp`.
    pub fn extension(self) -> &'static str {
        match self {
            PictureFormat::Jpg(_) => "jpg",
            PictureFormat::Png => "png",
            PictureFormat::WebP => "webp",
        }
    }

    /// The picture as a file.
    ///
    /// # Errors
    /// If the encoder refuses the picture, say one larger than the format allows.
    pub fn encode(self, image: &DynamicImage) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let encoded = match self {
            PictureFormat::Jpg(quality) => encode_jpeg(image, quality, &mut bytes),
            PictureFormat::Png => image
                .write_to(&mut io::Cursor::new(&mut bytes), image::ImageFormat::Png)
                .map_err(|e| e.to_string()),
            PictureFormat::WebP => image
                .write_to(&mut io::Cursor::new(&mut bytes), image::ImageFormat::WebP)
                .map_err(|e| e.to_string()),
        };
        encoded
            .map_err(|e| Error::Mismatch(format!("cannot encode a picture as {}: {e}", self.extension())))?;
        Ok(bytes)
    }
}

/// Without chroma subsampling from quality 90 on.
fn encode_jpeg(image: &DynamicImage, quality: u8, bytes: &mut Vec<u8>) -> Result<(), String> {
    let side = |side: u32| u16::try_from(side).map_err(|_| format!("a side of {side} pixels is too long"));
    let (width, height) = (side(image.width())?, side(image.height())?);
    let encoder = jpeg_encoder::Encoder::new(bytes, quality);
    let encoded = match image {
        DynamicImage::ImageLuma8(grey) => {
            encoder.encode(grey.as_raw(), width, height, jpeg_encoder::ColorType::Luma)
        }
        other => encoder.encode(&other.to_rgb8(), width, height, jpeg_encoder::ColorType::Rgb),
    };
    encoded.map_err(|e| e.to_string())
}
