//! What is known of one kind, and what follows from what the API server says of it: decided without I/O.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::io::Write;

use mesh_core::diagnostic::{Diagnostic, Effect, ResourceRef};
use mesh_core::resource::{Kind, Object, Resource};
use mesh_core::yaml::{ReadObject, Validator, read_object};
use serde_json::json;

use super::seen::{Slim, Thin, Whole};
use crate::event::Event;

/// An object that was read, or what is wrong with it.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) reference: ResourceRef,
    /// Tells it from an earlier one of the same name.
    pub(crate) uid: String,
    pub(crate) what: What,
    /// What is wrong, and what is to be said of it besides.
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// What an object comes to.
#[derive(Debug)]
pub(crate) enum What {
    /// It is to be in force.
    Good(Object),
    /// It is as good as not there.
    Nothing,
    /// It cannot be used as it is; the closed reading, where it has one.
    Bad(Option<Object>),
}

/// An object of Kubernetes' own.
pub(crate) fn read_thin<K: Slim>(thin: Thin<K>) -> Reading
where
    Object: From<Resource<K>>,
{
    let Thin { mut meta, spec } = thin;
    let reference = ResourceRef::new(K::KIND, &meta.namespace, &meta.name);
    let uid = meta.uid.clone();
    let (what, diagnostics) = match spec {
        Ok(Some(spec)) => {
            // They change whenever anything does, also what is not kept.
            meta.resource_version = String::new();
            meta.generation = 0;
            (What::Good(Resource { meta, spec, origin: None, invalid: None }.into()), Vec::new())
        }
        Ok(None) => (What::Nothing, Vec::new()),
        Err(error) => {
            let diagnostic = Diagnostic::new(Effect::NotApplied, error).resource(reference.clone());
            (What::Bad(None), vec![diagnostic])
        }
    };
    Reading { reference, uid, what, diagnostics }
}

/// A resource of the mesh, read strictly.
pub(crate) fn read_whole<K: Kind>(whole: Whole, validate: &Validator<'_>) -> Reading {
    let Whole { meta, mut object, .. } = whole;
    if let Some(fields) = object.as_object_mut() {
        // Items of a list do not always say what they are; the list they came from does.
        let version = K::VERSIONS.first().copied().unwrap_or_default();
        fields.insert("apiVersion".to_owned(), json!(format!("{}/{version}", K::GROUP)));
        fields.insert("kind".to_owned(), json!(K::KIND));
    }
    let reference = ResourceRef::new(K::KIND, &meta.namespace, &meta.name);
    let (what, diagnostics) = match read_object(&object, validate) {
        Ok(ReadObject { object: Some(object), diagnostics, .. }) => (What::Good(object), diagnostics),
        Ok(ReadObject { closed, diagnostics, .. }) => (What::Bad(closed), diagnostics),
        Err(diagnostic) => (What::Bad(None), vec![diagnostic]),
    };
    Reading { reference, uid: meta.uid, what, diagnostics }
}

/// What is known of one kind: of each object enough to tell whether it changes. The object itself is kept once, by
/// who takes the events, and in its own form.
#[derive(Debug, Default)]
pub(crate) struct Known {
    objects: HashMap<ResourceRef, Held>,
    /// Hashes with keys of this process, so that nobody can make two objects that are taken for one.
    hasher: RandomState,
    /// Which list is the last: what it does not hold is gone.
    list: u64,
    /// How many objects are in force.
    given: usize,
}

#[derive(Debug)]
struct Held {
    /// A hash of its uid.
    uid: u64,
    /// What is in force.
    given: Option<Given>,
    /// The last list that held it.
    list: u64,
}

/// An object that is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Given {
    /// A hash of it.
    content: u64,
    /// Whether it is a closed reading.
    closed: bool,
}

impl Given {
    fn of(object: &Object, hasher: &RandomState) -> Self {
        let mut content = Hashing(hasher.build_hasher());
        // Whatever is an object has a form in JSON; one that had none would be taken for a change each time.
        let written = serde_json::to_writer(&mut content, object);
        let reason = object.invalid().map(|invalid| &invalid.reason);
        (reason, written.is_err().then(|| fastrand::u64(..))).hash(&mut content.0);
        Self { content: content.0.finish(), closed: reason.is_some() }
    }
}

