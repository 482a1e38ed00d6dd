//! `striate encode`, `neighbours`, `map`, `explain` and `serve` from outside: what they write and answer, that it does not depend on the
//! number of threads, that an interruption leaves what was there, and what they refuse.

mod common;
#[path = "common/trained.rs"]
mod trained;

use std::fs;
use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{done, json, program, run, snapshot, text};
use serde_json::Value;
use trained::{read, trained};

/// Unpacks the first frame of `f` into the folder `pictures`; gives its name.
fn first_frame(dir: &Path) -> String {
    let tar = dir.join("f/frames-00000.tar");
    let mut archive = tar::Archive::new(fs::File::open(tar).unwrap());
    let mut member = archive.entries().unwrap().next().unwrap().unwrap();
    let name = member.path().unwrap().display().to_string();
    fs::create_dir(dir.join("pictures")).unwrap();
    member.unpack(dir.join("pictures").join(&name)).unwrap();
    name
}

#[test]
fn features_are_written_in_every_format_the_same_on_any_number_of_threads() {
    let folder = trained();
    let dir = folder.path();
    let made = json(dir, "encode run --out a.safetensors");
    let expected = serde_json::json!({ "channels": 8, "rows": 3, "cols": 3 });
    assert_eq!((&made["stage"], &made["kind"], &made["shape"]), (&2.into(), &"y".into(), &expected));
    assert_eq!((&made["pictures"], &made["units"]), (&60.into(), &72.into()));
    // Other frames are decoded; these are the same.
    let same = dir.join("f").canonicalize().unwrap();
    done(dir, &format!("encode run --out b.safetensors --frames {} --threads 1", same.display()));
    let [a, b] = ["a", "b"].map(|name| fs::read(dir.join(format!("{name}.safetensors"))).unwrap());
    assert!(a == b, "features depend on the number of threads");

    let told = done(dir, "encode run --stage 1 --kind a --out a.npy");
    assert!(
        told.contains("60 frames, 324 values each of stage 1 (a)") && told.contains("a.npy.keys.txt"),
        "{told}"
    );
    assert_eq!(fs::metadata(dir.join("a.npy")).unwrap().len(), 128 + 4 * 60 * 324);
    assert_eq!(fs::read_to_string(dir.join("a.npy.keys.txt")).unwrap().lines().count(), 60);
    done(dir, "encode run --out a.parquet");
    assert_eq!(&fs::read(dir.join("a.parquet")).unwrap()[..4], b"PAR1");
    let left = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| !name.contains("partial")));
}

#[test]
fn an_interruption_leaves_the_features_that_were_there() {
    let folder = trained();
    let dir = folder.path();
    // Enough frames to be interrupted: 6 videos of 12 frames, many times over.
    let pictures = dir.join("many");
    fs::create_dir(&pictures).unwrap();
    let noise = |n: u32| image::GrayImage::from_fn(24, 24, |x, y| image::Luma([(x * n + y * y) as u8]));
    (0..40).for_each(|n| noise(n).save(pictures.join(format!("{n:02}.png"))).unwrap());
    let archive = fs::File::create(dir.join("many.tar")).unwrap();
    let mut archive = tar::Builder::new(archive);
    for n in 0..40_000 {
        archive
            .append_path_with_name(pictures.join(format!("{:02}.png", n % 40)), format!("{n:05}.png"))
            .unwrap();
    }
    archive.finish().unwrap();
    fs::write(dir.join("x.npy"), "older").unwrap();
    let mut child = program();
    child.current_dir(dir).args("encode run --frames many.tar --stage 1 --kind a --out x.npy".split(' '));
    let mut child = child.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let (begun, partial) = (Instant::now(), dir.join("x.npy.partial"));
    while !partial.exists() && begun.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "it was too fast to be interrupted");
    assert!(!partial.exists() && fs::read_to_string(dir.join("x.npy")).unwrap() == "older");
}

