//! Lists and watches against an API server that says what a test tells it to say.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use kube::core::ApiResource;
use mesh_core::diagnostic::Effect;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Answered = Result<Response<UnsyncBoxBody<Bytes, Error>>, Error>;

/// What the API server answers.
enum Answer {
    Json(u16, Value),
    /// The lines of a watch, which then ends, stays, or breaks.
    Watch(Vec<String>, End),
    /// Nobody is there.
    Unreachable,
}

#[derive(Clone, Copy)]
enum End {
    Ends,
    Stays,
    Breaks,
}

fn whole(code: u16, text: String) -> Answered {
    let body = Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed_unsync();
    Ok(Response::builder().status(code).body(body)?)
}

fn respond(answer: Answer) -> Answered {
    match answer {
        Answer::Unreachable => Err("connection refused".into()),
        Answer::Json(code, value) => whole(code, value.to_string()),
        Answer::Watch(lines, end) => {
            let lines =
                stream::iter(lines).map(|line| Ok(http_body::Frame::data(Bytes::from(format!("{line}\n")))));
            let body = match end {
                End::Ends => StreamBody::new(lines).boxed_unsync(),
                End::Stays => StreamBody::new(lines.chain(stream::pending())).boxed_unsync(),
                End::Breaks => {
                    let broken = stream::once(async { Err(Error::from("connection reset")) });
                    StreamBody::new(lines.chain(broken)).boxed_unsync()
                }
            };
            Ok(Response::new(body))
        }
    }
}

/// A client whose requests are answered by `answers`, in turn; after the last one nobody answers any more. Gives the
/// paths and queries that were asked for too.
fn client(answers: Vec<Answer>) -> (Client, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let script = Arc::new(Mutex::new(VecDeque::from(answers)));
    let log = Arc::clone(&asked);
    let service = tower::service_fn(move |request: Request<Body>| {
        log.lock().unwrap().push(request.uri().to_string());
        let next = script.lock().unwrap().pop_front();
        async move {
            match next {
                Some(answer) => respond(answer),
                None => std::future::pending().await,
            }
        }
    });
    (Client::new(service, "default"), asked)
}

fn service(name: &str, version: u64, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version.to_string()},
        "spec": {"ports": [{"port": port}]},
    })
}

fn page(version: u64, token: &str, items: &[Value]) -> Answer {
    let metadata = json!({"resourceVersion": version.to_string(), "continue": token});
    Answer::Json(
        200,
        json!({"apiVersion": "v1", "kind": "ServiceList", "metadata": metadata, "items": items}),
    )
}

/// A line of a watch, its type first as Go writes it.
fn line(kind: &str, object: &Value) -> String {
    format!(r#"{{"type":"{kind}","object":{object}}}"#)
}

/// The next batch, which comes or never does.
async fn next(out: &mut mpsc::Receiver<Vec<Event>>) -> Vec<Event> {
    tokio::time::timeout(Duration::from_secs(600), out.recv()).await.unwrap().unwrap()
}

fn status(code: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "message": "because", "reason": "x"})
}

/// Follows services through `answers` until everything stands still; gives what was told and what was asked.
async fn followed(answers: Vec<Answer>) -> (Vec<String>, Vec<String>) {
    struct Told(mpsc::UnboundedSender<String>);

    impl Sink<Thin<Service>> for Told {
        fn take(&mut self, change: Change<Thin<Service>>) {
            let told = match change {
                Change::Begin => "begin".to_owned(),
                Change::Put(thin) => format!("+{}", thin.meta.name),
                Change::Gone(thin) => format!("-{}", thin.meta.name),
                Change::End => "end".to_owned(),
            };
            self.0.send(told).unwrap();
        }

        async fn flush(&mut self) -> bool {
            true
        }

        fn connected(&mut self, state: Result<(), &Trouble>) {
            let told = match state {
                Ok(()) => "stands".to_owned(),
                Err(trouble) => format!("{trouble:?}").chars().take_while(|c| c.is_alphanumeric()).collect(),
            };
            self.0.send(told).unwrap();
        }
    }

    let (client, asked) = client(answers);
    let api = Api::<Seen<Thin<Service>>>::all_with(client, &resource_of::<Service>());
    let (told, mut words) = mpsc::unbounded_channel();
    let mut sink = Told(told);
    let _ = tokio::time::timeout(Duration::from_secs(50), follow(&api, None, &mut sink)).await;
    drop(sink);
    let mut said = Vec::new();
    while let Some(word) = words.recv().await {
        said.push(word);
    }
    let asked = asked.lock().unwrap().clone();
    (said, asked)
}

