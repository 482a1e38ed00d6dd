//! Which units fire for a picture that was sent, and why one of them answers as it does: as the page shows it.

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, RgbImage};
use serde::Serialize;

use super::upload::Refused;
use crate::analysis::UnitName;
use crate::analysis::explain::{Baseline, Explainer, HeatMap, Settings, Through};
use crate::analysis::look::{Firing, Viewer};
use crate::analysis::responses::Probe;
use crate::analysis::top::Answer;
use crate::classify::ReadOut;
use crate::dataset::Dataset;
use crate::network::checkpoint::Checkpoint;
use crate::network::preprocess::Inputs;
use crate::picture::{enlarged, png};
use crate::report::detectors::{Evaluated, Verdict};
use crate::report::explanation::{checked, overlay};
use crate::report::figure::significant;

/// Units named for each stage.
const UNITS: usize = 12;

/// Frames named that are most like it.
const NEIGHBOURS: usize = 8;

/// Classes named by each read-out.
const CLASSES: usize = 3;

/// Units named of each stage below.
const PARTS: usize = 6;

/// Side of a heat map on the page, about.
const SIDE_PX: u32 = 192;

/// Answer to `look`.
#[derive(Serialize)]
pub(super) struct Looked {
    /// The picture as it was sent.
    width: u32,
    height: u32,
    /// What the network sees of it, as the address of a PNG.
    seen: String,
    /// The unit to explain first, if one has something to explain.
    first: Option<String>,
    /// What the best unit for each concept that was tested says.
    detectors: Vec<DetectorSays>,
    /// What read-outs take it for.
    classes: Vec<ReadOutSays>,
    /// The top stage first.
    stages: Vec<StageShown>,
    neighbours: Vec<NeighbourShown>,
}

#[derive(Serialize)]
struct DetectorSays {
    unit: String,
    value: f32,
    #[serde(flatten)]
    verdict: Verdict,
}

#[derive(Serialize)]
struct ReadOutSays {
    name: String,
    /// The most probable first.
    answers: Vec<ClassSays>,
    /// Where it looks, over the picture, if it has attention.
    attention: Option<String>,
}

#[derive(Serialize)]
struct ClassSays {
    class: String,
    probability: f32,
}

#[derive(Serialize)]
struct StageShown {
    stage: usize,
    units: Vec<UnitShown>,
}

#[derive(Serialize)]
struct UnitShown {
    name: String,
    value: f32,
    above: f64,
}

#[derive(Serialize)]
struct NeighbourShown {
    key: String,
    similarity: f32,
    picture: String,
}

/// Answer to `explain`.
#[derive(Serialize)]
pub(super) struct Explained {
    value: f64,
    maps: Vec<MapShown>,
    below: Vec<BelowShown>,
    note: String,
}

#[derive(Serialize)]
struct MapShown {
    name: &'static str,
    words: String,
    picture: String,
}

#[derive(Serialize)]
struct BelowShown {
    stage: usize,
    units: Vec<PartShown>,
}

#[derive(Serialize)]
struct PartShown {
    name: String,
    contribution: f64,
}

/// An address that holds a picture itself.
fn address(picture: &RgbImage) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(png(picture)))
}

pub(super) fn look(
    viewer: &Viewer,
    (evaluated, identity): (&[Evaluated], &str),
    readouts: &[(String, ReadOut)],
    picture: &DynamicImage,
) -> Result<Looked, Refused> {
    let pixels = viewer.seen(picture);
    let look = viewer.look(&pixels, NEIGHBOURS);
    let says = |one: &Evaluated| {
        let probe = one.best_by(viewer.group.1)?.unit.probe;
        let firing = look.stages[probe.stage].iter().find(|firing| firing.name == probe.name())?;
        let verdict = one.verdict(identity, probe, firing.value.into())?;
        Some(DetectorSays { unit: firing.name.to_string(), value: firing.value, verdict })
    };
    let stage = |(number, units): (usize, &Vec<Firing>)| StageShown {
        stage: number,
        units: units
            .iter()
            .take(UNITS)
            .map(|firing| UnitShown {
                name: firing.name.to_string(),
                value: firing.value,
                above: firing.above,
            })
            .collect(),
    };
    let neighbour = |answer: &Answer| NeighbourShown {
        key: viewer.frames.keys[answer.frame].clone(),
        similarity: answer.value,
        picture: address(&viewer.tile(&viewer.frames.pixels(answer.frame))),
    };
    let mut stages: Vec<StageShown> = (1..).zip(&look.stages).map(stage).collect();
    stages.reverse();
    let read = |(name, readout): &(String, ReadOut)| says_of_class(viewer, &pixels, name, readout);
    Ok(Looked {
        classes: readouts.iter().map(read).collect::<Result<_, Refused>>()?,
        first: look.to_explain(viewer.group.0).next().map(|name| name.to_string()),
        detectors: evaluated.iter().filter_map(says).collect(),
        width: picture.width(),
        height: picture.height(),
        seen: address(&viewer.tile(&pixels)),
        stages,
        neighbours: look.neighbours.iter().map(neighbour).collect(),
    })
}

