//! Measures of stored pictures, and the filters that leave some out.

use std::borrow::Cow;
use std::collections::HashMap;

use fast_image_resize as fir;
use image::{DynamicImage, GrayImage};
use image_hasher::{HashAlg, Hasher, HasherConfig};
use serde::{Deserialize, Serialize};

use super::{Colour, scale, to_colour};

/// Longer side of the copy that [`Quality::sharpness`] is measured on.
const SHARPNESS_SIDE: u32 = 160;
/// Side of the copy that is hashed.
const HASHED_SIDE: u32 = 32;

/// Measures of a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Mean luma, 0 to 255.
    pub brightness: f32,
    /// Standard deviation of the luma.
    pub contrast: f32,
    /// Energy of the Laplacian in relation to that of the gradient, on a copy of at most 160 pixels: does not depend on
    /// contrast. 0 where nothing changes.
    pub sharpness: f32,
    /// 64 bits of a perceptual hash: DCT of a small copy, compared with its median. Pictures that look alike differ in few.
    pub perceptual_hash: u64,
}

/// Measures a picture.
pub fn quality(image: &DynamicImage) -> Quality {
    let grey = to_colour(Cow::Borrowed(image), Colour::Grey);
    let DynamicImage::ImageLuma8(luma) = grey.as_ref() else { unreachable!("grey was asked") };
    let pixels = luma.as_raw();
    let count = pixels.len() as f64;
    let mean = pixels.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    let variance = pixels.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
    let longer = grey.width().max(grey.height());
    let sharpness = if longer > SHARPNESS_SIDE {
        let side = |side: u32| (side * SHARPNESS_SIDE / longer).max(1);
        sharpness(&shrunk(&grey, side(grey.width()), side(grey.height())))
    } else {
        sharpness(luma)
    };
    // Making one takes longer than using it.
    thread_local!(static HASHER: Hasher<Box<[u8]>> = HasherConfig::with_bytes_type()
        .hash_alg(HashAlg::Median)
        .preproc_dct()
        .hash_size(8, 8)
        .to_hasher());
    let hash = HASHER.with(|hasher| hasher.hash_image(&shrunk(&grey, HASHED_SIDE, HASHED_SIDE)));
    let perceptual_hash = hash.as_bytes().iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    Quality { brightness: mean as f32, contrast: variance.sqrt() as f32, sharpness, perceptual_hash }
}

fn shrunk(grey: &DynamicImage, width: u32, height: u32) -> GrayImage {
    let whole =
        fir::CropBox { left: 0.0, top: 0.0, width: grey.width().into(), height: grey.height().into() };
    scale(grey, whole, width, height).into_luma8()
}

/// Energy of the discrete Laplacian over that of the central differences.
fn sharpness(grey: &GrayImage) -> f32 {
    let width = grey.width() as usize;
    let rows: Vec<&[u8]> = grey.as_raw().chunks_exact(width).collect();
    let (mut second, mut first) = (0u64, 0u64);
    for rows in rows.windows(3) {
        for x in 1..width.max(1) - 1 {
            let [up, down, left, right, here] =
                [rows[0][x], rows[2][x], rows[1][x - 1], rows[1][x + 1], rows[1][x]].map(i32::from);
            second += u64::from((left + right + up + down - 4 * here).unsigned_abs().pow(2));
            first += u64::from((right - left).unsigned_abs().pow(2) + (down - up).unsigned_abs().pow(2));
        }
    }
    if first > 0 { (second as f64 / first as f64) as f32 } else { 0.0 }
}

/// Why a frame is left out; of several reasons the first counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// The original is smaller than asked.
    Small,
    /// Nearly black.
    Dark,
    /// Nearly of one colour.
    Uniform,
    /// Not sharp.
    Blurred,
    /// Nearly the same as an earlier frame of the same input.
    Duplicate,
    /// Nearly the same as an earlier frame of another input.
    DuplicateAcross,
    /// Nearly the same as a picture that frames were to be unlike.
    Known,
}

/// Which frames are left out; by default none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Filters {
    /// Least width of the upright original, in pixels.
    pub min_width: u32,
    /// Least height of the upright original.
    pub min_height: u32,
    /// Least [`Quality::brightness`].
    pub dark: Option<f32>,
    /// Least [`Quality::contrast`].
    pub uniform: Option<f32>,
    /// Least [`Quality::sharpness`].
    pub blurred: Option<f32>,
    /// Most bits in which the hashes of duplicates differ.
    pub duplicates: Option<u32>,
}

