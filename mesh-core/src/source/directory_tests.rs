use std::fs;
use std::future::Future;
use std::os::unix::fs::symlink;

use super::*;
use crate::live::{self, Live};
use crate::source::{MAX_DIRECTORY_DEPTH, MAX_FILE_BYTES, MAX_FILES};

/// How long a test waits for a change that must come; real time, so far above what is promised.
const PATIENT: Duration = Duration::from_secs(20);

fn namespace(name: &str) -> String {
    format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n")
}

fn names(loaded: &Loaded) -> Vec<&str> {
    loaded.objects.iter().map(|o| o.meta().name.as_str()).collect()
}

/// A directory that is watched while `change` happens; returns once `want` is in force.
async fn after(live: &Live<Loaded>, change: impl FnOnce(), want: impl Fn(&Loaded) -> bool) {
    let mut changes = live.changes();
    change();
    let wait = async {
        while !want(&live.load()) {
            changes.changed().await;
        }
    };
    let in_time = tokio::time::timeout(PATIENT, wait).await;
    assert!(in_time.is_ok(), "what is in force: {:?} {:?}", names(&live.load()), live.load().diagnostics);
}

/// Watches `path` while `test` runs.
async fn watched<F: Future<Output = ()>>(path: &Path, test: impl FnOnce(Live<Loaded>) -> F) {
    let mut directory = Directory::new(path);
    let (publisher, live) = live::channel(directory.load().unwrap());
    tokio::select! {
        () = directory.watch(publisher) => panic!("watching ended"),
        () = test(live) => {}
    }
}

#[test]
fn watching_can_be_spawned() {
    fn spawnable<T: Send + 'static>(_: &T) {}
    let (publisher, _) = live::channel(Loaded::default());
    spawnable(&Directory::new("x").watch(publisher));
}

#[tokio::test]
async fn a_missing_directory_is_an_error_at_start() {
    let error = Directory::new("/nowhere/at/all").load().unwrap_err();
    assert!(error.to_string().starts_with("/nowhere/at/all: the directory cannot be read: "), "{error}");
}

#[tokio::test]
async fn files_are_found_by_name_in_subdirectories_too() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    fs::create_dir_all(root.join("sub/deeper")).unwrap();
    fs::create_dir_all(root.join(".git")).unwrap();
    for (file, name) in [
        ("a.yaml", "a"),
        ("b.yml", "b"),
        ("sub/deeper/d.yaml", "d"),
        (".hidden.yaml", "no"),
        (".git/x.yaml", "no"),
        ("notes.txt", "no"),
        ("a.yaml.bak", "no"),
    ] {
        fs::write(root.join(file), namespace(name)).unwrap();
    }
    fs::write(root.join("c.json"), r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"c"}}"#)
        .unwrap();
    let loaded = Directory::new(root).load().unwrap();
    assert_eq!(names(&loaded), ["a", "b", "c", "d"]);
    assert_eq!(loaded.generation, 1);
    assert_eq!(loaded.objects[3].origin().unwrap().file.as_ref(), root.join("sub/deeper/d.yaml"));
}

#[tokio::test]
async fn nothing_new_changes_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    fs::write(tmp.path().join("a.yaml"), namespace("a")).unwrap();
    let mut directory = Directory::new(tmp.path());
    let first = directory.load().unwrap();
    assert!(directory.look().is_none());
    // Touched, but the same text.
    fs::write(tmp.path().join("a.yaml"), namespace("a")).unwrap();
    assert_eq!(directory.load().unwrap(), first);
}

#[tokio::test]
async fn writes_new_files_new_directories_and_deletions_are_noticed() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().to_owned();
    fs::write(root.join("a.yaml"), namespace("a")).unwrap();
    watched(&root.clone(), |live| async move {
        after(&live, || fs::write(root.join("a.yaml"), namespace("a2")).unwrap(), |l| names(l) == ["a2"])
            .await;
        let new = || {
            fs::create_dir_all(root.join("x/y")).unwrap();
            fs::write(root.join("x/y/b.yaml"), namespace("b")).unwrap();
        };
        after(&live, new, |l| names(l) == ["a2", "b"]).await;
        after(&live, || fs::remove_dir_all(root.join("x")).unwrap(), |l| names(l) == ["a2"]).await;
        assert_eq!(live.load().generation, 4);
    })
    .await;
}

