//! Data flows one way: a module imports only from those before it.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the library in order; each may use those before it, and itself.
const LAYERS: [&str; 21] = [
    "error", "files", "rng", "geometry", "config", "video", "frames", "sampling", "dataset", "kernels",
    "network", "picture", "training", "analysis", "classify", "probe", "bench", "scale", "report", "serve",
    "verify",
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// `frames` for `src/frames.rs` and `src/frames/store.rs`.
fn layer(path: &Path, src: &Path) -> String {
    let first = path.strip_prefix(src).unwrap().components().next().unwrap();
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

#[test]
fn modules_import_only_from_those_before_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    for path in sources(&src) {
        let own = layer(&path, &src);
        if own == "cli" || own == "main" || own == "lib" {
            continue;
        }
        let place = LAYERS.iter().position(|name| *name == own);
        let place = place.unwrap_or_else(|| panic!("{}: `{own}` is in no layer", path.display()));
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for import in code.split("crate::").skip(1) {
            let name: String = import.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let Some(used) = LAYERS.iter().position(|layer| *layer == name) else { continue };
            assert!(used <= place, "{}: imports `{name}`, which comes after `{own}`", path.display());
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} imports found");
}

#[test]
fn only_the_video_module_names_ffmpeg() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in sources(&src) {
        let names_it = fs::read_to_string(&path).unwrap().contains("ffmpeg_next");
        assert!(!names_it || layer(&path, &src) == "video", "{} names ffmpeg_next", path.display());
    }
}
