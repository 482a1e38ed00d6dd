//! Pictures and their classes: a folder for each class, a table that names the class of each picture, or a class given for all.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rand::seq::SliceRandom;

use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::frames::FrameStore;
use crate::rng;

/// Pictures of a class, or of classes that their folders or a table name.
#[derive(Debug, Clone)]
pub struct Source {
    /// The class of all of them, if it is given.
    pub class: Option<String>,
    /// A folder, tar or frame set.
    pub path: PathBuf,
    /// Only the pictures whose key matches.
    pub pattern: Option<glob::Pattern>,
}

/// The class of each picture, by key.
pub struct LabelTable {
    classes: HashMap<String, String>,
}

impl LabelTable {
    /// Reads a CSV file with a header, whose first column are keys: names of pictures, with or without ending. The class is in `column`, or in
    /// one called `class` or `label`, or in the second.
    ///
    /// # Errors
    /// The file cannot be read, has no such column, or names a picture twice with different classes.
    pub fn read(path: &Path, column: Option<&str>) -> Result<LabelTable> {
        let bad = |problem: String| Error::bad_file(path, problem);
        let mut reader = csv::Reader::from_path(path).map_err(|e| bad(e.to_string()))?;
        let header = reader.headers().map_err(|e| bad(e.to_string()))?.clone();
        let named = |name: &str| header.iter().position(|column| column.trim() == name);
        let at = match column {
            Some(name) => named(name).ok_or_else(|| {
                let columns: Vec<&str> = header.iter().collect();
                bad(format!("has no column `{name}`; its columns are {}", columns.join(", ")))
            })?,
            None => named("class").or_else(|| named("label")).unwrap_or(1),
        };
        if at == 0 || at >= header.len() {
            return Err(bad(format!("has {} columns, expected keys and a column of classes", header.len())));
        }
        let mut classes = HashMap::new();
        for record in reader.records() {
            let record = record.map_err(|e| bad(e.to_string()))?;
            let (Some(key), Some(class)) = (record.get(0), record.get(at)) else { continue };
            let (key, class) = (key.trim().to_owned(), class.trim().to_owned());
            if class.is_empty() {
                continue;
            }
            if let Some(other) = classes.insert(key.clone(), class.clone()).filter(|other| *other != class) {
                return Err(bad(format!("says that `{key}` is `{other}` and that it is `{class}`")));
            }
        }
        if classes.is_empty() {
            return Err(bad("names no class of any picture".into()));
        }
        Ok(LabelTable { classes })
    }

    /// The class of a picture; keys of pictures have no endings, those of a table may.
    fn class(&self, key: &str) -> Option<&String> {
        let with_ending = |ending| self.classes.get(&format!("{key}.{ending}"));
        self.classes.get(key).or_else(|| ["jpg", "png", "jpeg"].into_iter().find_map(with_ending))
    }
}

/// Pictures on disk and the class of each.
pub struct Labelled {
    /// The pictures.
    pub store: FrameStore,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// The class of each picture, a number of a name.
    pub class: Vec<usize>,
    /// Pictures that are not here, by the class that is not wanted, or an empty name where they have none.
    pub others: BTreeMap<String, usize>,
}