#[tokio::test]
async fn an_editor_that_replaces_the_file_is_noticed() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().to_owned();
    fs::write(root.join("a.yaml"), namespace("a")).unwrap();
    watched(&root.clone(), |live| async move {
        let rename = || {
            fs::write(root.join(".a.yaml.swp"), namespace("b")).unwrap();
            fs::rename(root.join(".a.yaml.swp"), root.join("a.yaml")).unwrap();
        };
        after(&live, rename, |l| names(l) == ["b"]).await;
        let backup = || {
            fs::rename(root.join("a.yaml"), root.join("a.yaml~")).unwrap();
            fs::write(root.join("a.yaml"), namespace("c")).unwrap();
        };
        after(&live, backup, |l| names(l) == ["c"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_mounted_config_map_is_followed() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().to_owned();
    let version = |v: &str, name: &str| {
        fs::create_dir(root.join(v)).unwrap();
        fs::write(root.join(v).join("a.yaml"), namespace(name)).unwrap();
    };
    version("..1", "one");
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
    watched(&root.clone(), |live| async move {
        assert_eq!(names(&live.load()), ["one"]);
        let flip = || {
            fs::create_dir(root.join("..2")).unwrap();
            fs::write(root.join("..2/a.yaml"), namespace("two")).unwrap();
            symlink("..2", root.join("..data_tmp")).unwrap();
            fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
            fs::remove_dir_all(root.join("..1")).unwrap();
        };
        after(&live, flip, |l| names(l) == ["two"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_broken_file_keeps_what_it_gave_while_others_change() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().to_owned();
    fs::write(root.join("a.yaml"), namespace("a")).unwrap();
    fs::write(root.join("b.yaml"), namespace("b")).unwrap();
    watched(&root.clone(), |live| async move {
        let both = || {
            fs::write(root.join("a.yaml"), "{apiVersion: v1, kind: Name").unwrap();
            fs::write(root.join("b.yaml"), namespace("b2")).unwrap();
        };
        after(&live, both, |l| names(l) == ["a", "b2"] && l.has_errors()).await;
        let mend = || fs::write(root.join("a.yaml"), namespace("a3")).unwrap();
        after(&live, mend, |l| names(l) == ["a3", "b2"] && !l.has_errors()).await;
    })
    .await;
}

#[tokio::test]
async fn a_directory_that_vanishes_keeps_everything_and_is_complained_of_once() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("conf");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.yaml"), namespace("a")).unwrap();
    let mut directory = Directory::new(&root);
    directory.load().unwrap();
    fs::remove_dir_all(&root).unwrap();
    let first = directory.look().unwrap();
    assert!(directory.take(first));
    assert_eq!(names(&directory.last), ["a"]);
    assert!(
        directory.last.diagnostics[0].to_string().contains("cannot be read any more"),
        "{:?}",
        directory.last
    );
    assert!(directory.look().is_none(), "once is enough");

    fs::create_dir(&root).unwrap();
    fs::write(root.join("b.yaml"), namespace("b")).unwrap();
    let first = directory.look().unwrap();
    assert!(directory.take(first));
    assert_eq!(names(&directory.last), ["b"]);
    assert!(directory.last.diagnostics.is_empty());
}

#[tokio::test]
async fn a_file_that_is_still_being_written_is_left_for_later() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("a.yaml");
    fs::write(&file, namespace("a")).unwrap();
    let mut directory = Directory::new(tmp.path());
    directory.load().unwrap();
    // Truncated at one look, written at the next.
    fs::write(&file, "").unwrap();
    let first = directory.look().unwrap();
    fs::write(&file, namespace("longer")).unwrap();
    assert!(!directory.take(first));
    assert_eq!(names(&directory.last), ["a"]);
    let first = directory.look().unwrap();
    assert!(directory.take(first));
    assert_eq!(names(&directory.last), ["longer"]);

    // One that never settles is read in the end.
    let mut rounds = 0;
    while names(&directory.last) == ["longer"] {
        fs::write(&file, format!("# {rounds}\n")).unwrap();
        let first = directory.look().unwrap();
        fs::write(&file, format!("{}# {}\n", namespace("restless"), "x".repeat(rounds))).unwrap();
        directory.take(first);
        rounds += 1;
        assert!(rounds < 20);
    }
    assert_eq!(rounds as u32, PATIENCE + 1);
    assert_eq!(names(&directory.last), ["restless"]);
}

#[tokio::test]
async fn a_file_that_is_replaced_in_two_steps_is_never_gone() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("a.yaml");
    fs::write(&file, namespace("a")).unwrap();
    let mut directory = Directory::new(tmp.path());
    directory.load().unwrap();
    let there = scan(tmp.path());
    fs::remove_file(&file).unwrap();
    assert!(!directory.take(there));
    assert_eq!(names(&directory.last), ["a"]);
    let first = directory.look().unwrap();
    assert!(directory.take(first), "missed twice, it is gone");
    assert!(directory.last.objects.is_empty());
}

#[tokio::test]
async fn links_that_lead_back_and_links_to_nowhere_are_named() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    fs::write(root.join("a.yaml"), namespace("a")).unwrap();
    fs::create_dir(root.join("sub")).unwrap();
    symlink("..", root.join("sub/loop")).unwrap();
    symlink("nowhere", root.join("b.yaml")).unwrap();
    let loaded = Directory::new(root).load().unwrap();
    assert_eq!(names(&loaded), ["a"]);
    let said: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("b.yaml: cannot be read"), "{said:?}");
    assert!(said[1].contains("sub/loop: a link leads back"), "{said:?}");
}

#[tokio::test]
async fn files_directories_and_bytes_are_bounded() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let deep = vec!["d"; MAX_DIRECTORY_DEPTH + 1].join("/");
    fs::create_dir_all(root.join(&deep)).unwrap();
    fs::write(root.join(&deep).join("a.yaml"), namespace("a")).unwrap();
    let big = fs::File::create(root.join("big.yaml")).unwrap();
    big.set_len(MAX_FILE_BYTES + 1).unwrap();
    fs::write(root.join("latin.yaml"), b"a: \xe4\n").unwrap();
    let loaded = Directory::new(root).load().unwrap();
    let said: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
    assert!(loaded.objects.is_empty());
    assert!(said.iter().any(|s| s.contains("nest more than")), "{said:?}");
    assert!(said.iter().any(|s| s.contains("big.yaml: the file has more than")), "{said:?}");
    assert!(said.iter().any(|s| s.contains("latin.yaml: not UTF-8")), "{said:?}");

    let tmp = tempfile::tempdir().unwrap();
    for i in 0..=MAX_FILES {
        fs::write(tmp.path().join(format!("{i}.yaml")), "").unwrap();
    }
    let loaded = Directory::new(tmp.path()).load().unwrap();
    assert!(loaded.diagnostics[0].to_string().contains("more than 10000 files"), "{:?}", loaded.diagnostics);
}