#[test]
fn neighbours_of_a_frame_begin_with_itself_and_every_image_has_a_sheet() {
    let folder = trained();
    let dir = folder.path();
    let name = first_frame(dir);
    image::RgbImage::from_pixel(50, 40, image::Rgb([9, 99, 200])).save(dir.join("pictures/zz.png")).unwrap();

    let found = json(dir, &format!("neighbours run pictures/{name} pictures --keep 5"));
    assert_eq!(
        (&found["frame_count"], &found["stage"], &found["kind"]),
        (&60.into(), &2.into(), &"y".into())
    );
    let images = found["images"].as_array().unwrap();
    assert_eq!(images.len(), 3);
    let key = name.rsplit_once('.').unwrap().0;
    for image in &images[..2] {
        let nearest = image["neighbours"].as_array().unwrap();
        assert_eq!(
            (nearest.len(), &nearest[0]["key"], &nearest[0]["similarity"]),
            (5, &key.into(), &1.0.into())
        );
        let values: Vec<f64> = nearest.iter().map(|near| near["similarity"].as_f64().unwrap()).collect();
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]), "{values:?}");
    }
    assert_eq!(images[0]["neighbours"], images[1]["neighbours"]);
    // A row for each picture, 24x24 pixels shown fourfold, and two between.
    let sheet = image::open(dir.join(images[1]["sheet"].as_str().unwrap())).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (7 * 98 + 2, 2 * 98 + 2));
    assert!(dir.join(images[0]["sheet"].as_str().unwrap()).ends_with(format!("run/neighbours/{key}.png")));
    let told = done(dir, &format!("neighbours run pictures/{name} --stage 1 --kind h --threads 1"));
    assert!(told.contains(&format!("1.0000  {key}")), "{told}");
}

#[test]
fn a_map_is_written_and_repeats_on_any_number_of_threads() {
    let folder = trained();
    let dir = folder.path();
    let made = json(dir, "map run --shown 40");
    let map = read(&dir.join("run/map/map.json"));
    assert_eq!(
        (&made["shown"], &made["checkpoint"], &made["stage"]),
        (&40.into(), &map["checkpoint"], &2.into())
    );
    let lens = ["keys", "frames", "neighbours"].map(|list| map[list].as_array().unwrap().len());
    assert_eq!((lens, map["neighbours"][3].as_array().unwrap().len()), ([40; 3], 8));
    let layouts = map["layouts"].as_array().unwrap();
    assert_eq!([&layouts[0]["method"], &layouts[1]["method"]], ["pca", "tsne"]);
    assert_eq!((&layouts[1]["perplexity"], &layouts[0]["perplexity"]), (&13.0.into(), &Value::Null));
    for place in layouts.iter().flat_map(|layout| layout["positions"].as_array().unwrap()) {
        assert!((0..2).all(|axis| (0.0..=1.0).contains(&place[axis].as_f64().unwrap())), "{place}");
    }
    let sheet = image::open(dir.join("run/map/thumbnails.jpg")).unwrap();
    assert_eq!((sheet.width(), sheet.height(), &map["thumbnails"]["columns"]), (7 * 24, 6 * 24, &7.into()));
    let before = snapshot(&dir.join("run/map"));
    assert_eq!(before.len(), 4);

    assert!(done(dir, "map run --shown 40 --threads 1").contains("40 of 60 frames by 72 values"));
    assert!(snapshot(&dir.join("run/map")) == before, "the map depends on the number of threads");
    // What is no longer of this map is gone.
    done(dir, "map run --shown 40 --method pca --seed 1 --frames f");
    let after = snapshot(&dir.join("run/map"));
    let names: Vec<&str> = after.keys().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["map.json", "map.png", "thumbnails.jpg"]);
    assert_ne!(read(&dir.join("run/map/map.json"))["frames"], map["frames"]);
}

