//! Tests of scenes as a whole: repeatable, truthfully labelled, natural in their statistics.

use super::*;
use crate::error::Error;
use image::Rgb as Pixel;
use std::path::Path;

const ASPECT: f32 = 4.0 / 3.0;

fn settings(videos: u32) -> Settings {
    Settings { seed: 7, videos, seconds: 1.0, fps: 6, width: 64, height: 48 }
}

/// Writes `videos` with `threads` and gives all files' names and bytes.
fn written(videos: u32, threads: usize) -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| write(folder.path(), &settings(videos), |_| {})).unwrap();
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    };
    let mut files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(read).collect();
    files.sort();
    files
}

#[test]
fn the_same_seed_gives_the_same_pixels_in_any_order() {
    let forth: Vec<_> = [0.1, 1.7, 3.3].map(|t| Film::new(3, 5, 4.0, ASPECT).render(t, 48)).into();
    let film = Film::new(3, 5, 9.0, ASPECT);
    let mut back = [3.3, 1.7, 0.1].map(|t| film.render(t, 48));
    back.reverse();
    assert_eq!(forth, back);
    for (seed, index) in [(4, 5), (3, 6)] {
        assert_ne!(forth[0].0, Film::new(seed, index, 4.0, ASPECT).render(0.1, 48).0);
    }
}

#[test]
fn neither_threads_nor_further_videos_change_a_video() {
    let few = written(4, 1);
    let many = written(8, 3);
    for (name, bytes) in few.iter().filter(|(name, _)| name != "labels.jsonl") {
        let same = many.iter().find(|(other, _)| other == name).map(|(_, bytes)| bytes);
        assert!(same == Some(bytes), "{name} differs");
    }
    let labels = |files: &[(String, Vec<u8>)]| {
        let (_, bytes) = files.iter().find(|(name, _)| name == "labels.jsonl").unwrap();
        String::from_utf8(bytes.clone()).unwrap()
    };
    assert_eq!(labels(&few).lines().count(), 4 * 6);
    assert!(labels(&many).starts_with(&labels(&few)), "labels differ");
    let line: serde_json::Value = serde_json::from_str(labels(&few).lines().nth(7).unwrap()).unwrap();
    assert_eq!((line["frame"].as_u64(), line["width"].as_u64()), (Some(1), Some(64)));
    assert!(line["video"].as_str().unwrap().starts_with("synth-00001."), "{line}");
}

/// Draws figures alone and compares their labels with the pixels that changed.
#[test]
fn boxes_hold_the_object_closely() {
    let mut rng = rng::stream(11, "test", 0);
    let light = Light { towards: [0.0, 0.0, 1.0], ambient: 0.5, colour: [1.0; 3] };
    let (width, height) = (160, 120);
    let mut whole = 0;
    for round in 0..150 {
        let kind = [Kind::Face, Kind::Cat, Kind::Body][round % 3];
        let camera = Camera::new(&mut rng, 2.0);
        let figure = Figure::of(&mut rng, kind, 2.0, ASPECT);
        let mut canvas = Canvas::new(width, height);
        let drawn = figure.draw(&mut canvas, &camera, 0.7, &light);
        assert_eq!(drawn.len(), canvas.masks.len());
        let areas: Vec<f32> = drawn.iter().map(|label| label.visible).collect();
        for (i, (label, mask)) in drawn.iter().zip(&canvas.masks).enumerate() {
            let (mut left, mut top, mut right, mut bottom) = (f32::MAX, f32::MAX, 0.0f32, 0.0f32);
            for (at, _) in mask.iter().enumerate().filter(|(_, cover)| **cover > 0.0) {
                let (x, y) = ((at % width) as f32, (at / width) as f32);
                (left, right) = (left.min(x), right.max(x + 1.0));
                (top, bottom) = (top.min(y), bottom.max(y + 1.0));
            }
            if right == 0.0 {
                continue;
            }
            let (l, r) = (label.x - label.width / 2.0, label.x + label.width / 2.0);
            let (t, b) = (label.y - label.height / 2.0, label.y + label.height / 2.0);
            let slack = [left - l, top - t, r - right, b - bottom];
            assert!(slack.iter().all(|&s| s > -1.01), "{label:?} ends inside the object: {slack:?}");
            let inside = l >= 0.0 && t >= 0.0 && r <= width as f32 && b <= height as f32;
            if inside && i == 0 {
                let loose = 1.5 + 0.12 * label.width.max(label.height);
                assert!(slack.iter().all(|&s| s < loose), "{label:?} is too large: {slack:?}");
                let seen: f32 = mask.iter().sum();
                assert!((seen / areas[i] - 1.0).abs() < 0.05, "{seen} of {} pixels", areas[i]);
                whole += 1;
            }
        }
        for label in figures::settle(drawn, &canvas) {
            assert!((0.05..=1.0).contains(&label.visible), "{label:?}");
        }
    }
    assert!(whole > 30, "{whole} figures were wholly inside the frame");
}

