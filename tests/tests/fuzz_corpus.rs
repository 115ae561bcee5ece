//! The fuzzer's targets on everything that it has kept: its corpora, and every input that ever broke one.

use std::{fs, path::Path};

use guard_tests::fuzz::TARGETS;

/// The files of a directory below `fuzz`, by name.
fn inputs(directory: &str, target: &str) -> Vec<(String, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(directory).join(target);
    // A target that nothing has broken yet has no directory of such inputs.
    let files = fs::read_dir(&path).into_iter().flatten();
    let mut inputs: Vec<_> = files
        .map(|file| {
            let file = file.expect("the directory can be read").path();
            let bytes = fs::read(&file).expect("the file can be read");
            (file.display().to_string(), bytes)
        })
        .collect();
    inputs.sort();
    inputs
}

#[test]
fn every_kept_input_holds() {
    for (name, target) in TARGETS {
        let corpus = inputs("corpus", name);
        assert!(corpus.len() >= 10, "the corpus of {name} holds {} inputs", corpus.len());
        for (file, bytes) in corpus.into_iter().chain(inputs("crashes", name)) {
            println!("{file}");
            target(&bytes);
        }
    }
}

#[test]
fn every_target_has_a_program_and_nothing_else_has() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |directory: &str, ending: &str| {
        let files = fs::read_dir(manifest.join("fuzz").join(directory)).into_iter().flatten();
        let mut names: Vec<String> = files
            .map(|file| file.expect("the directory can be read").file_name())
            .filter_map(|name| Some(name.to_str()?.strip_suffix(ending)?.to_owned()))
            .collect();
        names.sort();
        names
    };
    let mut targets = TARGETS.map(|(name, _)| name.to_owned());
    targets.sort();
    assert_eq!(names("fuzz_targets", ".rs"), targets);
    assert_eq!(names("corpus", ""), targets);
    for name in names("crashes", "") {
        assert!(targets.contains(&name), "{name} is no target");
    }
}
