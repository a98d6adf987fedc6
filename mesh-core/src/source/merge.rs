//! What is in force after a change, decided without I/O.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Effect, ResourceRef};
use crate::resource::Object;
use crate::yaml::{ReadResource, Reading, Validator, read_file};

/// What was read and what of it is in force, file by file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    files: BTreeMap<Arc<Path>, FileState>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct FileState {
    /// What the file holds now; kept so that it can be weighed again when another file changes.
    reading: Arc<Reading>,
    /// What of it is in force: also last good forms of what is broken now, and closed readings.
    given: BTreeMap<ResourceRef, Object>,
}

/// A file that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// The file, as the user named it.
    pub path: Arc<Path>,
    /// What it holds.
    pub content: Content,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The same as last time.
    Same,
    /// This text.
    Text(String),
    /// Nobody can say, for this reason.
    Unreadable(String),
}

impl State {
    /// Everything in force, in the order of the files.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.files.values().flat_map(|file| file.given.values())
    }

    /// How many files were read.
    pub fn files(&self) -> usize {
        self.files.len()
    }
}

/// The state that follows from `files`, which are all that are there now, and everything that is wrong with
/// them (also what was wrong already).
///
/// `validate` is asked once about each resource that can be read, when its file is read.
pub fn merge(
    previous: &State,
    files: Vec<FileContent>,
    validate: &Validator<'_>,
) -> (State, Vec<Diagnostic>) {
    let readings = read_all(previous, files, validate);
    let before = in_force(previous);
    let owners = owners(previous, &readings, &before);

    let mut state = State::default();
    let mut diagnostics = Vec::new();
    for (path, reading) in readings {
        let old = previous.files.get(&path).map(|f| &f.given);
        let mut given = BTreeMap::new();
        let mut seen: BTreeMap<&ResourceRef, &ReadResource> = BTreeMap::new();
        for resource in &reading.resources {
            let reference = &resource.reference;
            let owner = owners.get(reference);
            if let Some(first) = seen.get(reference) {
                diagnostics.push(twin(resource, &first.origin.to_string()));
                continue;
            }
            seen.insert(reference, resource);
            if let Some(owner) = owner.filter(|owner| owner.path != path) {
                diagnostics.push(twin(resource, &owner.place));
                continue;
            }
            let (object, effect) =
                outcome(resource, before.get(reference).map(|b| b.1), old.is_none_or(BTreeMap::is_empty));
            diagnostics.extend(resource.diagnostics.iter().cloned().map(|d| with_effect(d, effect)));
            if let Some(object) = object {
                given.insert(reference.clone(), object);
            }
        }
        let mut kept = false;
        if !reading.whole {
            for (reference, object) in old.into_iter().flatten() {
                let mine = owners.get(reference).is_none_or(|owner| owner.path == path);
                if mine && !seen.contains_key(reference) {
                    kept = true;
                    given.insert(reference.clone(), object.clone());
                }
            }
        }
        // A complaint about the file itself: what the file gave before may be what it hides.
        let effect = if kept { Effect::LastGoodKept } else { Effect::NotApplied };
        for diagnostic in &reading.diagnostics {
            let of_file = diagnostic.resource.is_none();
            diagnostics.push(if of_file {
                with_effect(diagnostic.clone(), effect)
            } else {
                diagnostic.clone()
            });
        }
        state.files.insert(path, FileState { reading, given });
    }
    diagnostics.sort_by(|a, b| a.origin.cmp(&b.origin));
    (state, diagnostics)
}

fn read_all(
    previous: &State,
    files: Vec<FileContent>,
    validate: &Validator<'_>,
) -> BTreeMap<Arc<Path>, Arc<Reading>> {
    let reading = |file: FileContent| {
        let reading = match file.content {
            Content::Text(text) => Arc::new(read_file(&file.path, &text, validate)),
            Content::Unreadable(reason) => Arc::new(unreadable(&file.path, &reason)),
            Content::Same => match previous.files.get(&file.path) {
                Some(known) => Arc::clone(&known.reading),
                None => Arc::default(),
            },
        };
        (file.path, reading)
    };
    files.into_iter().map(reading).collect()
}

fn unreadable(path: &Path, reason: &str) -> Reading {
    let message = format!("{}: {reason}", path.display());
    Reading { diagnostics: vec![Diagnostic::new(Effect::NotApplied, message)], ..Reading::default() }
}

fn in_force(state: &State) -> BTreeMap<&ResourceRef, (&Arc<Path>, &Object)> {
    let of_file = |(path, file)| -> Vec<_> {
        let file: &FileState = file;
        file.given.iter().map(|(reference, object)| (reference, (path, object))).collect()
    };
    state.files.iter().flat_map(of_file).collect()
}

