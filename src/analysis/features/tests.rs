use super::*;
use crate::config::RunConfig;
use crate::dataset::Dataset;
use crate::network::preprocess::{Transform, Whitening};
use crate::rng;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use rand::Rng;
use safetensors::SafeTensors;
use std::fs;

/// More pictures than four batches, the last of which is not full.
const PICTURES: usize = 4 * BATCH + 7;

struct Case {
    network: Network,
    dataset: Dataset,
    whitening: Whitening,
}

impl Case {
    fn new() -> Case {
        let text = "[input]\nchannels = 3\nheight = 9\nwidth = 8\npreprocess = \"none\"\n[[stages]]\nmaps = 3\nfield = 4\n\
                    pool = 2\nlcn = 3\n[[stages]]\nmaps = 5\nfield = 2\npool = 1\nlcn = 3\n[training]\nsteps = [1, 1]\n";
        let network = Network::new(&RunConfig::parse(text, &[]).unwrap(), 2).unwrap();
        let mut rng = rng::stream(1, "features", 0);
        let pixels = (0..PICTURES * network.input.len()).map(|_| rng.random()).collect();
        let dataset = Dataset::from_pixels(network.input, pixels);
        let whitening = Whitening { shape: network.input, transform: Transform::None };
        Case { network, dataset, whitening }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs::new(&self.dataset, &self.whitening, 0)
    }

    fn about(&self, stage: usize, kind: Kind) -> About {
        let (run, frames) = ("outputs/run".into(), "outputs/frames".into());
        About {
            run,
            checkpoint: "step-7 1f".into(),
            frames,
            stage,
            kind,
            shape: self.network.shape(stage, kind),
        }
    }

    fn encode(&self, out: &Path, group: (usize, Kind), stop: usize) -> Result<Option<Encoded>> {
        let (stop, progress) = (AtomicUsize::new(stop), Progress::none());
        let about = self.about(group.0, group.1);
        encode(&self.network, &self.inputs(), &self.dataset.keys, about, out, (&stop, &progress))
    }

    fn features(&self, group: (usize, Kind)) -> Array2<f32> {
        let all: Vec<usize> = (0..PICTURES).collect();
        features(&self.network, &self.inputs(), &all, group, |_| ()).unwrap()
    }
}

#[test]
fn features_are_the_values_of_all_units_in_order_on_any_number_of_threads() {
    let case = Case::new();
    let (inputs, mut work) = (case.inputs(), case.network.workspace(1));
    for group in [(0, Kind::A), (0, Kind::H), (0, Kind::Y), (1, Kind::Y)] {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.features(group))
        };
        let rows = on(1);
        assert_eq!((&rows, &rows), (&on(2), &on(5)), "{group:?}");
        let (stage, kind) = group;
        let units = case.network.units(stage, kind);
        for picture in (0..PICTURES).step_by(31) {
            inputs.load(&[picture], &mut work);
            case.network.forward_to(&mut work, stage, kind);
            let want = units.iter().map(|&unit| work.unit_values(&case.network, stage, kind, unit)[0]);
            let close = |(got, want): (&f32, f32)| (got - want).abs() <= 1e-5 * (1.0 + want.abs());
            assert_eq!(rows.ncols(), units.len());
            assert!(rows.row(picture).iter().zip(want).all(close), "{group:?} {picture}");
        }
    }
}

#[test]
fn some_pictures_in_any_order_have_the_rows_of_those_pictures() {
    let (case, group) = (Case::new(), (1, Kind::H));
    let (all, some) = (case.features(group), [PICTURES - 1, 3, 3, 200]);
    let rows = features(&case.network, &case.inputs(), &some, group, |_| ()).unwrap();
    some.iter().zip(rows.outer_iter()).for_each(|(&picture, row)| assert_eq!(row, all.row(picture)));
    assert_eq!(features(&case.network, &case.inputs(), &[], group, |_| ()).unwrap().dim(), (0, 5 * 4 * 3));
}