impl Labelled {
    /// Opens all sources; the class of a picture is that of its source, or of the table, if that names any of the source's, or else the name of
    /// the folder that it is in. Only those of `wanted` classes are taken, in this order; without, those of all that there are, in the order of
    /// names.
    ///
    /// # Errors
    /// There are no pictures of any class; a class that is wanted has none, unless `may_lack`.
    pub fn open(
        sources: &[Source],
        table: Option<&LabelTable>,
        wanted: &[String],
        may_lack: bool,
    ) -> Result<Labelled> {
        let mut found: Vec<(FrameStore, Vec<String>)> = Vec::new();
        let mut others = BTreeMap::new();
        for source in sources {
            let path = &source.path;
            let mut store = FrameStore::open(path)?;
            if let Some(pattern) = &source.pattern {
                store = store.matching(path, pattern)?;
            }
            // Of pictures of which it names none, the table says nothing: it may be about others.
            let names_some =
                |table: &&LabelTable| (0..store.len()).any(|n| table.class(store.key(n)).is_some());
            let table = table.filter(names_some);
            let class = |index: usize| class_of(source, table, store.key(index));
            let classes: Vec<Option<String>> = (0..store.len()).map(class).collect();
            let is_wanted = |class: &Option<String>| {
                class.as_ref().is_some_and(|class| wanted.is_empty() || wanted.contains(class))
            };
            for class in classes.iter().filter(|class| !is_wanted(class)) {
                *others.entry(class.clone().unwrap_or_default()).or_insert(0) += 1;
            }
            let keep: Vec<bool> = classes.iter().map(is_wanted).collect();
            let problem = no_class(source, &store, wanted);
            let store = store.only(path, |index| keep[index], &problem)?;
            let classes = classes.into_iter().zip(&keep).filter(|(_, keep)| **keep);
            found.push((store, classes.filter_map(|(class, _)| class).collect()));
        }
        let names: Vec<String> = found.iter().flat_map(|(_, classes)| classes).cloned().collect();
        let mut classes = wanted.to_vec();
        if classes.is_empty() {
            classes = names.clone();
            classes.sort();
            classes.dedup();
        }
        let place = |name: &String| classes.iter().position(|class| class == name).expect("it is wanted");
        let class: Vec<usize> = names.iter().map(place).collect();
        let first = &sources.first().expect("at least one source").path;
        if let Some(lacking) = (0..classes.len()).find(|number| !may_lack && !class.contains(number)) {
            let problem = format!("no picture is of class `{}`", classes[lacking]);
            return Err(Error::bad_file(first, problem));
        }
        if classes.len() < 2 {
            let problem = format!("all pictures are of class `{}`, expected two classes or more", classes[0]);
            return Err(Error::bad_file(first, problem));
        }
        let store = found.into_iter().map(|(store, _)| store).reduce(FrameStore::and).expect("a source");
        Ok(Labelled { store, classes, class, others })
    }

    /// The class of each picture of what became of the store, of which some may not have been readable.
    pub fn classes_of(&self, dataset: &Dataset) -> Vec<usize> {
        let mut left_out = dataset.left_out.iter().peekable();
        let all = self.class.iter().enumerate();
        all.filter(|(number, _)| left_out.next_if_eq(&number).is_none()).map(|(_, class)| *class).collect()
    }

    /// What a user should know: which pictures are not here, in words.
    pub fn warnings(&self) -> Vec<String> {
        let words = |(class, count): (&String, &usize)| match class.as_str() {
            "" => format!("{count} pictures have no class and are left out"),
            class => format!("{count} pictures of class `{class}` are left out: it is not among the classes"),
        };
        self.others.iter().map(words).collect()
    }
}

fn class_of(source: &Source, table: Option<&LabelTable>, key: &str) -> Option<String> {
    if source.class.is_some() {
        return source.class.clone();
    }
    if let Some(table) = table {
        return table.class(key).cloned();
    }
    let (folder, _) = key.rsplit_once('/')?;
    Some(folder.rsplit('/').next().unwrap_or(folder).to_owned())
}

/// Why a source has no picture of a class.
fn no_class(source: &Source, store: &FrameStore, wanted: &[String]) -> String {
    let key = store.key(0);
    match &source.class {
        Some(class) => format!("its class `{class}` is not among the classes"),
        None if !key.contains('/') => format!(
            "its pictures lie in no folder that could be their class (one is `{key}`), and no table (--csv) names one of them; CLASS={} gives a class to all",
            source.path.display()
        ),
        None => format!("none of its pictures is of class {}; one key is `{key}`", wanted.join(", ")),
    }
}

/// Some of the pictures whose classes these are: a share of each class, at least one, by chance; ascending.
pub fn some_of_each(class: &[usize], share: f64, seed: u64) -> Vec<usize> {
    let mut chosen = Vec::new();
    for (number, mut of_class) in by_class(class).into_iter().enumerate() {
        of_class.shuffle(&mut rng::stream(seed, "labels", number as u64));
        let keep = (share * of_class.len() as f64).round() as usize;
        of_class.truncate(keep.max(1));
        chosen.extend(of_class);
    }
    chosen.sort_unstable();
    chosen
}