/// Numbers of a list of objects, by a path such as `/completeness/gap`.
fn numbers(list: &Value, path: &str) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|item| item.pointer(path).unwrap().as_f64().unwrap()).collect()
}

#[test]
fn an_explanation_adds_up_names_the_frame_itself_and_is_in_the_report() {
    let folder = trained();
    let dir = folder.path();
    let name = first_frame(dir);
    let key = name.rsplit_once('.').unwrap().0;
    let made = json(dir, &format!("explain run pictures/{name}"));
    let explained = dir.join("run/explain").join(key);
    assert_eq!(made, read(&explained.join("explanation.json")));
    let units = made["units"].as_array().unwrap();
    assert_eq!(units.len(), 3);
    let above = numbers(&made["units"], "/above");
    assert!(above.windows(2).all(|pair| pair[0] >= pair[1]), "{above:?}");
    let side = 24;
    for unit in units {
        assert_eq!(unit["stage"], 2);
        let gaps = numbers(&unit["below"], "/completeness/gap");
        let gap = unit["completeness"]["gap"].as_f64().unwrap();
        assert!(gaps.len() == 1 && gaps[0] < 0.01 && gap < 0.01, "{gap} {gaps:?}");
        for map in ["gradient_input", "integrated", "occlusion"] {
            assert_eq!(unit[map]["values"].as_array().unwrap().len(), side * side);
        }
        assert_eq!(unit["sanity"].as_array().unwrap().len(), 3);
        assert!(explained.join(unit["picture"].as_str().unwrap()).is_file());
    }
    assert_eq!(
        (&made["neighbours"][0]["key"], &made["neighbours"][0]["similarity"]),
        (&key.into(), &1.0.into())
    );
    // The picture and eight frames, 24 pixels shown fourfold, and two between.
    let frames = image::open(explained.join("frames.png")).unwrap();
    assert_eq!((frames.width(), frames.height()), (9 * 98 + 2, 98 + 2));

    // What was explained before stays beside what is asked for now, and a detector says what it detects.
    fs::copy(dir.join("pictures").join(&name), dir.join("pictures/again.jpg")).unwrap();
    let evaluate =
        "evaluate run --positives pictures --negatives f --concept p --permutations 0 --bootstraps 0";
    let best = json(dir, evaluate);
    let again = json(dir, &format!("explain run pictures/{name} --detector p --unit 1:0:0:0"));
    assert_eq!(again["units"].as_array().unwrap().len(), 2);
    let verdict = &again["units"][1]["verdicts"][0];
    let groups = best["groups"].as_array().unwrap().iter().filter(|group| group["kind"] == "y");
    let accuracies = groups.map(|group| group["best"][0]["paper"]["accuracy"].as_f64().unwrap());
    assert_eq!(verdict["concept"], "p");
    assert_eq!(verdict["accuracy"].as_f64().unwrap(), accuracies.fold(0.0, f64::max));
    let value = again["units"][1]["value"].as_f64().unwrap();
    assert_eq!(verdict["says_yes"], value > verdict["threshold"].as_f64().unwrap());
    let all = read(&explained.join("explanation.json"));
    let of = |unit: &Value| (unit["stage"].clone(), unit["unit"].clone());
    for unit in units.iter().chain(again["units"].as_array().unwrap()) {
        assert!(all["units"].as_array().unwrap().iter().any(|kept| of(kept) == of(unit)), "{}", unit["unit"]);
    }

    let told = done(
        dir,
        &format!(
            "explain run pictures/{name} --threads 1 --unit 2:0:1:1 --unit 1:3:0:2 --kind h --baseline grey --occlude 5 --no-sanity"
        ),
    );
    assert!(told.contains("unit 2:0:1:1 (h)") && told.contains("unit 1:3:0:2 (h)"), "{told}");
    assert!(told.contains("Through stage 1: raised by 1:") && !told.contains("random weights"), "{told}");
    // Another picture of that name does not take its place.
    fs::create_dir(dir.join("other")).unwrap();
    image::RgbImage::from_pixel(30, 30, image::Rgb([9, 200, 3])).save(dir.join("other").join(&name)).unwrap();
    done(dir, &format!("explain run other/{name} --no-sanity"));
    assert_eq!(fs::read_dir(dir.join("run/explain")).unwrap().count(), 2);
    done(dir, "map run");
    done(dir, "report run");
    let html = fs::read_to_string(dir.join("run/report.html")).unwrap();
    for part in [r##"href="#explanations""##, "Unit 2:0:1:1", r##"href="#map""##, r#""methods":{"pca":[["#] {
        assert!(html.contains(part), "no {part}");
    }
}