/// Hashes what is written to it.
struct Hashing<H>(H);

impl<H: Hasher> Write for Hashing<H> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Known {
    /// A list begins. Until it ends, what is known stays.
    pub(crate) fn begin(&mut self) {
        self.list += 1;
    }

    /// The list is whole: what it did not hold is gone.
    pub(crate) fn end(&mut self) -> Vec<Gone> {
        let mut gone = Vec::new();
        let list = self.list;
        self.objects.retain(|reference, held| {
            let stays = held.list == list;
            if !stays {
                gone.push(Gone { reference: reference.clone(), given: held.given.is_some() });
            }
            stays
        });
        self.given -= gone.iter().filter(|gone| gone.given).count();
        gone
    }

    /// An object is there, in this form. Gives the event that follows, and the diagnostics with what follows from
    /// them.
    pub(crate) fn put(&mut self, reading: Reading) -> (Option<Event>, Vec<Diagnostic>) {
        let Reading { reference, uid, what, diagnostics } = reading;
        let uid = self.hasher.hash_one(uid);
        let held = match self.objects.entry(reference.clone()) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(free) => free.insert(Held { uid, given: None, list: 0 }),
        };
        held.list = self.list;
        // An object that was deleted and made again has no last good form: that was another's.
        let last_good = held.given.is_some_and(|given| held.uid == uid && !given.closed);
        held.uid = uid;
        let (object, effect) = match what {
            What::Good(object) => (Some(object), Effect::NoEffect),
            What::Nothing => (None, Effect::NoEffect),
            What::Bad(_) if last_good => {
                return (None, with_effect(diagnostics, Effect::LastGoodKept));
            }
            What::Bad(Some(closed)) => (Some(closed), Effect::ClosedReading),
            What::Bad(None) => (None, Effect::NotApplied),
        };
        let given = object.as_ref().map(|object| Given::of(object, &self.hasher));
        let event = match object {
            _ if held.given == given => None,
            Some(object) => Some(Event::Put(object)),
            None => Some(Event::Gone(reference)),
        };
        match (held.given.is_some(), given.is_some()) {
            (false, true) => self.given += 1,
            (true, false) => self.given -= 1,
            _ => {}
        }
        held.given = given;
        (event, with_effect(diagnostics, effect))
    }

    /// An object was deleted. Gives whether anything of it was in force.
    pub(crate) fn gone(&mut self, reference: &ResourceRef) -> bool {
        let given = self.objects.remove(reference).is_some_and(|held| held.given.is_some());
        self.given -= usize::from(given);
        given
    }

    /// How many objects are in force.
    pub(crate) fn in_force(&self) -> usize {
        self.given
    }
}

/// Diagnostics with what follows from them.
fn with_effect(mut diagnostics: Vec<Diagnostic>, effect: Effect) -> Vec<Diagnostic> {
    diagnostics.iter_mut().filter(|d| d.is_error()).for_each(|diagnostic| diagnostic.effect = effect);
    diagnostics
}

/// An object that a list does not hold any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) reference: ResourceRef,
    /// Whether anything of it was in force.
    pub(crate) given: bool,
}

#[cfg(test)]
mod tests {
    use super::super::seen::Form;
    use super::*;
    use mesh_core::resource::authorization_policy::Action;
    use mesh_core::resource::{AuthorizationPolicy, DestinationRule, Pod, Service, VirtualService};
    use serde_json::Value;

    /// What is known, and everything that followed from the last call.
    #[derive(Default)]
    struct World {
        known: Known,
        events: Vec<String>,
        said: Vec<String>,
    }

    fn told(event: &Event) -> String {
        match event {
            Event::Put(object) if object.invalid().is_some() => format!("!{}", object.meta().name),
            Event::Put(object) => format!("+{}", object.meta().name),
            Event::Gone(reference) => format!("-{}", reference.name()),
        }
    }

    impl World {
        fn put(&mut self, reading: Reading) -> &mut Self {
            let (event, said) = self.known.put(reading);
            self.events.extend(event.iter().map(told));
            self.said = said.iter().map(|d| d.effect.told().to_owned()).collect();
            self
        }

