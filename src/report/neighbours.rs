//! `RUN/neighbours`: pictures, and beside each the frames that the network sees as most like it.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::analysis::Progress;
use crate::analysis::features::features;
use crate::analysis::invariance::shown;
use crate::analysis::neighbours::nearest;
use crate::analysis::top::Answer;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::files;
use crate::frames::FrameStore;
use crate::geometry::{Kind, MapShape};
use crate::network::checkpoint::Checkpoint;
use crate::network::preprocess::Inputs;
use crate::picture::{BACKGROUND, grid, pixel_tile, png, spread};

/// Pictures of a folder that are looked for, at most.
pub const MOST_PICTURES: usize = 64;

/// Least side of a picture on a sheet.
const TILE_PX: usize = 96;

/// A frame like a picture.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its number in the frame set.
    pub frame: usize,
    /// Its name there.
    pub key: String,
    /// Cosine of the features of both.
    pub similarity: f32,
}

/// A picture and the frames like it.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// The file or folder that was named.
    pub source: PathBuf,
    /// The picture's name in it.
    pub key: String,
    /// The sheet that it is on.
    pub sheet: PathBuf,
    /// From the most like.
    pub neighbours: Vec<Neighbour>,
}

/// All pictures.
#[derive(Debug, Clone, Serialize)]
pub struct Neighbours {
    /// The checkpoint that saw them.
    pub checkpoint: String,
    /// Where the frames are from.
    pub frames: PathBuf,
    /// Frames there are.
    pub frame_count: usize,
    /// Stage, from 1.
    pub stage: usize,
    /// Which values of its units are compared.
    pub kind: Kind,
    /// The pictures, in order.
    pub images: Vec<Found>,
    /// What could not be read or was left out.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

impl fmt::Display for Neighbours {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (number, found) in self.images.iter().enumerate() {
            writeln!(f, "{} ({})", found.key, found.sheet.display())?;
            for Neighbour { key, similarity, .. } in &found.neighbours {
                writeln!(f, "{similarity:>8.4}  {key}")?;
            }
            if number + 1 < self.images.len() {
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// A picture as the network is shown it.
struct Query {
    source: usize,
    key: String,
    pixels: Vec<u8>,
}

/// Finds the frames of `dataset` most like the pictures of `sources`, by the values `kind` of `stage` (from 0), and draws for each
/// source a sheet `out/NAME.png`: a row for each picture, and after it the frames.
///
/// # Errors
/// No picture can be read, or the folder cannot be written.
pub fn neighbours(
    (checkpoint, identity): (&Checkpoint, &str),
    (frames, dataset): (&Path, &Dataset),
    sources: &[(PathBuf, FrameStore)],
    ((stage, kind), keep): ((usize, Kind), usize),
    out: &Path,
    progress: &Progress,
) -> Result<Neighbours> {
    let Checkpoint { network, whitening, config } = checkpoint;
    let (queries, warnings) = read(sources, network.input, config.input.margin)?;
    fs::create_dir_all(out).map_err(Error::io(out, "create"))?;
    let pixels = queries.iter().flat_map(|query| query.pixels.iter().copied()).collect();
    let pictures = Dataset::from_pixels(network.input, pixels);
    let all: Vec<usize> = (0..pictures.len()).collect();
    let rows = features(network, &Inputs::new(&pictures, whitening, 0), &all, (stage, kind), |_| ())?;
    progress.begin("frames", dataset.len());
    let inputs = Inputs::new(dataset, whitening, 0);
    let nearest = nearest(network, &inputs, (stage, kind), rows.view(), keep, |count| progress.add(count));

    let names = sheet_names(sources.iter().map(|(path, _)| path.as_path()));
    for (source, name) in names.iter().enumerate() {
        let of_source = queries.iter().zip(&nearest).filter(|(query, _)| query.source == source);
        let rows: Vec<_> = of_source.map(|(query, answers)| (&query.pixels[..], &answers[..])).collect();
        if !rows.is_empty() {
            files::replace(&out.join(name), png(&sheet(&rows, dataset, keep)))?;
        }
    }
    let neighbour = |answer: Answer| Neighbour {
        frame: answer.frame,
        key: dataset.keys[answer.frame].clone(),
        similarity: answer.value,
    };
    let found = |(query, answers): (Query, Vec<Answer>)| Found {
        source: sources[query.source].0.clone(),
        key: query.key,
        sheet: out.join(&names[query.source]),
        neighbours: answers.into_iter().map(neighbour).collect(),
    };
    let images = queries.into_iter().zip(nearest).map(found).collect();
    let (checkpoint, frames) = (identity.to_owned(), frames.to_owned());
    let frame_count = dataset.len();
    Ok(Neighbours { checkpoint, frames, frame_count, stage: stage + 1, kind, images, warnings })
}

/// The pictures that can be read, and a line for what is left out.
fn read(
    sources: &[(PathBuf, FrameStore)],
    shape: MapShape,
    margin: usize,
) -> Result<(Vec<Query>, Vec<String>)> {
    let (mut queries, mut warnings, mut asked) = (Vec::new(), Vec::new(), 0);
    for (source, (path, store)) in sources.iter().enumerate() {
        let numbers = spread((0..store.len()).collect(), MOST_PICTURES.min(store.len()));
        if numbers.len() < store.len() {
            let (some, all) = (numbers.len(), store.len());
            warnings.push(format!("{}: {some} of {all} pictures, evenly spread", path.display()));
        }
        asked += numbers.len();
        let pixels = |&number: &usize| store.picture(number).map(|picture| shown(&picture, shape, margin));
        let pictures: Vec<_> = numbers.par_iter().map(pixels).collect();
        for (number, pixels) in numbers.into_iter().zip(pictures) {
            match pixels {
                Ok(pixels) => queries.push(Query { source, key: store.key(number).to_owned(), pixels }),
                Err(error) => warnings.push(format!("left out: {error}")),
            }
        }
    }
    if queries.is_empty() {
        let first =
            warnings.iter().find_map(|warning| warning.strip_prefix("left out: ")).unwrap_or_default();
        let problem = format!("none of {asked} pictures can be read; the first: {first}");
        return Err(Error::Mismatch(problem));
    }
    Ok((queries, warnings))
}

/// A row for each picture: itself, a gap, and the frames.
fn sheet(rows: &[(&[u8], &[Answer])], dataset: &Dataset, keep: usize) -> RgbImage {
    let MapShape { channels, rows: height, cols: width } = dataset.shape;
    let tile = |pixels: &[u8]| pixel_tile(pixels, channels, height, width);
    let gap = RgbImage::from_pixel(width as u32, height as u32, BACKGROUND);
    let mut tiles = Vec::new();
    for (pixels, answers) in rows {
        tiles.extend([tile(pixels), gap.clone()]);
        tiles.extend(answers.iter().map(|answer| tile(&dataset.pixels(answer.frame))));
        tiles.resize(tiles.len() + keep - answers.len(), gap.clone());
    }
    grid(&tiles, keep + 2, (TILE_PX / height.min(width)).max(1) as u32)
}

/// A name for the sheet of each path: its own, with a number where another has it already.
fn sheet_names<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<String> {
    let mut taken = HashSet::new();
    let name = |path: &Path| {
        let stem = path.file_stem().map_or("pictures".into(), |stem| stem.to_string_lossy().into_owned());
        let numbered = |number: usize| if number == 1 { stem.clone() } else { format!("{stem}-{number}") };
        let name = (1..).map(numbered).find(|name| taken.insert(name.clone())).expect("numbers do not end");
        format!("{name}.png")
    };
    paths.map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sheets_of_pictures_with_the_same_name_do_not_replace_each_other() {
        let paths = ["a/face.png", "b/face.jpg", "c/face-2.png", "faces/", "/"].map(Path::new);
        let names = sheet_names(paths.into_iter());
        assert_eq!(names, ["face.png", "face-2.png", "face-2-2.png", "faces.png", "pictures.png"]);
    }

    #[test]
    fn a_row_of_a_sheet_is_the_picture_a_gap_and_the_frames() {
        let shape = MapShape { channels: 1, rows: 48, cols: 96 };
        let frames = Dataset::from_pixels(shape, [vec![50; shape.len()], vec![200; shape.len()]].concat());
        let answers = [1, 0].map(|frame| Answer { frame, value: 1.0 });
        let picture = vec![9; shape.len()];
        let drawn = sheet(&[(&picture, &answers), (&picture, &answers[..1])], &frames, 2);
        // Two pixels between tiles of 192x96.
        assert_eq!(drawn.dimensions(), (4 * 194 + 2, 2 * 98 + 2));
        let at = |column: u32, row: u32| drawn.get_pixel(column * 194 + 90, row * 98 + 50).0[0];
        assert_eq!([0, 1, 2, 3].map(|column| at(column, 0)), [9, BACKGROUND.0[0], 200, 50]);
        assert_eq!([0, 1, 2, 3].map(|column| at(column, 1)), [9, BACKGROUND.0[0], 200, BACKGROUND.0[0]]);
    }
}
