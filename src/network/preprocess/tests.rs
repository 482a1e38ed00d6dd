//! Tests of [`super`].

use super::*;
use crate::config::{Input, RunConfig};
use crate::dataset::Augment;
use crate::network::Network;
use crate::network::checkpoint::{self, Checkpoint};

/// Smooth random pictures: neighbouring pixels agree.
fn pictures(shape: MapShape, count: usize) -> Dataset {
    let mut rng = rng::stream(1, "test pictures", 0);
    let (rows, cols) = (shape.rows as f32, shape.cols as f32);
    let mut pixels = Vec::new();
    for _ in 0..count {
        let waves: Vec<[f32; 4]> = (0..6).map(|_| rng.random::<[f32; 4]>()).collect();
        for c in 0..shape.channels {
            for y in 0..shape.rows {
                for x in 0..shape.cols {
                    let wave = |[fy, fx, phase, size]: &[f32; 4]| {
                        let angle =
                            9.0 * (fy * y as f32 / rows + fx * x as f32 / cols + phase + 0.1 * c as f32);
                        size * angle.sin()
                    };
                    let value =
                        128.0 + 40.0 * waves.iter().map(wave).sum::<f32>() + 10.0 * rng.random::<f32>();
                    pixels.push(value.clamp(0.0, 255.0) as u8);
                }
            }
        }
    }
    Dataset::from_pixels(shape, pixels)
}

const ALL: [Preprocess; 5] =
    [Preprocess::None, Preprocess::Contrast, Preprocess::Lcn, Preprocess::Zca, Preprocess::Conv];

fn variance(values: &Array2<f32>) -> f32 {
    values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32
}

fn input(preprocess: Preprocess, shape: MapShape) -> Input {
    Input {
        channels: shape.channels,
        height: shape.rows,
        width: shape.cols,
        preprocess,
        floor: 0.05,
        ..Input::default()
    }
}

fn fitted(preprocess: Preprocess, shape: MapShape) -> (Dataset, Whitening) {
    let pictures = pictures(shape, 600);
    let whitening = Whitening::fit(&input(preprocess, shape), &pictures, 0).unwrap();
    (pictures, whitening)
}

#[test]
fn whitened_pictures_have_variance_1_and_come_back() {
    for (preprocess, error) in
        [(Preprocess::Contrast, 1e-6), (Preprocess::Zca, 0.01), (Preprocess::Conv, 0.1)]
    {
        let shape = MapShape { channels: 3, rows: 14, cols: 11 };
        let (pictures, whitening) = fitted(preprocess, shape);
        let all: Vec<usize> = (0..pictures.len()).collect();
        let white = whitening.apply_all(&pictures, &all);
        let variance = variance(&white);
        assert!((0.8..1.25).contains(&variance), "{preprocess:?}: variance {variance}");
        let one = Array3::from_shape_vec(dims(shape), whitening.apply(&pictures.pixels(7))).unwrap();
        let mut back = whitening.unwhiten(one.view());
        if let Transform::Zca { mean, .. } = &whitening.transform {
            back += &mean.view().into_shape_with_order(dims(shape)).unwrap();
        }
        let wanted = normalise(&pictures.pixels(7));
        let worst = back.iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / wanted.len() as f32;
        assert!(worst < error, "{preprocess:?}: mean squared error {worst}");
    }
}

#[test]
fn minibatches_are_the_same_whether_pictures_are_kept_or_made_when_asked_for() {
    for preprocess in ALL {
        let shape = MapShape { channels: 3, rows: 13, cols: 11 };
        let (pictures, whitening) = fitted(preprocess, shape);
        let indices: Vec<usize> = (0..21).map(|n| 17 * n % 600).collect();
        for budget in [0, usize::MAX] {
            let inputs = Inputs::new(&pictures, &whitening, budget);
            let mut input = vec![0.0; shape.len() * 32];
            inputs.fill(&indices, 32, &mut input, &mut Scratch::default());
            for (lane, &index) in indices.iter().enumerate() {
                let wanted = whitening.apply(&pictures.pixels(index));
                for (at, &want) in wanted.iter().enumerate() {
                    let (channel, place) = (at / (13 * 11), at % (13 * 11));
                    let got = input[(place * 3 + channel) * 32 + lane];
                    assert!((got - want).abs() < 1e-4, "{preprocess:?} {budget}: {got} != {want}");
                }
            }
            assert!(input.chunks(32).all(|lanes| lanes[21..].iter().all(|&x| x == 0.0)));
        }
    }
}

