//! `meshctl inject`: manifests in, the same manifests with sidecars out.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use mesh_controller::inject::{Injection, Labels, Settings, inject_object};
use mesh_core::yaml::{Node, documents};
use serde_json::{Value, json};

use crate::{terminal, yaml};

/// The most that one file may hold, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 20;

const EXAMPLES: &str = "\
Examples:
  meshctl inject -f app.yaml | kubectl apply -f -
  kubectl get deployment web -o yaml | meshctl inject -f -
  meshctl inject -f a.yaml -f b.yaml --image registry.example/mesh-proxy:1.2 > injected.yaml

Deployments, StatefulSets, DaemonSets, ReplicaSets, ReplicationControllers, Jobs, CronJobs and Pods
get the sidecar, unless they (sidecar.istio.io/inject: \"false\") or their namespace, where it is among
the documents, decline. Everything else is printed as it is.

Exit codes: 0 done; 1 something could not be read or injected, and nothing is printed; 2 wrong usage";

/// `meshctl inject`
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InjectArgs {
    /// Manifests, YAML or JSON; - is standard input; may be repeated
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<String>,

    /// Form of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "yaml")]
    output: Format,

    /// The namespace of what does not say its own
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    namespace: String,

    /// The image that holds mesh-proxy
    #[arg(long, value_name = "IMAGE", default_value_t = Settings::default().image)]
    image: String,

    /// When the image is pulled [default: as Kubernetes chooses]
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    image_pull_policy: Option<String>,

    /// Where sidecars find the controller
    #[arg(long, value_name = "URL", default_value_t = Settings::default().controller)]
    controller: String,

    /// The mesh's trust domain
    #[arg(long, value_name = "DOMAIN", default_value_t = Settings::default().trust_domain)]
    trust_domain: String,

    /// The namespace whose policies apply to the whole mesh
    #[arg(long, value_name = "NAME", default_value_t = Settings::default().root_namespace)]
    root_namespace: String,

    /// Whom the sidecar's token is for
    #[arg(long, value_name = "NAME", default_value_t = Settings::default().token_audience)]
    token_audience: String,

    /// The ConfigMap with the mesh's roots, in every namespace
    #[arg(long, value_name = "NAME", default_value_t = Settings::default().root_config_map)]
    root_config_map: String,

    /// The revision of the controller: what istio.io/rev has to say where it says anything
    #[arg(long, value_name = "NAME", default_value_t = Settings::default().revision)]
    revision: String,

    /// What sidecars log
    #[arg(long, value_name = "LEVEL", default_value_t = Settings::default().log)]
    log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Yaml,
    Json,
}

impl InjectArgs {
    fn settings(&self) -> Settings {
        Settings {
            image: self.image.clone(),
            image_pull_policy: self.image_pull_policy.clone(),
            controller: self.controller.clone(),
            trust_domain: self.trust_domain.clone(),
            root_namespace: self.root_namespace.clone(),
            token_audience: self.token_audience.clone(),
            root_config_map: self.root_config_map.clone(),
            revision: self.revision.clone(),
            log: self.log.clone(),
            // Who runs the command asks for it.
            by_default: true,
            ..Settings::default()
        }
    }
}

/// Prints everything, or (when anything is wrong) nothing: half of it, piped into `kubectl apply`, would be an
/// application of which a part is missing.
pub(crate) fn run(args: &InjectArgs) -> anyhow::Result<ExitCode> {
    if args.files.iter().filter(|file| *file == "-").count() > 1 {
        bail!("standard input can be read once; give - a single time");
    }
    let mut files = Vec::new();
    for file in &args.files {
        files.push((shown(file), read(file)?));
    }
    let mut run = Run {
        settings: args.settings(),
        namespace: &args.namespace,
        namespaces: HashMap::new(),
        failed: false,
    };
    for (_, text) in &files {
        run.learn_namespaces(text);
    }
    let mut out = Output { format: args.output, text: String::new() };
    for (file, text) in &files {
        run.file(file, text, &mut out);
    }
    if run.failed {
        return Ok(ExitCode::FAILURE);
    }
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(out.text.as_bytes()).and_then(|()| stdout.flush()) {
        // Who reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS).context("cannot write the result"),
    }
}

fn shown(file: &str) -> String {
    if file == "-" { "(standard input)".into() } else { file.into() }
}

fn read(file: &str) -> anyhow::Result<String> {
    let what = || format!("cannot read {}", shown(file));
    let mut text = String::new();
    if file == "-" {
        std::io::stdin().lock().take(MAX_FILE_BYTES + 1).read_to_string(&mut text).with_context(what)?;
    } else {
        let file = std::fs::File::open(file).with_context(what)?;
        file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).with_context(what)?;
    }
    if text.len() as u64 > MAX_FILE_BYTES {
        bail!("{} holds more than {MAX_FILE_BYTES} bytes; split it", shown(file));
    }
    Ok(text)
}