/// A figure half outside the frame is about half visible, and less behind something.
#[test]
fn visible_is_the_share_that_shows() {
    let light = Light { towards: [0.0, 0.0, 1.0], ambient: 0.5, colour: [1.0; 3] };
    let ball = [solid::Part::ball([0.0; 3], [1.0; 3], &solid::plain([0.5; 3]))];
    let turn = solid::rotation(0.3, 0.2, 0.1);
    let view = camera::View { x: 0.0, y: 50.0, scale: 30.0, angle: 0.2 };
    let mut canvas = Canvas::new(100, 100);
    let outcome = solid::draw(&mut canvas, &ball, &turn, &view, &light, &[solid::Extent::Whole])[0];
    let disc = std::f32::consts::PI * 30.0 * 30.0;
    let seen: f32 = canvas.masks[0].iter().sum();
    assert!((outcome.area / disc - 1.0).abs() < 0.03, "{} and {disc}", outcome.area);
    assert!((seen / outcome.area - 0.5).abs() < 0.03, "{seen} of {}", outcome.area);
    for at in 0..50 * 100 {
        canvas.paint(at, [0.0; 3], 1.0);
    }
    let seen: f32 = canvas.masks[0].iter().sum();
    assert!((seen / outcome.area - 0.25).abs() < 0.03, "{seen} of {}", outcome.area);
}

/// Slope of log amplitude against log frequency from 2 to 20 cycles over 64 pixels.
fn slope(frame: &RgbImage) -> f64 {
    const N: usize = 64;
    let grey = |x: usize, y: usize| {
        let Pixel([r, g, b]) = *frame.get_pixel(x as u32, y as u32);
        let window = |i: usize| (std::f64::consts::PI * (i as f64 + 0.5) / N as f64).sin().powi(2);
        (0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b)) * window(x) * window(y)
    };
    // Separable transform: along rows, then along columns.
    let turn = |k: usize, i: usize| (std::f64::consts::TAU * (k * i % N) as f64 / N as f64).sin_cos();
    let mut rows = vec![[0.0f64; 2]; N * N];
    for y in 0..N {
        let line: Vec<f64> = (0..N).map(|x| grey(x, y)).collect();
        for k in 0..N {
            for (x, v) in line.iter().enumerate() {
                let (sin, cos) = turn(k, x);
                rows[y * N + k][0] += v * cos;
                rows[y * N + k][1] -= v * sin;
            }
        }
    }
    let mut power = [[0.0f64; 2]; N / 2];
    for kx in 0..N {
        for ky in 0..N {
            let fold = |k: usize| k.min(N - k) as f64;
            let ring = fold(kx).hypot(fold(ky)).round() as usize;
            if !(2..=20).contains(&ring) {
                continue;
            }
            let (mut re, mut im) = (0.0, 0.0);
            for y in 0..N {
                let (sin, cos) = turn(ky, y);
                let [a, b] = rows[y * N + kx];
                re += a * cos + b * sin;
                im += b * cos - a * sin;
            }
            power[ring][0] += re * re + im * im;
            power[ring][1] += 1.0;
        }
    }
    let points: Vec<[f64; 2]> = (2..=20)
        .map(|ring| [(ring as f64).ln(), 0.5 * (power[ring][0] / power[ring][1]).max(1e-9).ln()])
        .collect();
    let mean = |i: usize| points.iter().map(|p| p[i]).sum::<f64>() / points.len() as f64;
    let (mx, my) = (mean(0), mean(1));
    let (up, along) = points
        .iter()
        .fold((0.0, 0.0), |(up, along), [x, y]| (up + (x - mx) * (y - my), along + (x - mx) * (x - mx)));
    up / along
}