#[test]
fn values_have_variance_1_also_where_frames_have_little_contrast() {
    for preprocess in [Preprocess::Contrast, Preprocess::Lcn] {
        for (channels, fade) in [(1, 1), (3, 1), (1, 9)] {
            let shape = MapShape { channels, rows: 20, cols: 17 };
            let all = pictures(shape, 2000);
            let faded = (0..all.len()).flat_map(|n| all.pixels(n).into_owned()).map(|p| p / fade).collect();
            let faded = Dataset::from_pixels(shape, faded);
            let whitening = Whitening::fit(&input(preprocess, shape), &faded, 0).unwrap();
            let variance = variance(&whitening.apply_all(&faded, &(0..2000).collect::<Vec<_>>()));
            assert!((variance - 1.0).abs() < 0.02, "{preprocess:?}, {channels} channels: {variance}");
        }
    }
}

/// A minibatch's input.
fn filled(inputs: &Inputs, number: u64, indices: &[usize], scratch: &mut Scratch) -> Vec<f32> {
    let mut input = vec![0.0; inputs.picture(0).len() * 16];
    assert_eq!(inputs.fill_minibatch(Some(number), indices, 16, &mut input, scratch).unwrap(), 0);
    input
}

#[test]
fn windows_are_cut_before_preprocessing_and_a_minibatch_repeats_by_its_number() {
    for preprocess in ALL {
        let (shape, margin) = (MapShape { channels: 3, rows: 12, cols: 10 }, 3);
        let kept = pictures(shape.with_margin(margin), 40);
        let pixels = (0..kept.len()).flat_map(|index| kept.pixels(index).into_owned()).collect();
        let kept = Dataset::from_pixels_with_margin(shape, margin, pixels);
        let input = Input { margin, flip: true, ..input(preprocess, shape) };
        let augment = Augment::new(&input, 3);
        let whitening = Whitening::fit(&input, &kept, 0).unwrap();
        let inputs = Inputs::for_training(&kept, &whitening, usize::MAX, augment);
        let (indices, mut scratch) = ([4, 39, 0, 7, 4], Scratch::default());
        let seven = filled(&inputs, 7, &indices, &mut scratch);
        let (mut windows, mut window) = (Vec::new(), vec![0; shape.len()]);
        augment.unwrap().windows(7, indices.len(), &mut windows);
        for (lane, (&index, cut)) in indices.iter().zip(&windows).enumerate() {
            kept.cut(index, *cut, &mut window);
            for (at, want) in whitening.apply(&window).into_iter().enumerate() {
                let got = seven[((at % 120) * 3 + at / 120) * 16 + lane];
                assert!((got - want).abs() < 1e-4, "{preprocess:?}: {got} != {want}");
            }
        }
        assert_ne!(filled(&inputs, 8, &indices, &mut scratch), seven);
        assert_eq!(filled(&inputs, 7, &indices, &mut scratch), seven);
        // Asked for otherwise, pictures are seen in their middle, whether they are kept ready or not.
        let mut middles = vec![0.0; shape.len() * 16];
        inputs.fill(&indices, 16, &mut middles, &mut scratch);
        let ready = Inputs::new(&kept, &whitening, usize::MAX);
        let same = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
        assert!(middles.iter().zip(&filled(&ready, 7, &indices, &mut scratch)).all(same));
    }
}

#[test]
fn without_margin_and_flip_minibatches_are_bit_for_bit_those_of_whole_pictures() {
    let shape = MapShape { channels: 1, rows: 12, cols: 10 };
    let (pictures, whitening) = fitted(Preprocess::Zca, shape);
    let inputs = Inputs::for_training(&pictures, &whitening, 0, Augment::new(&Input::default(), 3));
    let (indices, mut scratch) = ([4, 39, 0, 7, 4], Scratch::default());
    let mut plain = vec![0.0; shape.len() * 16];
    Inputs::new(&pictures, &whitening, 0).fill(&indices, 16, &mut plain, &mut scratch);
    assert_eq!(filled(&inputs, 7, &indices, &mut scratch), plain);
    assert_eq!(filled(&inputs, 8, &indices, &mut scratch), plain);
}