        fn end(&mut self) -> &mut Self {
            let mut gone: Vec<_> = self
                .known
                .end()
                .iter()
                .filter(|g| g.given)
                .map(|g| format!("-{}", g.reference.name()))
                .collect();
            gone.sort();
            self.events.extend(gone);
            self
        }

        fn events(&mut self) -> Vec<String> {
            std::mem::take(&mut self.events)
        }
    }

    fn of<K: Kind>(name: &str, uid: &str, version: u64, spec: &Value) -> Reading {
        let json = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": uid, "resourceVersion": version.to_string()},
            "spec": spec,
        });
        read_whole::<K>(Whole::take_apart(&json.to_string()), &|_| Vec::new())
    }

    fn policy(uid: &str, spec: &Value) -> Reading {
        of::<AuthorizationPolicy>("p", uid, 1, spec)
    }

    fn service(name: &str, version: u64, port: u16) -> Reading {
        let json = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version.to_string()},
            "spec": {"ports": [{"port": port}]},
        });
        read_thin(Thin::<Service>::take_apart(&json.to_string()))
    }

    fn pod(status: &Value) -> Reading {
        let json = json!({
            "metadata": {"name": "w", "namespace": "shop", "uid": "u"},
            "spec": {"containers": [{"name": "a"}]}, "status": status,
        });
        read_thin(Thin::<Pod>::take_apart(&json.to_string()))
    }

    #[test]
    fn a_list_gives_what_is_new_or_has_changed_and_takes_what_is_gone() {
        let mut world = World::default();
        world.known.begin();
        world.put(service("a", 1, 80)).put(service("b", 1, 80)).put(service("c", 1, 80)).end();
        assert_eq!(world.events(), ["+a", "+b", "+c"]);
        // A new version of the same says nothing.
        world.known.begin();
        world.put(service("a", 2, 80)).put(service("b", 2, 81)).put(service("d", 2, 80)).end();
        assert_eq!(world.events(), ["+b", "+d", "-c"]);
        assert_eq!(world.known.in_force(), 3);
    }

    #[test]
    fn a_list_that_broke_off_takes_nothing() {
        let mut world = World::default();
        world.known.begin();
        world.put(service("a", 1, 80)).put(service("b", 1, 80)).end();
        world.events();
        world.known.begin();
        world.put(service("b", 1, 80));
        world.known.begin();
        world.put(service("a", 1, 80)).end();
        assert_eq!(world.events(), ["-b"], "what the last whole list held counts");
    }

    #[test]
    fn what_comes_between_two_lists_is_held_until_the_next_one_is_whole() {
        let mut world = World::default();
        world.known.begin();
        world.end();
        world.put(service("a", 1, 80));
        assert_eq!(world.events(), ["+a"]);
        assert!(world.known.gone(&ResourceRef::new("Service", "shop", "a")));
        assert!(!world.known.gone(&ResourceRef::new("Service", "shop", "a")));
        world.known.begin();
        world.end();
        assert!(world.events().is_empty());
    }

    #[test]
    fn a_pod_comes_with_its_address_and_goes_when_it_ends() {
        let mut world = World::default();
        let running = json!({"phase": "Running", "podIP": "10.0.0.1"});
        world.put(pod(&json!({"phase": "Pending"})));
        assert!(world.events().is_empty());
        world.put(pod(&running)).put(pod(&running));
        assert_eq!(world.events(), ["+w"]);
        world.put(pod(&json!({"phase": "Succeeded", "podIP": "10.0.0.1"})));
        assert_eq!(world.events(), ["-w"]);
        assert_eq!(world.known.in_force(), 0);
    }

    #[test]
    fn an_object_of_kubernetes_that_cannot_be_read_stays_as_it_was() {
        let mut world = World::default();
        let bad = || {
            let json =
                json!({"metadata": {"name": "a", "namespace": "shop", "uid": "a"}, "spec": {"ports": 1}});
            read_thin(Thin::<Service>::take_apart(&json.to_string()))
        };
        world.put(bad());
        assert!(world.events().is_empty());
        assert_eq!(world.said, ["the resource is not applied"]);
        world.put(service("a", 1, 80)).put(bad());
        assert_eq!(world.events(), ["+a"]);
        assert_eq!(world.said, ["its last good form stays in force"]);
    }

    #[test]
    fn a_security_resource_that_breaks_keeps_its_last_good_form_and_a_new_one_is_closed() {
        let bad = json!({"action": "DENY", "rules": [{"form": []}]});
        let good = json!({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]});
        let mut world = World::default();
        world.put(policy("1", &bad));
        assert_eq!(
            (world.events(), world.said.as_slice()),
            (
                vec!["!p".to_owned()],
                ["until it is mended it refuses all that it selects".to_owned()].as_slice()
            )
        );
        world.put(policy("1", &bad));
        assert!(world.events().is_empty(), "the same closed reading is no news");
        world.put(policy("1", &good)).put(policy("1", &bad));
        assert_eq!(world.events(), ["+p"]);
        assert_eq!(world.said, ["its last good form stays in force"]);
        // A controller that was not there takes the closed reading of the same.
        let mut restarted = World::default();
        restarted.put(policy("1", &bad));
        assert_eq!(restarted.events(), ["!p"]);
        // Deleted and made again, it has no past.
        world.put(policy("2", &bad));
        assert_eq!(world.events(), ["!p"]);
        assert!(world.known.gone(&ResourceRef::new("AuthorizationPolicy", "shop", "p")));
        world.put(policy("2", &bad));
        assert_eq!(world.events(), ["!p"]);
    }

    #[test]
    fn a_closed_reading_follows_the_text() {
        let mut world = World::default();
        world.put(policy("1", &json!({"action": "DENY", "rules": [{"form": []}]})));
        let (event, _) = world.known.put(policy("1", &json!({"action": "ALLOW", "rules": [{"form": []}]})));
        let Some(Event::Put(Object::AuthorizationPolicy(now))) = event else { panic!("{event:?}") };
        assert_eq!((now.spec.action, now.spec.rules.len()), (Action::Allow, 0));
    }

    #[test]
    fn other_resources_that_break_stay_as_they_were_or_are_left_out() {
        let good = json!({"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}}]}]});
        let bad = json!({"hosts": ["a"], "htpp": []});
        let of = |spec: &Value| of::<VirtualService>("v", "1", 1, spec);
        let mut world = World::default();
        world.put(of(&bad));
        assert!(world.events().is_empty());
        assert_eq!(world.said, ["the resource is not applied"]);
        world.put(of(&good)).put(of(&bad));
        assert_eq!(world.events(), ["+v"]);
        assert_eq!(world.said, ["its last good form stays in force"]);
        world.put(of(&good));
        assert!(world.events().is_empty() && world.said.is_empty());
    }

    #[test]
    fn a_closed_reading_that_ends_is_taken_back() {
        let of = |spec: &Value| of::<DestinationRule>("d", "1", 1, spec);
        let mut world = World::default();
        world.put(of(&json!({"host": "a", "trafficPolicy": {"tls": {"mode": "NONSENSE"}}})));
        assert_eq!(world.events(), ["!d"]);
        // Still broken, but it speaks of TLS no more.
        world.put(of(&json!({"host": "a", "trafficPolicy": {"nonsense": {}}})));
        assert_eq!(world.events(), ["-d"]);
        assert_eq!(world.said, ["the resource is not applied"]);
    }

    #[test]
    fn what_another_crate_refuses_is_broken_and_what_it_remarks_is_passed_on() {
        let json =
            json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"rules": [{}]}}).to_string();
        let read = |effect: Effect| {
            let validate = move |_: &Object| vec![Diagnostic::new(effect, "a word")];
            read_whole::<AuthorizationPolicy>(Whole::take_apart(&json), &validate)
        };
        let mut world = World::default();
        world.put(read(Effect::NotApplied));
        assert_eq!(world.events(), ["!p"]);
        world.put(read(Effect::NoEffect));
        assert_eq!((world.events(), world.said.len()), (vec!["+p".to_owned()], 1));
    }
}