#[test]
fn amplitude_falls_about_as_one_over_frequency() {
    let slopes: Vec<f64> =
        (0..40).map(|index| slope(&Film::new(1, index, 0.6, 1.0).render(0.5, 64).0)).collect();
    let mean = slopes.iter().sum::<f64>() / slopes.len() as f64;
    assert!((-1.4..=-0.7).contains(&mean), "mean slope {mean:.2} of {slopes:.2?}");
}

#[test]
fn half_of_the_appearances_are_small_and_kinds_come_as_often_as_promised() {
    let (mut all, mut small, mut frames, mut faces, mut nothing) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for index in 0..700 {
        let (_, labels) = Film::new(2, index, 0.6, ASPECT).render(0.55, 48);
        all += labels.len() as f64;
        small += labels.iter().filter(|label| label.frame_share(64, 48) <= 0.2).count() as f64;
        frames += 1.0;
        faces += f64::from(labels.iter().any(|label| label.kind == Kind::Face) as u8);
        nothing += f64::from(labels.is_empty() as u8);
    }
    let (small, faces, nothing) = (small / all, faces / frames, nothing / frames);
    assert!((0.45..0.7).contains(&small), "{small:.2} of the appearances are small");
    assert!((0.22..0.37).contains(&faces), "{faces:.2} of the frames show a face");
    assert!((0.35..0.65).contains(&nothing), "{nothing:.2} of the frames show nothing");
}

#[test]
fn impossible_settings_are_refused_by_name() {
    let check = |change: fn(&mut Settings)| {
        let mut settings = settings(1);
        change(&mut settings);
        settings.check().unwrap_err().to_string()
    };
    assert!(settings(1).check().is_ok());
    for width in [0u32, 15, 63, 8000] {
        let settings = Settings { width, ..settings(1) };
        assert!(matches!(settings.check(), Err(Error::Setting { key, .. }) if key == "--size"), "{width}");
    }
    assert!(check(|s| s.videos = 0).contains("`--videos` is 0"));
    assert!(check(|s| s.fps = 0).contains("`--fps` is 0"));
    assert!(check(|s| s.seconds = f64::NAN).contains("`--seconds` is NaN"));
    assert!(check(|s| s.seconds = 1e12).contains("--seconds"));
}

#[test]
fn a_folder_in_use_is_refused_and_overwriting_spares_what_is_not_ours() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    prepare(&at("new"), false).unwrap();
    for name in ["new/holiday.mp4", "new/synth-00003.mp4", "new/synth-00004.webm.partial", "new/labels.jsonl"]
    {
        std::fs::write(at(name), "x").unwrap();
    }
    let refusal = prepare(&at("new"), false).unwrap_err().to_string();
    assert!(refusal.contains("new") && refusal.contains("--overwrite"), "{refusal}");
    prepare(&at("new"), true).unwrap();
    let left: Vec<_> = std::fs::read_dir(at("new")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["holiday.mp4"]);
    let refusal = prepare(&at("new/holiday.mp4"), true).unwrap_err().to_string();
    assert!(refusal.contains("holiday.mp4") && refusal.contains("expected a folder"), "{refusal}");
    let refusal = prepare(Path::new("/proc/striate"), false).unwrap_err().to_string();
    assert!(refusal.contains("/proc/striate"), "{refusal}");
}