/// A request by hand; its answer's status and body.
fn ask(address: &str, head: &str, body: &[u8]) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let host = if head.contains("Host:") { String::new() } else { format!("Host: {address}\r\n") };
    let length = if head.contains("Content-Length:") {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    write!(stream, "{head}\r\n{host}{length}Connection: close\r\n\r\n").unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = text(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// A PNG of a size that has hardly begun with its pixels.
fn broken_png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[0x78, 0x9c]).unwrap();
    drop(writer);
    bytes
}

/// `striate serve`, ended when this is dropped.
struct Served(std::process::Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_web_app_looks_at_pictures_explains_units_and_survives_what_people_send() {
    let folder = trained();
    let dir = folder.path();
    let name = first_frame(dir);
    done(dir, "visualize run --units 4 --quiet");
    bars(&dir.join("train"), 10);
    done(dir, "classify fit run --labels train --lambda 1");
    done(dir, "classify fit run --labels train --lambda 1 --random-weights --name random");
    let mut command = program();
    command.current_dir(dir).args(["serve", "run", "--port", "0", "--quiet"]);
    let mut served = Served(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut line = String::new();
    std::io::BufReader::new(served.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    assert!(address.starts_with("127.0.0.1:"), "on this machine alone unless told otherwise: {line}");

    let frame = fs::read(dir.join("pictures").join(&name)).unwrap();
    let (status, page) = ask(&address, "GET / HTTP/1.1", b"");
    assert!(status == 200 && page.contains("data-served") && page.contains(r#"id="drop""#), "{status}");
    let (status, units) = ask(&address, "GET /units.json HTTP/1.1", b"");
    let units: Value = serde_json::from_str(&units).unwrap();
    let unit = &units["units"][0];
    assert_eq!((status, unit["name"].as_str().unwrap().split(':').next()), (200, Some("2")));
    let picture = unit["stimulus"].as_str().unwrap();
    assert_eq!(ask(&address, &format!("GET /{picture} HTTP/1.1"), b"").0, 200);
    let of_unit = ask(&address, &format!("GET /unit/{} HTTP/1.1", unit["name"].as_str().unwrap()), b"");
    assert!(of_unit.0 == 200 && of_unit.1.contains("stimuli"), "{of_unit:?}");

    let (status, look) = ask(&address, "POST /look HTTP/1.1", &frame);
    let look: Value = serde_json::from_str(&look).unwrap();
    assert_eq!((status, &look["width"], look["neighbours"].as_array().unwrap().len()), (200, &24.into(), 8));
    assert_eq!(numbers(&look["stages"], "/stage"), [2.0, 1.0]);
    // Read-outs of these weights say what they take it for; those of others do not.
    let says = look["classes"].as_array().unwrap();
    assert_eq!((says.len(), &says[0]["name"], &says[0]["attention"]), (1, &"classes".into(), &Value::Null));
    let sum: f64 = numbers(&says[0]["answers"], "/probability").iter().sum();
    assert!((sum - 1.0).abs() < 1e-6, "{says:?}");
    let (status, why) = ask(&address, "POST /explain?unit=2:0:1:1 HTTP/1.1", &frame);
    let why: Value = serde_json::from_str(&why).unwrap();
    assert_eq!(
        (status, why["maps"].as_array().unwrap().len(), numbers(&why["below"], "/stage")),
        (200, 3, vec![1.0])
    );

    for (head, body, code, words) in [
        ("POST /look HTTP/1.1", &b"PK\x03\x04 a zip"[..], 422, "not a picture"),
        ("POST /look HTTP/1.1", b"", 422, "no picture was sent"),
        ("POST /look HTTP/1.1", &broken_png(1, 1), 422, "1x1 pixels"),
        ("POST /look HTTP/1.1", &broken_png(20_000, 20_000), 422, "20000x20000 pixels"),
        ("POST /look HTTP/1.1", &broken_png(100, 100), 422, "cannot be decoded"),
        ("POST /look HTTP/1.1\r\nContent-Length: 200000000", b"", 413, "more than 20 MB"),
        ("POST /explain?unit=9:0:0:0 HTTP/1.1", &frame, 404, "9:0:0:0"),
        ("POST /explain?unit=face HTTP/1.1", &frame, 400, "`face` is no unit"),
        ("GET /unit/2:99:0:0 HTTP/1.1", b"", 404, "not among those shown"),
        ("GET /pictures/..%2f..%2fconfig.toml HTTP/1.1", b"", 404, "no such picture"),
        ("GET /pictures/units.json HTTP/1.1", b"", 404, "no such picture"),
        ("GET /nothing HTTP/1.1", b"", 404, "no such page"),
        ("GET / HTTP/1.1\r\nHost: evil.example", b"", 403, "evil.example"),
        ("POST /look HTTP/1.1\r\nOrigin: http://evil.example", &frame, 403, "evil.example"),
    ] {
        let (status, answer) = ask(&address, head, body);
        assert!(status == code && answer.contains(words), "{head}: {status} {answer}");
    }
    // Many at once, and all get the same.
    let answers: Vec<(u16, String)> = std::thread::scope(|scope| {
        let one = |_| scope.spawn(|| ask(&address, "POST /look HTTP/1.1", &frame));
        (0..200).map(one).collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| answer.0 == 200 && *answer == answers[0]));
    // Ctrl-C is how it ends.
    rustix::process::kill_process(rustix::process::Pid::from_child(&served.0), rustix::process::Signal::INT)
        .unwrap();
    assert_eq!(served.0.wait().unwrap().code(), Some(0));
}

#[test]
fn what_cannot_be_done_is_refused_with_one_line() {
    let folder = trained();
    let dir = folder.path();
    fs::write(dir.join("text.txt"), "no picture").unwrap();
    image::GrayImage::new(24, 24).save(dir.join("good.png")).unwrap();
    fs::create_dir(dir.join("damaged")).unwrap();
    fs::write(dir.join("damaged/a.jpg"), b"\xff\xd8\xff\xe0 and then nothing").unwrap();
    let before = snapshot(dir);
    for (line, code, words) in [
        ("encode run", 2, &["--out"][..]),
        ("encode run --out a.txt", 2, &["--out", "a.txt", ".safetensors, .npy or .parquet"]),
        ("encode run --out a", 2, &["--out", ".npy"]),
        ("encode nowhere --out a.npy", 1, &["nowhere", "not a run"]),
        ("encode run --stage 3 --out a.npy", 2, &["--stage", "is 3", "from 1 to 2"]),
        ("encode run --frames nowhere --out a.npy", 1, &["nowhere", "No such file"]),
        ("encode run --out missing/a.npy", 1, &["missing", "No such file"]),
        ("neighbours run", 2, &["IMAGE"]),
        ("neighbours nowhere f", 1, &["nowhere", "not a run"]),
        ("neighbours run nowhere.png", 1, &["nowhere.png", "No such file"]),
        ("neighbours run text.txt", 1, &["text.txt", "neither a folder"]),
        ("neighbours run damaged", 1, &["none of 1 pictures", "damaged/a.jpg"]),
        ("neighbours run f --keep 0", 2, &["--keep", "1..="]),
        ("map nowhere", 1, &["nowhere", "not a run"]),
        ("map run --shown 1", 2, &["--shown", "2..="]),
        ("map run --shown 3", 1, &["3 frames make no map", "at least 4"]),
        ("map run --perplexity 30", 2, &["--perplexity", "is 30", "from 1 to 19.7 with 60 frames"]),
        ("map run --perplexity 0.5", 2, &["--perplexity", "from 1"]),
        ("map run --method umap", 2, &["--method", "pca", "tsne"]),
        ("explain run", 2, &["IMAGE"]),
        ("explain nowhere good.png", 1, &["nowhere", "not a run"]),
        ("explain run text.txt", 1, &["text.txt", "neither a folder"]),
        ("explain run f", 1, &["f: ", "60 pictures", "one is explained at a time"]),
        ("explain run damaged/a.jpg", 1, &["damaged/a.jpg"]),
        ("explain run good.png --unit 3:0:0:0", 2, &["3:0:0:0", "stage"]),
        ("explain run good.png --unit face", 2, &["--unit", "face"]),
        (
            "explain run good.png --detector faces",
            1,
            &["--detector faces", "striate evaluate --concept faces"],
        ),
        ("explain run text.txt --show", 1, &["--show", "no terminal"]),
        ("serve nowhere", 1, &["nowhere", "not a run"]),
        ("serve run --host example.org", 2, &["--host"]),
        ("serve run --host 192.0.2.1", 1, &["192.0.2.1:8417", "cannot listen on"]),
        ("report", 2, &["RUN"]),
        ("report run --example", 2, &["--example"]),
        ("report --example f", 1, &["f: is there already"]),
    ] {
        let output = run(dir, line);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{line}: no {words:?} in {stderr}");
        assert!(stderr.matches("error:").count() == 1 && !stderr.contains("panicked"), "{line}: {stderr}");
        assert!(snapshot(dir) == before, "{line} changed something");
    }
}

/// Pictures of bars, upright and lying, in a folder for each class; `count` of each.
fn bars(folder: &Path, count: u32) {
    for n in 0..count {
        for (class, lies) in [("upright", false), ("lying", true)] {
            let (across, along) = (3 + n * 7 % 15, n * 5 % 9);
            let level = |x: u32, y: u32| {
                let (x, y) = if lies { (y, x) } else { (x, y) };
                let noise = (x * 31 + y * 17 + n * 13) % 40;
                (if x.abs_diff(across) <= 1 && y >= along { 200 } else { 60 }) + noise as u8
            };
            let picture = image::GrayImage::from_fn(24, 24, |x, y| image::Luma([level(x, y)]));
            fs::create_dir_all(folder.join(class)).unwrap();
            picture.save(folder.join(class).join(format!("{n:03}.png"))).unwrap();
        }
    }
}

#[test]
fn read_outs_learn_classes_that_no_one_told_the_network_and_all_weights_can_learn_them() {
    let folder = trained();
    let dir = folder.path();
    bars(&dir.join("train"), 60);
    bars(&dir.join("more"), 75);
    fs::create_dir(dir.join("test")).unwrap();
    for class in ["upright", "lying"] {
        fs::create_dir(dir.join("test").join(class)).unwrap();
        for n in 60..75 {
            let name = format!("{class}/{n:03}.png");
            fs::rename(dir.join("more").join(&name), dir.join("test").join(&name)).unwrap();
        }
    }
    let fit = "classify fit run --labels train --stage 1 --kind h --lambda 0.1 --lambda 0.01";
    let made = json(dir, &format!("{fit} --test test"));
    assert_eq!(made["classes"], serde_json::json!(["lying", "upright"]));
    assert_eq!((&made["pictures"], &made["features"]), (&120.into(), &196.into()));
    assert!(made["tested"]["top_1"].as_f64().unwrap() > 0.9, "{made}");
    let tested = read(&dir.join("run/classify/classes.json"));
    assert_eq!(tested, made["tested"]);
    // The same again from what was kept, and on any number of threads.
    let evaluated = json(dir, "classify eval run --labels test");
    assert_eq!(evaluated["confusion"], tested["confusion"]);
    let model = |name: &str| fs::read(dir.join("run/classify").join(name).join("model.safetensors")).unwrap();
    done(dir, &format!("{fit} --name again --threads 1"));
    assert!(model("classes") == model("again"), "a read-out depends on the number of threads");
    done(dir, "classify fit run --labels train --pixels --lambda 1 --name pixels --test test");
    done(
        dir,
        "classify fit run --labels train --random-weights --grid 1 --lambda 1 --name random --method logistic --test test",
    );
    let told =
        done(dir, "classify eval run --labels upright=test/upright --labels lying=test/lying --name random");
    assert!(told.contains("mean of each map, random weights (seed 0): 30 pictures"), "{told}");

    let predicted = json(dir, "classify predict run test/upright test/lying/061.png --top 1");
    let answers = predicted["pictures"].as_array().unwrap();
    assert_eq!(answers.len(), 16);
    assert_eq!(answers[15]["picture"], "test/lying/061.png");
    assert_eq!(answers[15]["classes"][0]["class"], "lying");

    let tune = "classify tune run --labels train --test test --stage 1 --steps 60 --batch 32 --share 0.5";
    let tuned = json(dir, &format!("{tune} --head attention --hidden 8 --kind h --out tuned"));
    assert_eq!((&tuned["pictures"], &tuned["steps"]), (&60.into(), &60.into()));
    assert!(tuned["tested"]["top_1"].as_f64().unwrap() > 0.8, "{tuned}");
    assert_eq!(tuned["tested"]["attention"], "classes.attention.png");
    let evaluated = json(dir, "classify eval tuned --labels test");
    assert_eq!(evaluated["confusion"], tuned["tested"]["confusion"]);
    // It is a run like any other.
    done(dir, "visualize tuned --frames f --stage 1 --units 2 --restarts 1 --quiet");
    done(dir, "report tuned");
    let page = fs::read_to_string(dir.join("tuned/report.html")).unwrap();
    assert!(page.contains("What the features are worth") && page.contains("the attention of classes"));

    let compare = "classify compare run --labels train --test test --stage 1 --steps 8 --batch 16 --shares 0.1,1 --seeds 2";
    let compared = json(dir, compare);
    assert_eq!(compared["networks"].as_array().unwrap().len(), 8);
    let table = dir.join("run/compare-labels/classes.json");
    let whole = read(&table);
    let mut cut = whole.clone();
    cut["networks"].as_array_mut().unwrap().truncate(5);
    fs::write(&table, cut.to_string()).unwrap();
    done(dir, compare);
    assert_eq!(read(&table), whole);
    let chosen = json(dir, &format!("{compare} --validation train --network-rates 0.01,0.1 --name chosen"));
    assert_eq!(
        (chosen["tried"].as_array().unwrap().len(), chosen["networks"].as_array().unwrap().len()),
        (8, 8)
    );
}

/// A command fails with this code, and says why.
fn refused(dir: &Path, line: &str, code: i32, problem: &str) {
    let output = run(dir, line);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{line}: {told}");
    assert!(told.contains(problem) && !told.contains("panicked"), "{line}: {told}");
}

#[test]
fn probes_of_theory_are_written_told_and_shown() {
    let folder = trained();
    let dir = folder.path();
    bars(&dir.join("train"), 30);
    bars(&dir.join("test"), 20);
    let ntk = "probe ntk run --labels train --test test --stage 1 --count 20 --test-count 30 --steps 60 --batch 20 --moments 3";
    let found = json(dir, ntk);
    assert_eq!((&found["pictures"], &found["test_pictures"]), (&20.into(), &30.into()));
    let moments = found["moments"].as_array().unwrap();
    assert_eq!(
        moments.iter().map(|moment| moment["step"].as_u64().unwrap()).collect::<Vec<_>>(),
        [0, 20, 60]
    );
    assert_eq!((&moments[0]["drift"], moments[0]["spectrum"][0]["rank"].as_u64()), (&0.0.into(), Some(1)));
    assert!(moments[2]["drift"].as_f64().unwrap() > 0.01, "learning moves the kernel: {}", moments[2]);
    assert!(moments[2]["network"]["train"].as_f64().unwrap() > 0.9, "{}", moments[2]);
    assert!(moments[0]["regression"]["test"].as_f64().unwrap() > 0.8, "{}", moments[0]);
    let overparam =
        "probe overparam run --labels train --stage 1 --count 40 --steps 60 --batch 20 --rates 0.03,0.3";
    let found = json(dir, overparam);
    assert_eq!(
        (found["curves"].as_array().unwrap().len(), found["outcomes"].as_array().unwrap().len()),
        (8, 2)
    );
    for outcome in found["outcomes"].as_array().unwrap() {
        assert!(outcome["speed_by_flops"].as_f64().unwrap() > 0.0, "{outcome}");
    }
    done(dir, &format!("{overparam} --layer head --name head"));
    done(dir, "report run");
    let page = fs::read_to_string(dir.join("run/report.html")).unwrap();
    assert!(page.contains("Does training go as theory says?") && page.contains("Effective rank"));
    assert!(
        page.contains("Curves of ntk")
            && page.contains("Curves of overparam")
            && page.contains("Curves of head")
    );
    for (line, code, problem) in [
        ("probe ntk run --labels train --kind a", 2, "setting `--kind` is a, expected h or y"),
        ("probe ntk run --labels train --stage 1 --steps 1 --network-rate 1e38", 1, "a lower --rate"),
        ("probe overparam run --labels train --powers 1", 2, "expected a number from 1.5 to 10"),
        ("probe overparam run --labels train --rates 1e20,1e25", 1, "every rate is too high"),
        ("classify compare run --labels train --test test --network-rates 1", 2, "--validation"),
    ] {
        refused(dir, line, code, problem);
    }
}

#[test]
fn what_cannot_be_classified_is_refused_by_name() {
    let folder = trained();
    let dir = folder.path();
    bars(&dir.join("train"), 4);
    for (line, code, problem) in [
        (
            "classify fit run --labels train/upright",
            1,
            "its pictures lie in no folder that could be their class",
        ),
        ("classify fit run --labels one=train/upright", 1, "expected two classes or more"),
        ("classify fit run --labels train --classes upright,cat", 1, "no picture is of class `cat`"),
        ("classify fit run --labels train --stage 3", 2, "`--stage` is 3"),
        ("classify fit run --labels train --grid 9", 2, "`--grid` is 9"),
        ("classify eval run --labels train", 1, "there is no read-out"),
        ("classify tune run --labels train --out run", 1, "holds something already"),
        ("classify tune run --labels train --out t --kind a", 2, "`--kind` is a, expected h or y"),
        (
            "classify tune run --labels train --out t --stage 2 --keep 2",
            2,
            "`--keep` is 2, expected at most 1",
        ),
        (
            "classify tune run --labels train --out t --steps 5 --head-first 6",
            2,
            "`--head-first` is 6, expected at most 5",
        ),
        ("classify tune run --labels train --out t --rate 1e30", 1, "a lower --rate"),
    ] {
        refused(dir, line, code, problem);
    }
    assert!(!dir.join("t").exists() && !dir.join("run/classify").exists());
}