/// The file that a resource is taken from.
struct Owner {
    path: Arc<Path>,
    /// File and line, for messages.
    place: String,
}

/// The file that each resource is taken from: the one that gave it before, if it still speaks of it (or may
/// hide it), else the first by path.
fn owners(
    previous: &State,
    readings: &BTreeMap<Arc<Path>, Arc<Reading>>,
    before: &BTreeMap<&ResourceRef, (&Arc<Path>, &Object)>,
) -> BTreeMap<ResourceRef, Owner> {
    let mut owners: BTreeMap<ResourceRef, Owner> = BTreeMap::new();
    let mut claim = |path: &Arc<Path>, reference: &ResourceRef, place: String| {
        let gave_it = before.get(reference).is_some_and(|(file, _)| *file == path);
        if gave_it || !owners.contains_key(reference) {
            let here = owners.get(reference).is_some_and(|owner| owner.path == *path);
            if !here {
                owners.insert(reference.clone(), Owner { path: Arc::clone(path), place });
            }
        }
    };
    for (path, reading) in readings {
        for resource in &reading.resources {
            claim(path, &resource.reference, resource.origin.to_string());
        }
        if !reading.whole {
            let old = previous.files.get(path).into_iter().flat_map(|file| &file.given);
            for (reference, object) in old {
                let place = object.origin().map_or_else(|| path.display().to_string(), ToString::to_string);
                claim(path, reference, place);
            }
        }
    }
    owners
}

/// What stands for a resource, and what follows from what is wrong with it.
fn outcome(resource: &ReadResource, before: Option<&Object>, new_file: bool) -> (Option<Object>, Effect) {
    if let Some(object) = &resource.object {
        return (Some(object.clone()), Effect::NoEffect);
    }
    if let Some(good) = before.filter(|object| object.invalid().is_none()) {
        return (Some(good.clone()), Effect::LastGoodKept);
    }
    match &resource.closed {
        // A resource without a readable name in a file that gave something is most likely one that the file
        // gave, and that one stays: see `kept`.
        Some(closed) if resource.named || new_file || before.is_some() => {
            (Some(closed.clone()), Effect::ClosedReading)
        }
        _ => (None, Effect::NotApplied),
    }
}

fn with_effect(mut diagnostic: Diagnostic, effect: Effect) -> Diagnostic {
    if diagnostic.is_error() {
        diagnostic.effect = effect;
    }
    diagnostic
}