/// The pictures of each class.
pub(super) fn by_class(class: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new(); class.iter().max().map_or(0, |most| most + 1)];
    class.iter().enumerate().for_each(|(picture, &class)| all[class].push(picture));
    all
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn source(class: Option<&str>, path: PathBuf) -> Source {
        Source { class: class.map(str::to_owned), path, pattern: None }
    }

    fn picture(path: PathBuf) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::GrayImage::new(4, 4).save(path).unwrap();
    }

    #[test]
    fn classes_come_from_folders_a_table_or_the_source_and_others_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a/cat/1.png", "a/cat/2.png", "a/dog/1.png", "b/7.png", "b/8.png", "b/9.png"] {
            picture(at(name));
        }
        let labelled = Labelled::open(&[source(None, at("a"))], None, &[], false).unwrap();
        assert_eq!((labelled.classes, labelled.class), (vec!["cat".into(), "dog".into()], vec![0, 0, 1]));

        fs::write(at("t.csv"), "key,source,content\n7.png,x,dog\n8,\"y, z\",ant\n").unwrap();
        let table = LabelTable::read(&at("t.csv"), Some("content")).unwrap();
        let labelled = Labelled::open(&[source(None, at("b"))], Some(&table), &[], false).unwrap();
        assert_eq!((labelled.classes, labelled.class), (vec!["ant".into(), "dog".into()], vec![1, 0]));
        assert_eq!(labelled.others, BTreeMap::from([(String::new(), 1)]));

        let both = [source(Some("dog"), at("b")), source(None, at("a"))];
        let wanted = ["dog".into(), "bee".into()];
        let labelled = Labelled::open(&both, None, &wanted, true).unwrap();
        assert_eq!((labelled.store.len(), labelled.class), (4, vec![0; 4]));
        assert_eq!(labelled.others, BTreeMap::from([("cat".into(), 2)]));
        assert_eq!(labelled.store.key(3), "dog/1");
        labelled.store.picture(3).unwrap();
    }

    #[test]
    fn what_has_no_class_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        picture(at("one.png"));
        picture(at("d/cat/1.png"));
        fs::write(at("t.csv"), "key,class\nnobody,cat\n").unwrap();
        fs::write(at("twice.csv"), "key,class\na,cat\na,dog\n").unwrap();
        let error = |sources: &[Source], table: Option<&LabelTable>, wanted: &[String]| {
            Labelled::open(sources, table, wanted, false).err().unwrap().to_string()
        };
        let flat = [source(None, folder.path().join("d/cat"))];
        assert!(error(&flat, None, &[]).contains("in no folder that could be their class"));
        let table = LabelTable::read(&at("t.csv"), None).unwrap();
        assert!(error(&flat, Some(&table), &[]).contains("no table (--csv) names one of them"));
        let one = [source(None, at("d"))];
        assert!(error(&one, None, &[]).contains("expected two classes or more"));
        assert!(error(&one, None, &["cat".into(), "dog".into()]).contains("no picture is of class `dog`"));
        let twice = LabelTable::read(&at("twice.csv"), None).err().unwrap().to_string();
        assert!(twice.contains("says that `a` is `cat` and that it is `dog`"), "{twice}");
        let column = LabelTable::read(&at("t.csv"), Some("kind")).err().unwrap().to_string();
        assert!(column.contains("no column `kind`; its columns are key, class"), "{column}");
    }

    #[test]
    fn a_share_of_the_labels_has_all_classes() {
        let class: Vec<usize> = (0..1000).map(|n| usize::from(n % 10 == 0)).collect();
        let some = some_of_each(&class, 0.01, 4);
        let of_class = |wanted| some.iter().filter(|&&picture| class[picture] == wanted).count();
        assert_eq!((of_class(0), of_class(1)), (9, 1));
        assert_eq!(some, some_of_each(&class, 0.01, 4));
        assert_ne!(some, some_of_each(&class, 0.01, 5));
        assert_eq!(some_of_each(&class, 1.0, 4), (0..1000).collect::<Vec<_>>());
    }
}