/// What a read-out takes a picture for, of which these are the pixels as the network sees it.
fn says_of_class(
    viewer: &Viewer,
    pixels: &[u8],
    name: &str,
    readout: &ReadOut,
) -> Result<ReadOutSays, Refused> {
    let Checkpoint { network, whitening, .. } = &viewer.checkpoint;
    let one = Dataset::from_pixels(network.input, pixels.to_vec());
    let inputs = Inputs::new(&one, whitening, 0);
    let features = readout.about.view.features(network, &inputs, &[0], |_| ())?;
    let probabilities = readout.probabilities(features.view());
    let classes = readout.about.classes.iter().zip(probabilities);
    let mut answers: Vec<ClassSays> =
        classes.map(|(class, probability)| ClassSays { class: class.clone(), probability }).collect();
    answers.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    answers.truncate(CLASSES);
    let under = viewer.tile(pixels);
    let zoom = (SIDE_PX / under.width().max(1)).max(1);
    let attention = readout.attention(features.view()).map(|weights| {
        let map = readout.over_picture(network, &weights.row(0).to_vec());
        address(&enlarged(&overlay(&under, &map), zoom))
    });
    Ok(ReadOutSays { name: name.to_owned(), answers, attention })
}

pub(super) fn explain(viewer: &Viewer, picture: &DynamicImage, name: UnitName) -> Result<Explained, Refused> {
    let known = name.check(&viewer.checkpoint.network, viewer.group.1);
    known.map_err(|e| Refused::new(StatusCode::NOT_FOUND, e.to_string()))?;
    let settings = Settings { baseline: Baseline::Zero, occlude_px: None, sanity: false, seed: 0 };
    let pixels = viewer.seen(picture);
    let probe = Probe { stage: name.stage - 1, kind: viewer.group.1, unit: name.unit };
    let found = Explainer::new(&viewer.checkpoint, settings)?.explain(&pixels, probe)?;
    let under = viewer.tile(&pixels);
    let zoom = (SIDE_PX / under.width().max(1)).max(1);
    let map = |name, words, map: &HeatMap| MapShown {
        name,
        words,
        picture: address(&enlarged(&overlay(&under, map), zoom)),
    };
    let adds_up = format!(
        "what each place adds from the mean frame ({}) to this picture ({}). {}",
        significant(found.baseline_shown()),
        significant(found.value),
        checked(&found)
    );
    let square = found.occlude_px;
    let maps = vec![
        map("Integrated gradients", adds_up, &found.integrated),
        map("Gradient x input", "to first order, what each place adds".into(), &found.gradient_input),
        map(
            "Occlusion",
            format!("by how much the value falls when a grey square of {square} pixels hides a place"),
            &found.occlusion,
        ),
    ];
    let below = |through: &Through| BelowShown {
        stage: through.stage,
        units: through
            .raise
            .iter()
            .take(PARTS)
            .map(|part| PartShown { name: part.name.to_string(), contribution: part.adds })
            .collect(),
    };
    Ok(Explained {
        value: found.value,
        maps,
        below: found.below.iter().map(below).collect(),
        note: "Orange raises the value, blue lowers it; each map is scaled to its own maximum. The first two maps are of the picture after \
               preprocessing, which mixes neighbouring pixels."
            .into(),
    })
}