fn twin(resource: &ReadResource, place: &str) -> Diagnostic {
    let message =
        format!("the same resource stands at {place}, and that one is in force; keep one of the two");
    Diagnostic::new(Effect::NotApplied, message)
        .resource(resource.reference.clone())
        .origin(resource.origin.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::authorization_policy::Action;

    fn service(name: &str, port: u16) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n---\n"
        )
    }

    fn route(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
        )
    }

    fn policy(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
        )
    }

    const GOOD: &str = "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}";
    const BROKEN: &str = "{hosts: [a], htpp: []}";

    /// A directory that changes, with what follows from the last change.
    #[derive(Default)]
    struct World {
        state: State,
        diagnostics: Vec<String>,
    }

    impl World {
        fn put(&mut self, files: &[(&str, &str)]) -> &mut Self {
            self.put_with(files, &|_| Vec::new())
        }

        fn put_with(&mut self, files: &[(&str, &str)], validate: &Validator<'_>) -> &mut Self {
            let file = |(path, text): &(&str, &str)| FileContent {
                path: Arc::from(Path::new(path)),
                content: match *text {
                    "SAME" => Content::Same,
                    "UNREADABLE" => Content::Unreadable("permission denied".to_owned()),
                    text => Content::Text(text.to_owned()),
                },
            };
            let (state, diagnostics) = merge(&self.state, files.iter().map(file).collect(), validate);
            self.state = state;
            self.diagnostics = diagnostics.iter().map(ToString::to_string).collect();
            self
        }

        /// What is in force, as `NAME` or (a closed reading) `NAME!`.
        fn names(&self) -> Vec<String> {
            let told =
                |o: &Object| format!("{}{}", o.meta().name, if o.invalid().is_some() { "!" } else { "" });
            self.state.objects().map(told).collect()
        }

        fn port(&self, name: &str) -> u16 {
            let service = self.state.objects().find(|o| o.meta().name == name);
            let Some(Object::Service(service)) = service else { panic!("no service {name}") };
            service.spec.ports[0].port
        }
    }

    #[test]
    fn additions_and_changes_apply_document_by_document() {
        let mut world = World::default();
        world.put(&[("a.yaml", &service("a", 1))]);
        let text = service("a", 2) + &route("bad", BROKEN) + &service("b", 3);
        world.put(&[("a.yaml", &text)]);
        assert_eq!(world.names(), ["a", "b"]);
        assert_eq!((world.port("a"), world.port("b")), (2, 3));
        assert_eq!(world.diagnostics.len(), 1);
    }

    #[test]
    fn a_resource_that_a_whole_file_no_longer_holds_is_gone() {
        let mut world = World::default();
        world.put(&[("a.yaml", &(service("a", 1) + &service("b", 1)))]).put(&[("a.yaml", &service("a", 1))]);
        assert_eq!(world.names(), ["a"]);
    }

    #[test]
    fn a_broken_resource_does_not_keep_its_file_from_being_whole() {
        let mut world = World::default();
        world.put(&[("a.yaml", &(service("a", 1) + &service("b", 1)))]);
        world.put(&[("a.yaml", &(service("a", 1) + &route("bad", BROKEN)))]);
        assert_eq!(world.names(), ["a"]);
    }

    #[test]
    fn a_file_that_is_not_yaml_keeps_everything_that_it_last_gave() {
        let mut world = World::default();
        world.put(&[("a.yaml", &(service("a", 1) + &service("b", 1)))]).put(&[("a.yaml", "foo: [")]);
        assert_eq!(world.names(), ["a", "b"]);
        assert!(world.diagnostics[0].starts_with("a.yaml:1: not YAML: "), "{:?}", world.diagnostics);
        assert!(
            world.diagnostics[0].ends_with("its last good form stays in force"),
            "{:?}",
            world.diagnostics
        );
        world.put(&[("a.yaml", "SAME")]);
        assert_eq!(world.names(), ["a", "b"], "an unchanged file keeps them for ever");
        world.put(&[("a.yaml", &service("b", 1))]);
        assert_eq!(world.names(), ["b"]);
    }

    #[test]
    fn one_document_that_is_not_yaml_keeps_what_is_missing_and_lets_the_others_change() {
        let mut world = World::default();
        world.put(&[("a.yaml", &(service("a", 1) + &service("b", 1)))]);
        world.put(&[("a.yaml", &(service("a", 2) + "kind: [Service\n---\n" + &service("c", 3)))]);
        assert_eq!(world.names(), ["a", "b", "c"]);
        assert_eq!(world.port("a"), 2);
    }

    #[test]
    fn a_document_that_hides_its_name_or_kind_keeps_what_is_missing() {
        for hidden in
            ["apiVersion: v1\nkind: Service\nmetadata: {nme: b}\n", "apiVersion: v1\nknd: Service\n"]
        {
            let mut world = World::default();
            world.put(&[("a.yaml", &(service("a", 1) + &service("b", 1)))]);
            world.put(&[("a.yaml", &(service("a", 1) + hidden))]);
            assert_eq!(world.names(), ["a", "b"], "{hidden}");
        }
    }

    #[test]
    fn an_unreadable_file_keeps_what_it_gave_and_a_vanished_one_does_not() {
        let mut world = World::default();
        world.put(&[("a.yaml", &service("a", 1)), ("b.yaml", &service("b", 1))]);
        world.put(&[("a.yaml", "SAME"), ("b.yaml", "UNREADABLE")]);
        assert_eq!(world.names(), ["a", "b"]);
        assert_eq!(world.diagnostics, ["b.yaml: permission denied; its last good form stays in force"]);
        world.put(&[("a.yaml", "SAME")]);
        assert_eq!(world.names(), ["a"]);
    }

    #[test]
    fn a_resource_that_breaks_keeps_its_last_good_form() {
        let mut world = World::default();
        world.put(&[("a.yaml", &route("a", GOOD))]).put(&[("a.yaml", &route("a", BROKEN))]);
        assert_eq!(world.names(), ["a"]);
        assert_eq!(
            world.diagnostics,
            [
                "a.yaml:4: VirtualService default/a: spec.htpp: unknown field; did you mean \"http\"?; its last good \
              form stays in force"
            ]
        );
        world.put(&[("a.yaml", "SAME")]);
        assert_eq!(world.names(), ["a"]);
        assert_eq!(world.diagnostics.len(), 1, "what is wrong stays said");
    }

    #[test]
    fn a_broken_resource_without_a_last_good_form_is_not_applied() {
        let mut world = World::default();
        world.put(&[("a.yaml", &route("a", BROKEN))]);
        assert!(world.names().is_empty());
        assert!(world.diagnostics[0].ends_with("the resource is not applied"));
    }

    #[test]
    fn a_broken_security_resource_is_closed_unless_a_good_form_was_in_force() {
        let broken = policy("p", "{action: DENY, rules: [{form: []}]}");
        let mut world = World::default();
        world.put(&[("a.yaml", &broken)]);
        assert_eq!(world.names(), ["p!"]);
        assert!(world.diagnostics[0].ends_with("until it is mended it refuses all that it selects"));
        // A closed reading is no good form: it follows the text.
        world.put(&[("a.yaml", &policy("p", "{action: ALLOW, rules: [{form: []}]}"))]);
        assert_eq!(world.names(), ["p!"]);
        let Some(Object::AuthorizationPolicy(p)) = world.state.objects().next() else { panic!() };
        assert_eq!(p.spec.action, Action::Allow);

        world.put(&[("a.yaml", &policy("p", "{rules: [{}]}"))]);
        assert_eq!(world.names(), ["p"]);
        world.put(&[("a.yaml", &broken)]);
        assert_eq!(world.names(), ["p"], "the good one stays in force");
        assert!(world.diagnostics[0].ends_with("its last good form stays in force"));
    }

    #[test]
    fn a_nameless_security_resource_is_closed_at_first_sight_only() {
        let nameless = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nspec: {rules: [{}]}\n";
        let mut world = World::default();
        world.put(&[("a.yaml", nameless)]);
        assert_eq!(world.names(), ["unnamed-0!"]);
        world.put(&[("a.yaml", &policy("p", "{}"))]);
        assert_eq!(world.names(), ["p"]);
        world.put(&[("a.yaml", nameless)]);
        assert_eq!(world.names(), ["p"]);
    }

    #[test]
    fn the_same_resource_in_two_files_is_an_error_that_names_both() {
        let mut world = World::default();
        world.put(&[("b.yaml", &service("a", 2)), ("a.yaml", &service("a", 1))]);
        assert_eq!(world.port("a"), 1, "at first the first by path");
        assert_eq!(
            world.diagnostics,
            [
                "b.yaml:1: Service default/a: the same resource stands at a.yaml:1, and that one is in force; keep one \
              of the two; the resource is not applied"
            ]
        );
        world.put(&[("b.yaml", "SAME")]);
        assert_eq!(world.port("a"), 2, "the other takes its place");
        world.put(&[("a.yaml", &service("a", 1)), ("b.yaml", "SAME")]);
        assert_eq!(world.port("a"), 2, "the one in force before stays");
        assert!(
            world.diagnostics[0]
                .starts_with("a.yaml:1: Service default/a: the same resource stands at b.yaml:1")
        );
        world.put(&[("a.yaml", "SAME"), ("b.yaml", "foo: [")]);
        assert_eq!(world.port("a"), 2, "a file that is not YAML still holds what it gave");
    }

    #[test]
    fn the_same_resource_twice_in_a_file_is_an_error() {
        let mut world = World::default();
        world.put(&[("a.yaml", &(service("a", 1) + &service("a", 2)))]);
        assert_eq!(world.port("a"), 1);
        assert!(
            world.diagnostics[0]
                .starts_with("a.yaml:6: Service default/a: the same resource stands at a.yaml:1")
        );
    }

    #[test]
    fn a_resource_that_moves_and_breaks_keeps_its_last_good_form() {
        let mut world = World::default();
        world.put(&[("a.yaml", &route("a", GOOD))]);
        world.put(&[("a.yaml", ""), ("b.yaml", &route("a", BROKEN))]);
        assert_eq!(world.names(), ["a"]);
    }

    #[test]
    fn what_another_crate_refuses_is_broken_and_what_it_remarks_is_passed_on() {
        let refuse = |text: &'static str| move |_: &Object| vec![Diagnostic::new(Effect::NotApplied, text)];
        let mut world = World::default();
        world.put_with(&[("a.yaml", &policy("p", "{}"))], &refuse("not supported yet"));
        assert_eq!(world.names(), ["p!"]);
        world.put(&[("a.yaml", &policy("p", "{}"))]);
        assert_eq!(world.names(), ["p"]);
        world.put_with(&[("a.yaml", &policy("p", "{rules: [{}]}"))], &refuse("not supported yet"));
        assert_eq!(world.names(), ["p"]);
        assert!(world.diagnostics[0].ends_with("not supported yet; its last good form stays in force"));
        world.put_with(&[("a.yaml", &policy("p", "{}"))], &|_| {
            vec![Diagnostic::new(Effect::NoEffect, "audit")]
        });
        assert_eq!(world.names(), ["p"]);
        assert_eq!(world.diagnostics, ["a.yaml:1: AuthorizationPolicy default/p: audit; it has no effect"]);
    }
}