#[tokio::test(start_paused = true)]
async fn a_list_is_read_by_pages_and_the_watch_goes_on_from_its_end() {
    let (said, asked) = followed(vec![
        page(0, "more", &[service("a", 1, 80)]),
        page(7, "", &[service("b", 2, 80)]),
        Answer::Watch(
            vec![line("ADDED", &service("c", 8, 80)), line("DELETED", &service("a", 9, 80))],
            End::Ends,
        ),
        Answer::Watch(
            vec![line(
                "BOOKMARK",
                &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"resourceVersion": "30"}}),
            )],
            End::Breaks,
        ),
        Answer::Watch(vec![], End::Stays),
    ])
    .await;
    assert_eq!(
        said,
        ["begin", "+a", "+b", "end", "stands", "+c", "-a", "stands", "Other", "stands"],
        "a watch that ends, or breaks, goes on without a list"
    );
    assert!(asked[0].starts_with("/api/v1/services?") && asked[0].contains("limit=500"), "{}", asked[0]);
    assert!(asked[1].contains("continue=more"));
    for (n, version) in [(2, "7"), (3, "9"), (4, "30")] {
        assert!(
            asked[n].contains("watch=true") && asked[n].ends_with(&format!("resourceVersion={version}")),
            "{}",
            asked[n]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_server_has_forgotten_is_listed_again() {
    let (said, _) = followed(vec![
        page(7, "", &[service("a", 1, 80)]),
        Answer::Watch(vec![line("ERROR", &status(410))], End::Ends),
        page(9, "", &[service("b", 8, 80)]),
        Answer::Json(410, status(410)),
        page(9, "", &[service("b", 8, 80)]),
        Answer::Watch(vec![], End::Stays),
    ])
    .await;
    assert_eq!(
        said,
        [
            "begin", "+a", "end", "stands", "Expired", "begin", "+b", "end", "Expired", "begin", "+b", "end",
            "stands"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_gone_is_tried_until_it_is_back() {
    let (said, asked) = followed(vec![
        Answer::Unreachable,
        page(7, "", &[service("a", 1, 80)]),
        Answer::Watch(vec![], End::Breaks),
        Answer::Unreachable,
        Answer::Json(503, status(503)),
        Answer::Watch(vec![], End::Stays),
    ])
    .await;
    assert_eq!(said, ["Other", "begin", "+a", "end", "stands", "Other", "Other", "Other", "stands"]);
    assert!(asked[5].ends_with("resourceVersion=7"), "it goes on from where it was");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_begins_anew() {
    let (said, _) = followed(vec![
        page(0, "more", &[service("a", 1, 80)]),
        Answer::Json(410, status(410)),
        page(7, "", &[service("b", 1, 80)]),
        Answer::Watch(vec![], End::Stays),
    ])
    .await;
    assert_eq!(said, ["begin", "+a", "Expired", "begin", "+b", "end", "stands"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_at_once_every_time_is_not_asked_for_without_a_pause() {
    let mut answers = vec![page(7, "", &[])];
    answers.extend((0..1000).map(|_| Answer::Watch(vec![], End::Ends)));
    let (said, _) = followed(answers).await;
    let tries = said.iter().filter(|word| *word == "EndedAtOnce").count();
    assert!((5..30).contains(&tries), "{tries} times in 50 s");
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_is_asked_for_anew() {
    let answers =
        vec![page(7, "", &[]), Answer::Watch(vec![], End::Stays), Answer::Watch(vec![], End::Stays)];
    let (client, asked) = client(answers);
    let (events, mut out) = mpsc::channel(CHANNEL);
    let (shared, _) = shared(client, events);
    let mut tasks = JoinSet::new();
    shared.thin::<Service>(&mut tasks);
    let _ = tokio::time::timeout(Duration::from_secs(200), out.recv()).await;
    assert_eq!(asked.lock().unwrap().len(), 3);
}

/// What watches have in common, and what tells that everything is there.
fn shared(client: Client, events: mpsc::Sender<Vec<Event>>) -> (Shared, watch::Receiver<bool>) {
    let synced = Arc::new(watch::Sender::new(false));
    let all_there = synced.subscribe();
    let shared = Shared {
        client,
        root_namespace: "istio-system".into(),
        events,
        missing: Arc::default(),
        synced,
        reports: Reports::default(),
        metrics: Metrics::default(),
    };
    (shared, all_there)
}

fn names(batch: &[Event]) -> Vec<String> {
    let told = |event: &Event| {
        let sign = if matches!(event, Event::Put(_)) { "+" } else { "-" };
        format!("{sign}{}", event.reference().name())
    };
    batch.iter().map(told).collect()
}

#[tokio::test(start_paused = true)]
async fn a_batch_for_a_page_and_synced_after_the_last() {
    let (client, _) = client(vec![
        page(0, "more", &[service("a", 1, 80), service("b", 1, 80)]),
        page(7, "", &[service("c", 2, 80)]),
        Answer::Watch(
            vec![
                line("MODIFIED", &service("a", 8, 80)),
                line("MODIFIED", &service("b", 9, 81)),
                line("DELETED", &service("c", 10, 80)),
            ],
            End::Ends,
        ),
        Answer::Watch(vec![line("ERROR", &status(410))], End::Ends),
        page(20, "", &[service("a", 11, 80), service("d", 12, 80)]),
        Answer::Watch(vec![], End::Stays),
    ]);
    let (events, mut out) = mpsc::channel(CHANNEL);
    let (shared, mut synced) = shared(client, events);
    let mut tasks = JoinSet::new();
    shared.thin::<Service>(&mut tasks);
    assert_eq!(names(&next(&mut out).await), ["+a", "+b"]);
    assert_eq!(names(&next(&mut out).await), ["+c"]);
    synced.wait_for(|synced| *synced).await.unwrap();
    let mut changes = Vec::new();
    while changes.len() < 4 {
        changes.extend(names(&next(&mut out).await));
    }
    assert_eq!(changes, ["+b", "-c", "+d", "-b"], "a new version of the same is no event");
    assert!(shared.metrics.is_connected("Service"));
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_there_holds_nobody_up_and_is_watched_when_it_comes() {
    let vs = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "v", "namespace": "shop", "resourceVersion": "5"},
        "spec": {"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}}]}]},
    });
    let (client, _) = client(vec![
        Answer::Json(404, status(404)),
        Answer::Json(404, status(404)),
        page(7, "", &[vs]),
        Answer::Watch(vec![], End::Stays),
    ]);
    let (events, mut out) = mpsc::channel(CHANNEL);
    let (shared, mut synced) = shared(client, events);
    let mut tasks = JoinSet::new();
    shared.whole::<VirtualService>(&mut tasks);
    synced.wait_for(|synced| *synced).await.unwrap();
    assert!(!shared.metrics.is_connected("VirtualService"));
    assert_eq!(names(&next(&mut out).await), ["+v"]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_no_absence() {
    let (client, _) =
        client(vec![Answer::Json(403, status(403)), page(7, "", &[]), Answer::Watch(vec![], End::Stays)]);
    let (events, _out) = mpsc::channel(CHANNEL);
    let (shared, mut synced) = shared(client, events);
    let mut tasks = JoinSet::new();
    let begun = tokio::time::Instant::now();
    shared.thin::<Service>(&mut tasks);
    synced.wait_for(|synced| *synced).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(100), "not before the list was whole");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_reported_and_what_is_gone_is_not() {
    let policy = |name: &str, version: u64, rules: Value| {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version.to_string()},
            "spec": {"rules": rules},
        })
    };
    let (client, _) = client(vec![
        page(7, "", &[policy("bad", 1, json!([{"form": []}])), policy("good", 2, json!([{}]))]),
        Answer::Watch(vec![line("MODIFIED", &policy("good", 8, json!([{"form": []}])))], End::Ends),
        Answer::Watch(vec![line("DELETED", &policy("bad", 9, json!([])))], End::Stays),
    ]);
    let (events, mut out) = mpsc::channel(CHANNEL);
    let (shared, _) = shared(client, events);
    let mut tasks = JoinSet::new();
    shared.whole::<AuthorizationPolicy>(&mut tasks);
    let batch = next(&mut out).await;
    let Event::Put(closed) = &batch[0] else { panic!("{batch:?}") };
    assert!(closed.invalid().is_some());
    assert_eq!(names(&batch), ["+bad", "+good"]);
    assert_eq!(names(&next(&mut out).await), ["-bad"], "the last good form of the other stays");
    let wrong = shared.reports.wrong();
    assert_eq!((wrong.len(), wrong[0].effect), (1, Effect::LastGoodKept));
}

#[tokio::test(start_paused = true)]
async fn who_watches_waits_for_who_takes_and_ends_with_them() {
    let (client, _) =
        client(vec![page(0, "more", &[service("a", 1, 80)]), page(7, "", &[service("b", 1, 80)])]);
    let (events, mut out) = mpsc::channel(1);
    let (shared, synced) = shared(client, events);
    let mut tasks = JoinSet::new();
    shared.thin::<Service>(&mut tasks);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!*synced.borrow(), "the last batch found no room");
    next(&mut out).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(*synced.borrow());
    drop(out);
    drop(shared);
}

#[test]
fn a_resource_knows_where_it_is() {
    let ApiResource { api_version, plural, .. } = resource_of::<Namespace>();
    assert_eq!((api_version.as_str(), plural.as_str()), ("v1", "namespaces"));
    assert_eq!(resource_of::<Telemetry>().api_version, "telemetry.istio.io/v1");
}