#[test]
fn a_checkpoint_brings_every_transform_back_and_a_scale_that_is_no_number_is_named() {
    for preprocess in ALL {
        let text = "[input]\n[[stages]]\nmaps = 2\nfield = 4\nstride = 3\npool = 2\nlcn = 3\n[training]\nsteps = [1]\n";
        let shape = MapShape { channels: 3, rows: 11, cols: 10 };
        let mut config =
            RunConfig::parse(text, &["input.height=11".into(), "input.width=10".into()]).unwrap();
        config.input = Input { lcn_size: 31, ..input(preprocess, shape) };
        let whitening = Whitening::fit(&config.input, &pictures(shape, 50), 0).unwrap();
        let network = Network::new(&config, 0).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("step-1");
        let save =
            |whitening: &Whitening| checkpoint::save(&at, &config, &network, whitening, "", &()).unwrap();
        save(&whitening);
        assert_eq!(Checkpoint::load(&at, true).unwrap().whitening, whitening, "{preprocess:?}");
        assert!(checkpoint::check(&at).unwrap().iter().all(|check| check.problem.is_none()));
        let mut broken = whitening;
        let (Transform::Contrast { scale } | Transform::Lcn { scale, .. }) = &mut broken.transform else {
            continue;
        };
        *scale = f32::NAN;
        std::fs::remove_dir_all(&at).unwrap();
        save(&broken);
        let Err(error) = Checkpoint::load(&at, true) else { panic!("{preprocess:?}: was read") };
        assert!(error.to_string().contains("`whitening.scale` holds what is no number"), "{error}");
        let checks = checkpoint::check(&at).unwrap();
        assert!(checks.iter().any(|check| check.name == "whitening" && check.problem.is_some()));
    }
}

#[test]
fn a_flat_picture_becomes_zero_not_nan() {
    for preprocess in [Preprocess::Contrast, Preprocess::Lcn, Preprocess::Conv] {
        for channels in [1, 3] {
            let shape = MapShape { channels, rows: 12, cols: 12 };
            let (_, whitening) = fitted(preprocess, shape);
            let flat = vec![77; shape.len()];
            assert!(whitening.apply(&flat).iter().all(|x| x.abs() < 1e-3), "{preprocess:?}");
            // Fitted on nothing else, it is no better, but no worse either.
            let flat = Dataset::from_pixels(shape, flat.repeat(3));
            let input = input(preprocess, shape);
            let whitening = Whitening::fit(&input, &flat, 0).unwrap();
            assert!(whitening.apply_all(&flat, &[0, 2]).iter().all(|x| x.abs() < 1e-3), "{preprocess:?}");
        }
    }
}

#[test]
fn local_contrast_is_the_same_everywhere_and_what_was_subtracted_comes_back() {
    let shape = MapShape { channels: 1, rows: 24, cols: 24 };
    let (_, whitening) = fitted(Preprocess::Lcn, shape);
    // Stripes four times as strong on the right, and all of it brighter there.
    let stripes = |at: usize| if at % 4 < 2 { 1.0 } else { -1.0 };
    let pixel = |at: usize| {
        let (base, size) = if at % 24 < 12 { (90.0, 12.0) } else { (160.0, 48.0) };
        (base + size * stripes(at % 24)) as u8
    };
    let pixels: Vec<u8> = (0..shape.len()).map(pixel).collect();
    let values = whitening.apply(&pixels);
    let strength = |from: usize| {
        let inside = values.iter().enumerate().filter(|(at, _)| (from..from + 4).contains(&(at % 24)));
        inside.map(|(_, x)| x.abs()).sum::<f32>()
    };
    let ratio = strength(18) / strength(2);
    assert!((0.8..1.25).contains(&ratio), "strength on the right over that on the left: {ratio}");

    let Transform::Lcn { window, scale } = &whitening.transform else { panic!("not what was asked for") };
    let picture = normalise(&pixels);
    let mut subtracted = vec![0.0; shape.len()];
    convolve(&local::subtraction(window, 1), shape, &picture, &mut subtracted);
    subtracted.iter_mut().for_each(|x| *x *= scale);
    let subtracted = Array3::from_shape_vec(dims(shape), subtracted).unwrap();
    let back = whitening.unwhiten(subtracted.view());
    let error = back.iter().zip(&picture).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / picture.len() as f32;
    assert!(error < 0.02, "mean squared error {error}");
}