impl Filters {
    /// Default of the program for [`dark`](Self::dark): black film has about 4, a night scene where one sees something 15.
    pub const DARK: f32 = 10.0;
    /// Default of the program for [`uniform`](Self::uniform): black film has about 1, pale natural scenes 26.
    pub const UNIFORM: f32 = 6.0;
    /// Default of the program for [`blurred`](Self::blurred): sharp frames of real videos have at least 0.23; blurred by a
    /// Gaussian of 4 pixels at 640 pixels' width, most have less than 0.15.
    pub const BLURRED: f32 = 0.15;
    /// Default of the program for [`duplicates`](Self::duplicates): re-encoded frames differ in at most 2 bits, frames of
    /// different videos in at least 13.
    pub const DUPLICATES: u32 = 4;

    /// Why a frame is left out by itself, if it is; duplicates are found by [`Duplicates`].
    ///
    /// `original` is the size of the upright original, `quality` that of the stored picture.
    pub fn reject(&self, original: (u32, u32), quality: &Quality) -> Option<Dropped> {
        let below = |value: f32, least: Option<f32>| least.is_some_and(|least| value < least);
        if original.0 < self.min_width || original.1 < self.min_height {
            Some(Dropped::Small)
        } else if below(quality.brightness, self.dark) {
            Some(Dropped::Dark)
        } else if below(quality.contrast, self.uniform) {
            Some(Dropped::Uniform)
        } else if below(quality.sharpness, self.blurred) {
            Some(Dropped::Blurred)
        } else {
            None
        }
    }
}

/// Finds hashes within a Hamming distance of each other, among millions.
///
/// The 64 bits are divided into one band more than bits may differ: near hashes then agree in at least one band, and
/// only those that do are compared.
pub struct Duplicates {
    distance: u32,
    known: Vec<(u64, u64)>,
    /// By band and its bits, which of `known` have them.
    bands: Vec<HashMap<u64, Vec<u32>>>,
}

impl Duplicates {
    /// For hashes that differ in at most `distance` bits, at most 16.
    pub fn new(distance: u32) -> Duplicates {
        assert!(distance <= 16, "{distance} of 64 bits is no likeness");
        Duplicates { distance, known: Vec::new(), bands: vec![HashMap::new(); distance as usize + 1] }
    }

    fn band(&self, hash: u64, band: usize) -> u64 {
        let (count, band) = (self.bands.len() as u32, band as u32);
        let (start, end) = (64 * band / count, 64 * (band + 1) / count);
        let bits = hash >> start;
        if end - start == 64 { bits } else { bits & ((1 << (end - start)) - 1) }
    }

    /// Remembers the hash of a frame of `video`.
    pub fn insert(&mut self, hash: u64, video: u64) {
        let number = u32::try_from(self.known.len()).expect("fewer than four billion frames");
        self.known.push((hash, video));
        for band in 0..self.bands.len() {
            let bits = self.band(hash, band);
            self.bands[band].entry(bits).or_default().push(number);
        }
    }