#[test]
fn all_files_hold_the_same_numbers_and_names() {
    let (case, group) = (Case::new(), (0, Kind::Y));
    let folder = tempfile::tempdir().unwrap();
    let rows = case.features(group);
    let units = case.network.units(group.0, group.1);
    let write = |name: &str| case.encode(&folder.path().join(name), group, 0).unwrap().unwrap();

    let made = write("a.safetensors");
    assert_eq!((made.pictures, made.units, &made.keys), (PICTURES, units.len(), &None));
    let bytes = fs::read(&made.out).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let facts = metadata.metadata().as_ref().unwrap();
    let fact = |name: &str| facts[name].as_str();
    assert_eq!([fact("stage"), fact("kind"), fact("shape")], ["1", "y", "[3, 5, 4]"]);
    assert_eq!([fact("run"), fact("checkpoint")], ["outputs/run", "step-7 1f"]);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor("features").unwrap();
    assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::F32, &[PICTURES, units.len()][..]));
    let numbers = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
    };
    assert_eq!(numbers(tensor.data()), rows.as_slice().unwrap());
    assert_eq!(tensors.tensor("keys").unwrap().data(), case.dataset.keys.join("\n").as_bytes());

    let made = write("a.npy");
    let bytes = fs::read(&made.out).unwrap();
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!((&bytes[..8], (10 + header) % 64), (&b"\x93NUMPY\x01\x00"[..], 0));
    let text = std::str::from_utf8(&bytes[10..10 + header]).unwrap();
    let want =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({PICTURES}, {}), }}", units.len());
    assert!(text.trim_end() == want && text.ends_with('\n'), "{text:?}");
    assert_eq!(numbers(&bytes[10 + header..]), rows.as_slice().unwrap());
    let names = fs::read_to_string(folder.path().join("a.npy.keys.txt")).unwrap();
    assert_eq!(names.lines().collect::<Vec<_>>(), case.dataset.keys);

    let made = write("a.parquet");
    let reader = SerializedFileReader::new(fs::File::open(&made.out).unwrap()).unwrap();
    let columns = reader.metadata().file_metadata().schema_descr().columns().to_vec();
    let names: Vec<&str> = columns.iter().map(|column| column.name()).collect();
    let name = |unit: &crate::network::Unit| format!("{}:{}:{}", unit.map, unit.row, unit.col);
    assert_eq!(names[1..], units.iter().map(name).collect::<Vec<_>>());
    let mut count = 0;
    for (number, row) in reader.get_row_iter(None).unwrap().enumerate() {
        let row = row.unwrap();
        assert_eq!((names[0], row.get_string(0).unwrap()), ("key", &case.dataset.keys[number]));
        (0..units.len()).for_each(|unit| assert_eq!(row.get_float(1 + unit).unwrap(), rows[(number, unit)]));
        count += 1;
    }
    assert_eq!(count, PICTURES);
}

#[test]
fn what_is_interrupted_or_fails_leaves_what_was_there() {
    let (case, group) = (Case::new(), (1, Kind::Y));
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.safetensors", "a.npy", "a.parquet"] {
        let path = folder.path().join(name);
        fs::write(&path, "older").unwrap();
        assert!(case.encode(&path, group, 2).unwrap().is_none());
        assert_eq!(fs::read_to_string(&path).unwrap(), "older");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    let error = |name: &str| case.encode(&folder.path().join(name), group, 0).unwrap_err();
    for name in ["a", "a.txt", "a.npz"] {
        assert!(error(name).is_usage() && error(name).to_string().contains(".safetensors, .npy or .parquet"));
    }
    assert!(error("missing/a.npy").to_string().contains("missing"));
    fs::create_dir(folder.path().join("b.npy")).unwrap();
    assert!(error("b.npy").to_string().contains("b.npy: cannot write"));
}

#[test]
fn a_table_with_more_columns_than_readers_can_take_is_refused() {
    let case = Case::new();
    let shape = MapShape { channels: 1 + MOST_COLUMNS / 4, rows: 2, cols: 2 };
    let about = About { shape, ..case.about(0, Kind::A) };
    let folder = tempfile::tempdir().unwrap();
    let refused = file::create(&folder.path().join("a.parquet"), &case.dataset.keys, &about).err().unwrap();
    assert!(refused.is_usage() && refused.to_string().contains("32772 units"), "{refused}");
    assert!(file::create(&folder.path().join("a.npy"), &case.dataset.keys, &about).is_ok());
}
