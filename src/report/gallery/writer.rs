//! Writes what was found of units as pictures.

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use ndarray::Array3;

use super::gather::{Found, Gathered};
use super::{Choice, MeanFrame, SHEET_UNITS, StimulusPage, TopFrame, UnitPage};
use crate::analysis::stimulus::{Sign, Stimulus, why_flat};
use crate::analysis::top::Answer;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::network::Unit;
use crate::network::checkpoint::Checkpoint;
use crate::picture::{captioned_png, grid, pixel_tile, save_png, signed_tile};

/// Writes the pictures of one stage's units.
pub(super) struct Writer<'a> {
    pub(super) folder: &'a Path,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) dataset: &'a Dataset,
    pub(super) choice: &'a Choice,
    /// Tiles of the first units, a row for each.
    pub(super) sheet: Vec<RgbImage>,
}

impl Writer<'_> {
    pub(super) fn page(&mut self, stage: usize, unit: Unit, gathered: Gathered) -> Result<UnitPage> {
        let Gathered { mut top, bottom, over_frames, signature, stimuli: found } = gathered;
        let name = format!("map{:03}-row{:02}-col{:02}", unit.map, unit.row, unit.col);
        let folder = PathBuf::from(format!("stage{}", stage + 1));
        let full = self.folder.join(&folder);
        fs::create_dir_all(&full).map_err(Error::io(&full, "create"))?;
        let shape = self.dataset.shape;
        let row = self.sheet.len();
        let mut stimuli = Vec::new();
        for (number, found) in (1..).zip(&found) {
            stimuli.push(self.stimulus(stage, found, &folder.join(format!("{name}-stimulus{number}")))?);
        }
        // A unit may have fewer stimuli than others: the frames stand in one column all the same.
        let blank = RgbImage::from_pixel(shape.cols as u32, shape.rows as u32, image::Rgb([24; 3]));
        self.sheet.resize(row + self.stimulus_tiles(), blank.clone());
        let tile =
            |a: &Answer| pixel_tile(&self.dataset.pixels(a.frame), shape.channels, shape.rows, shape.cols);
        let row_of = |frames: &[Answer], which: &str| -> Result<(Vec<RgbImage>, PathBuf)> {
            let tiles: Vec<RgbImage> = frames.iter().map(tile).collect();
            let path = folder.join(format!("{name}-{which}.png"));
            save_png(&grid(&tiles, tiles.len(), 1), &self.folder.join(&path))?;
            Ok((tiles, path))
        };
        let mean = top.get(..self.choice.mean.min(top.len())).filter(|frames| !frames.is_empty());
        let mean =
            mean.map(|frames| self.mean_of(frames, &folder.join(format!("{name}-mean.png")))).transpose()?;
        top.truncate(self.choice.top);
        let (tiles, top_picture) = row_of(&top, "top")?;
        let (_, bottom_picture) = row_of(&bottom, "bottom")?;
        self.sheet.extend(tiles);
        self.sheet.resize(row + self.stimulus_tiles() + self.choice.top, blank);
        self.sheet.truncate(SHEET_UNITS * (self.stimulus_tiles() + self.choice.top));
        let frame = |a: &Answer| TopFrame { key: self.dataset.keys[a.frame].clone(), value: a.value };
        let [top, bottom] = [top, bottom].map(|frames| frames.iter().map(frame).collect());
        Ok(UnitPage {
            stage: stage + 1,
            unit,
            stimuli,
            top,
            top_picture,
            mean,
            bottom,
            bottom_picture,
            over_frames,
            signature,
        })
    }

    /// Writes the mean of frames, each with its own mean and contrast removed, stretched from black to white.
    fn mean_of(&self, frames: &[Answer], path: &Path) -> Result<MeanFrame> {
        let shape = self.dataset.shape;
        let mut sum = vec![0f64; shape.len()];
        for answer in frames {
            let pixels = self.dataset.pixels(answer.frame);
            let count = pixels.len() as f64;
            let mean = pixels.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
            let variance = pixels.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
            let contrast = variance.sqrt().max(1.0);
            sum.iter_mut().zip(pixels.iter()).for_each(|(sum, &v)| *sum += (f64::from(v) - mean) / contrast);
        }
        let (least, most) = sum.iter().fold((f64::MAX, f64::MIN), |(a, b), &v| (a.min(v), b.max(v)));
        let range = (most - least).max(1e-9);
        let pixels: Vec<u8> = sum.iter().map(|v| (255.0 * (v - least) / range).round() as u8).collect();
        save_png(&pixel_tile(&pixels, shape.channels, shape.rows, shape.cols), &self.folder.join(path))?;
        Ok(MeanFrame { frames: frames.len(), picture: path.into() })
    }

    /// Tiles of a row that stimuli take: each as pixels and as the network sees it.
    fn stimulus_tiles(&self) -> usize {
        2 * self.choice.norms.len() * self.choice.signs.len() * self.choice.optima.max(1)
    }

    /// Writes a stimulus as `NAME-pixels.png` and `NAME-preprocessed.png`.
    fn stimulus(&mut self, stage: usize, found: &Found, name: &Path) -> Result<StimulusPage> {
        let Checkpoint { network, whitening, .. } = self.checkpoint;
        let Found { stimulus, norm, .. } = found;
        let is_flat = stimulus.is_flat();
        let (mut paths, enhanced) = ([None, None], self.choice.view.label());
        if !is_flat {
            let pixels = stimulus.pixels.clone();
            let pixels = pixels.unwrap_or_else(|| whitening.unwhiten(stimulus.image.view()));
            let views = [("pixels", pixels.view()), ("preprocessed", stimulus.image.view())];
            for ((view, values), path) in views.into_iter().zip(&mut paths) {
                let (tile, file) = (signed_tile(values), format!("{}-{view}.png", name.display()));
                let caption = self.caption(stage, found, view);
                let full = self.folder.join(&file);
                fs::write(&full, captioned_png(&tile, Some(&caption))).map_err(Error::io(&full, "write"))?;
                self.sheet.push(tile);
                *path = Some(file.into());
            }
            debug_assert!((norm_of(&stimulus.image) / f64::from(*norm) - 1.0).abs() < 1e-5);
        }
        let [pixels, preprocessed] = paths;
        let number = |value: f32| (!is_flat).then_some(value);
        Ok(StimulusPage {
            asked: found.asked,
            norm: f64::from(*norm),
            sign: stimulus.sign,
            optimum: found.optimum,
            value: number(stimulus.value),
            start: found.start,
            start_value: number(stimulus.start_value),
            best_frame_value: found.best_frame,
            evaluations: stimulus.evaluations,
            ended: stimulus.ended,
            flat: is_flat.then(|| why_flat(network, stage, self.choice.kind, stimulus.unit)),
            pixels,
            preprocessed,
            enhanced,
        })
    }

    /// What a picture's metadata say it is.
    fn caption(&self, stage: usize, found: &Found, view: &str) -> String {
        let Stimulus { unit, sign, value, .. } = &found.stimulus;
        let way = if *sign == Sign::Positive { "highest" } else { "lowest" };
        let mut caption = format!(
            "preferred stimulus of stage {}, map {}, row {}, column {}: the {way} value found at norm {:.4}, {value}; {}",
            stage + 1,
            unit.map,
            unit.row,
            unit.col,
            found.norm,
            match view {
                "pixels" if self.checkpoint.whitening.mixes_pixels() => "mapped back to pixels",
                "pixels" => "as pixels",
                _ => "as the network sees it",
            }
        );
        if let Some(label) = self.choice.view.label() {
            caption += &format!("; {label}");
        }
        caption
    }

    /// A sheet of the first units: a row each.
    pub(super) fn save_sheet(&self, stage: usize) -> Result<()> {
        let width = self.sheet.first().map_or(1, |tile| tile.width());
        let columns = self.stimulus_tiles() + self.choice.top;
        save_png(
            &grid(&self.sheet, columns, (64 / width).max(1)),
            &self.folder.join(format!("stage{stage}.png")),
        )
    }
}

fn norm_of(image: &Array3<f32>) -> f64 {
    image.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}