    /// The video of a hash near to this one, `video` itself if one of its own is near.
    pub fn find(&self, hash: u64, video: u64) -> Option<u64> {
        let mut other = None;
        for band in 0..self.bands.len() {
            for &number in self.bands[band].get(&self.band(hash, band)).into_iter().flatten() {
                let (known, of) = self.known[number as usize];
                if (known ^ hash).count_ones() <= self.distance {
                    if of == video {
                        return Some(video);
                    }
                    other = Some(of);
                }
            }
        }
        other
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::Rng;

    fn waves(phase: f32, period: f32, amplitude: f32) -> DynamicImage {
        GrayImage::from_fn(120, 90, |x, y| {
            let wave = ((x as f32 + phase) / period).sin() + (y as f32 / period).cos();
            image::Luma([(128.0 + amplitude * wave) as u8])
        })
        .into()
    }

    #[test]
    fn measures_of_plain_pictures_are_known() {
        let flat = quality(&GrayImage::from_pixel(50, 40, image::Luma([7])).into());
        assert_eq!((flat.brightness, flat.contrast, flat.sharpness), (7.0, 0.0, 0.0));
        let halves =
            quality(&GrayImage::from_fn(50, 40, |x, _| image::Luma([if x < 25 { 0 } else { 200 }])).into());
        assert_eq!((halves.brightness, halves.contrast), (100.0, 100.0));
        // A picture too small to have an inside.
        assert_eq!(quality(&GrayImage::new(1, 2).into()).sharpness, 0.0);
    }

    #[test]
    fn blur_lowers_sharpness_and_contrast_does_not_change_it() {
        let (fine, coarse) = (quality(&waves(0.0, 1.0, 50.0)), quality(&waves(0.0, 5.0, 50.0)));
        assert!(fine.sharpness > 4.0 * coarse.sharpness, "{} {}", fine.sharpness, coarse.sharpness);
        let faint = quality(&waves(0.0, 2.0, 25.0)).sharpness / quality(&waves(0.0, 2.0, 60.0)).sharpness;
        assert!((0.9..1.1).contains(&faint), "{faint}");
    }

    #[test]
    fn the_first_reason_that_applies_counts() {
        let filters = Filters {
            min_width: 10,
            min_height: 10,
            dark: Some(20.0),
            uniform: Some(5.0),
            blurred: Some(0.5),
            ..Default::default()
        };
        let reject = |size, brightness, contrast, sharpness| {
            filters.reject(size, &Quality { brightness, contrast, sharpness, perceptual_hash: 0 })
        };
        assert_eq!(reject((9, 99), 0.0, 0.0, 0.0), Some(Dropped::Small));
        assert_eq!(reject((99, 99), 19.0, 0.0, 0.0), Some(Dropped::Dark));
        assert_eq!(reject((99, 99), 20.0, 4.0, 0.0), Some(Dropped::Uniform));
        assert_eq!(reject((99, 99), 20.0, 5.0, 0.4), Some(Dropped::Blurred));
        assert_eq!(reject((99, 99), 20.0, 5.0, 0.5), None);
        let nothing = Quality { brightness: 0.0, contrast: 0.0, sharpness: 0.0, perceptual_hash: 0 };
        assert_eq!(Filters::default().reject((1, 1), &nothing), None);
    }

    /// Patches of random greys with soft borders.
    fn scene(seed: u64) -> DynamicImage {
        let mut rng = crate::rng::stream(seed, "scene", 0);
        let patches = GrayImage::from_fn(12, 9, |_, _| image::Luma([rng.random()]));
        DynamicImage::from(patches).resize_exact(120, 90, image::imageops::FilterType::CatmullRom)
    }

    #[test]
    fn pictures_that_look_alike_have_near_hashes() {
        let hash = |image: &DynamicImage| quality(image).perceptual_hash;
        for seed in 0..20 {
            let original = scene(seed);
            let larger = original.resize(240, 180, image::imageops::FilterType::CatmullRom);
            let duller = DynamicImage::from(image::imageops::contrast(&original.to_luma8(), -20.0));
            for changed in [larger, duller] {
                let near = (hash(&original) ^ hash(&changed)).count_ones();
                assert!(near <= Filters::DUPLICATES, "scene {seed}: {near}");
            }
            let far = (hash(&original) ^ hash(&scene(seed + 100))).count_ones();
            assert!(far > 2 * Filters::DUPLICATES, "scene {seed}: {far}");
        }
    }

    proptest! {
        #[test]
        fn duplicates_are_those_that_a_full_search_finds(
            distance in 0u32..=16,
            flips in prop::collection::vec((0usize..4, prop::collection::vec(0u32..64, 0..12), 0u64..5), 1..60),
        ) {
            let bases = [0u64, u64::MAX, 0x0123_4567_89ab_cdef, 0xf0f0_f0f0_0f0f_0f0f];
            let mut index = Duplicates::new(distance);
            let mut all: Vec<(u64, u64)> = Vec::new();
            for (base, bits, video) in flips {
                let hash = bits.into_iter().fold(bases[base], |hash, bit| hash ^ 1 << bit);
                let near: Vec<u64> =
                    all.iter().filter(|(known, _)| (known ^ hash).count_ones() <= distance).map(|(_, of)| *of).collect();
                let found = index.find(hash, video);
                prop_assert_eq!(found.is_some(), !near.is_empty());
                prop_assert_eq!(found == Some(video), near.contains(&video));
                prop_assert!(found.is_none_or(|found| near.contains(&found)));
                index.insert(hash, video);
                all.push((hash, video));
            }
        }
    }
}