struct Run<'a> {
    settings: Settings,
    namespace: &'a str,
    /// The labels of the namespaces that are among the documents.
    namespaces: HashMap<String, Labels>,
    failed: bool,
}

impl Run<'_> {
    fn learn_namespaces(&mut self, text: &str) {
        for document in documents(text) {
            let Ok(root) = document.root else { continue };
            let items = root.get("items").and_then(Node::as_list).unwrap_or_default();
            for object in std::iter::once(&root).chain(items) {
                let is = |key: &str, value: &str| object.get(key).and_then(Node::as_text) == Some(value);
                if !is("kind", "Namespace") || !is("apiVersion", "v1") {
                    continue;
                }
                let metadata = yaml::to_json(object.get("metadata").unwrap_or(object));
                let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
                let labels = metadata.get("labels").and_then(Value::as_object);
                let text = |(k, v): (&String, &Value)| Some((k.clone(), v.as_str()?.to_owned()));
                self.namespaces
                    .insert(name.to_owned(), labels.into_iter().flatten().filter_map(text).collect());
            }
        }
    }

    fn file(&mut self, file: &str, text: &str, out: &mut Output) {
        let mut done = 0;
        out.next_file(text);
        for document in documents(text) {
            let at = format!("{file}:{}", document.line);
            let root = match &document.root {
                Ok(root) => root,
                Err(error) => {
                    self.fail(&format!("{file}:{error}; mend the document, or take it out"));
                    continue;
                }
            };
            let object = yaml::to_json(root);
            let changed = self.object(&at, &object);
            let between = text.get(done..document.span.start).unwrap_or_default();
            let own = text.get(document.span.clone()).unwrap_or_default();
            done = document.span.end;
            out.document(between, own, root, &object, changed);
        }
        out.rest(text.get(done..).unwrap_or_default());
    }

    /// The object with sidecars, where it gets any. A `List` gets them in each of its items.
    fn object(&mut self, at: &str, object: &Value) -> Option<Value> {
        if !object.is_object() {
            self.fail(&format!("{at}: is no object of Kubernetes; it has no apiVersion and kind"));
            return None;
        }
        let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
        if let Some(items) = object.get("items").and_then(Value::as_array).filter(|_| kind.ends_with("List"))
        {
            let new: Vec<_> = items
                .iter()
                .enumerate()
                .map(|(i, item)| self.single(&format!("{at}: items[{i}]"), item))
                .collect();
            if new.iter().all(Option::is_none) {
                return None;
            }
            let mut object = object.clone();
            let merged = new.into_iter().zip(items).map(|(new, old)| new.unwrap_or_else(|| old.clone()));
            let merged: Value = merged.collect();
            if let Some(slot) = object.get_mut("items") {
                *slot = merged;
            }
            return Some(object);
        }
        self.single(at, object)
    }

    fn single(&mut self, at: &str, object: &Value) -> Option<Value> {
        let labels = |name: &str| self.namespaces.get(name).cloned().unwrap_or_default();
        match inject_object(&self.settings, self.namespace, labels, object) {
            Ok(Injection::NoPod) => None,
            Ok(Injection::Skipped(why)) => {
                terminal::note(&format!("{at}: {} is left as it is: {why}", name(object)));
                None
            }
            Ok(Injection::Injected { object: new, warnings }) => {
                for warning in warnings {
                    terminal::warning(&format!("{at}: {}: {warning}", name(object)));
                }
                Some(new)
            }
            Err(refusal) => {
                self.fail(&format!("{at}: {refusal}"));
                None
            }
        }
    }

    fn fail(&mut self, text: &str) {
        terminal::error(text);
        self.failed = true;
    }
}

fn name(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!("{} {}", text("/kind"), text("/metadata/name"))
}

struct Output {
    format: Format,
    text: String,
}

impl Output {
    /// Documents of different files are different documents.
    fn next_file(&mut self, text: &str) {
        if self.format == Format::Yaml && !self.text.is_empty() && !text.starts_with("---") {
            self.text.push_str("---\n");
        }
    }

    /// What is not changed is passed on as it was written, with what stood before it.
    fn document(&mut self, between: &str, own: &str, root: &Node, object: &Value, changed: Option<Value>) {
        match (self.format, changed) {
            (Format::Yaml, None) => self.rest(&format!("{between}{own}")),
            (Format::Yaml, Some(new)) => {
                self.rest(between);
                let text = yaml::rewrite(own, root, &new);
                self.rest(&text);
            }
            (Format::Json, changed) => {
                let object = changed.unwrap_or_else(|| object.clone());
                self.text.push_str(&format!("{:#}\n", json!(object)));
            }
        }
    }

    fn rest(&mut self, text: &str) {
        if self.format == Format::Json {
            return;
        }
        self.text.push_str(text.trim_start_matches('\u{feff}'));
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push('\n');
        }
    }
}
