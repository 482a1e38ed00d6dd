use super::*;
use crate::geometry::Kind;

#[test]
fn every_place_has_the_nearest_cell_that_is_free() {
    // All want the middle of 5x5 cells: they get it and those around it.
    let crowd = cells(&[[2.5, 2.5]; 9], 5, 5);
    assert_eq!(crowd[0], [2, 2]);
    let mut sorted = crowd.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), 9);
    assert!(crowd.iter().all(|[column, row]| (1..4).contains(column) && (1..4).contains(row)), "{crowd:?}");
    // As many as there are cells: each is taken; those in the middle of a cell keep it.
    let all = cells(&[[0.0, 0.0], [0.5, 0.5], [2.9, 0.1], [9.0, -1.0], [3.0, 2.0], [1.2, 0.9]], 3, 2);
    assert_eq!((all[1], all[0]), ([0, 0], [0, 1]));
    let mut sorted = all.clone();
    sorted.sort();
    assert_eq!(sorted, [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]);
}

#[test]
fn against_brute_force_no_free_cell_is_nearer() {
    let mut rng = crate::rng::stream(1, "cells", 0);
    let places: Vec<[f32; 2]> =
        (0..60).map(|_| [0, 1].map(|_| rand::Rng::random_range(&mut rng, 2.0f32..6.0))).collect();
    let found = cells(&places, 9, 8);
    let distance = |place: &[f32; 2], cell: [u32; 2]| {
        (0..2).map(|axis| (cell[axis] as f32 + 0.5 - place[axis]).powi(2)).sum::<f32>()
    };
    let every = (0..8).flat_map(|row| (0..9).map(move |column| [column, row]));
    let free: Vec<[u32; 2]> = every.filter(|cell| !found.contains(cell)).collect();
    assert_eq!(free.len(), 12);
    for (place, &cell) in places.iter().zip(&found) {
        assert!(free.iter().all(|&other| distance(place, other) >= distance(place, cell)));
    }
}

#[test]
fn thumbnails_are_as_large_as_the_networks_input_or_reduced() {
    let shape = |channels, rows, cols| MapShape { channels, rows, cols };
    assert_eq!(thumbnail_shape(shape(1, 32, 64)), shape(1, 32, 64));
    assert_eq!(thumbnail_shape(shape(3, 200, 100)), shape(3, 64, 32));
    assert_eq!(thumbnail_shape(shape(1, 1, 2000)), shape(1, 1, 64));
}

#[test]
fn the_sheet_and_the_pictures_show_every_frame_where_the_json_says() {
    let shape = MapShape { channels: 3, rows: 16, cols: 16 };
    // Colours far apart, so that JPEG keeps them apart.
    let colour = |frame: usize| [(frame % 3 * 100 + 20) as u8, (frame / 3 * 100 + 20) as u8, 128];
    let pixels = (0..6).flat_map(|frame| colour(frame).into_iter().flat_map(|level| [level; 256])).collect();
    let dataset = Dataset::from_pixels(shape, pixels);
    let positions: Vec<[f32; 2]> = vec![[0.0, 0.5], [0.3, 0.5], [0.5, 0.5], [0.75, 0.5], [1.0, 0.5]];
    let layout = |method| Layout { method, perplexity: None, divergence: None, positions: positions.clone() };
    let map = Map {
        stage: 0,
        kind: Kind::Y,
        units: 7,
        frame_count: 6,
        seed: 0,
        explained_variance: vec![0.5, 0.25, 0.125],
        frames: vec![0, 1, 2, 4, 5],
        layouts: vec![layout(Method::Pca), layout(Method::Tsne)],
        neighbours: vec![Vec::new(); 5],
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("map");
    let made = write(map, "step-1 ab", (Path::new("frames"), &dataset), &out).unwrap();
    let read: MapFile = serde_json::from_slice(&fs::read(out.join("map.json")).unwrap()).unwrap();
    assert_eq!((&read, &read.keys[3]), (&made, &"000004".to_owned()));
    assert!(made.to_string().contains("75.0 % of the variance by 2, 87.5 % by 3"), "{made}");

    let close =
        |seen: &Rgb<u8>, frame: usize| seen.0.iter().zip(colour(frame)).all(|(a, b)| a.abs_diff(b) < 8);
    let Thumbnails { file, columns, width, height } = &made.thumbnails;
    let sheet = image::open(out.join(file)).unwrap().to_rgb8();
    assert_eq!((*columns, sheet.dimensions()), (3, (48, 32)));
    for (at, &frame) in made.map.frames.iter().enumerate() {
        let (x, y) = (at % columns * width + width / 2, at / columns * height + height / 2);
        assert!(close(sheet.get_pixel(x as u32, y as u32), frame), "{frame}");
    }
    assert_eq!(made.pictures, ["map-pca.png", "map.png"].map(PathBuf::from));
    for picture in &made.pictures {
        let picture = image::open(out.join(picture)).unwrap().to_rgb8();
        assert_eq!(picture.width(), 16 * CELL_PX + 2 * BORDER_PX);
        for (&frame, [x, y]) in made.map.frames.iter().zip(&positions) {
            let at = |p: f32, side: u32| {
                let inside = (side - 2 * BORDER_PX - CELL_PX) as f32;
                (BORDER_PX + CELL_PX / 2) + (p * inside) as u32
            };
            // In the row of cells in the middle, its own or that beside it.
            let row = at(*y, picture.height());
            let seen = [row - CELL_PX / 2, row, row + CELL_PX / 2]
                .map(|y| *picture.get_pixel(at(*x, picture.width()), y));
            assert!(seen.iter().any(|seen| close(seen, frame)), "{frame}: {seen:?}");
        }
    }
}
