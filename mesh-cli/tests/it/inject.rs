use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mesh_core::yaml::{Node, documents};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn meshctl(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read its input ends before all of it is written.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

/// The output and the complaints of `meshctl inject` with the image `mesh-proxy:test`.
fn inject(args: &[&str], stdin: &str) -> (Option<i32>, String, String) {
    let output = meshctl(&[&["inject", "--image=mesh-proxy:test"], args].concat(), stdin);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// `MESH_GOLDEN=write cargo test -p mesh-cli` writes the expected files anew; read them before you keep them.
fn compare(name: &str, got: &str) {
    let path = golden(name);
    if std::env::var_os("MESH_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::write(&path, got).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(got, expected, "{} differs", path.display());
}

#[test]
fn manifests_come_out_as_people_expect_them() {
    for name in ["deployment", "jobs"] {
        let file = golden(&format!("{name}.yaml"));
        let (code, out, complaints) = inject(&["-f", file.to_str().unwrap()], "");
        assert_eq!((code, complaints.as_str()), (Some(0), ""));
        compare(&format!("{name}.injected.yaml"), &out);
    }
}

#[test]
fn once_is_enough() {
    for name in ["deployment", "jobs"] {
        let injected = std::fs::read_to_string(golden(&format!("{name}.injected.yaml"))).unwrap();
        let (code, out, complaints) = inject(&["-f", "-"], &injected);
        assert_eq!(code, Some(0));
        assert_eq!(out, injected);
        assert!(complaints.contains("is left as it is: it has a sidecar already"), "{complaints}");
    }
}

#[test]
fn what_declines_comes_out_as_it_went_in() {
    let file = golden("left-alone.yaml");
    let (code, out, complaints) = inject(&["-f", file.to_str().unwrap()], "");
    assert_eq!(code, Some(0));
    assert_eq!(out, std::fs::read_to_string(&file).unwrap());
    for (line, reason) in [
        (8, "Pod a is left as it is: its namespace says istio-injection=disabled"),
        (13, "DaemonSet agent is left as it is: it uses the network of its node (spec.hostNetwork)"),
        (20, "StatefulSet db is left as it is: it says sidecar.istio.io/inject=false"),
    ] {
        let expected = format!("note: {}:{line}: {reason}\n", file.display());
        assert!(complaints.contains(&expected), "{complaints}");
    }
    assert_eq!(complaints.lines().count(), 3);
    // Nobody looks at a terminal here.
    assert!(!complaints.contains('\x1b'));
}

/// Each kind with a template of a pod gets the same two containers.
#[test]
fn every_kind_that_holds_a_pod() {
    for (api, kind, path) in [
        ("v1", "Pod", ""),
        ("v1", "ReplicationController", "spec.template."),
        ("apps/v1", "Deployment", "spec.template."),
        ("apps/v1", "StatefulSet", "spec.template."),
        ("apps/v1", "DaemonSet", "spec.template."),
        ("apps/v1", "ReplicaSet", "spec.template."),
        ("batch/v1", "Job", "spec.template."),
        ("batch/v1", "CronJob", "spec.jobTemplate.spec.template."),
    ] {
        let pod = "{spec: {containers: [{name: app}]}}";
        let parts: Vec<_> = path.split('.').filter(|p| !p.is_empty()).collect();
        let body = parts.iter().rev().fold(pod.to_owned(), |inner, part| format!("{{{part}: {inner}}}"));
        let body = body.strip_prefix('{').unwrap();
        let text = format!("{{apiVersion: {api}, kind: {kind}, metadata: {{name: x}}, {body}\n");
        let (code, out, complaints) = inject(&["-f", "-"], &text);
        assert_eq!(code, Some(0), "{text}{complaints}");
        let documents = documents(&out);
        let mut pod = documents[0].root.as_ref().unwrap();
        for part in parts {
            pod = pod.get(part).unwrap();
        }
        let list = pod.get("spec").and_then(|s| s.get("initContainers")).and_then(Node::as_list).unwrap();
        let names: Vec<_> = list.iter().filter_map(|c| c.get("name")?.as_text()).collect();
        assert_eq!(names, ["mesh-init", "mesh-proxy"], "{kind}");
    }
}

#[test]
fn a_list_keeps_its_items_in_order() {
    let list = "apiVersion: v1
kind: List
items:
# first
- apiVersion: v1
  kind: Service
  metadata: {name: s} # a service
- apiVersion: v1
  kind: Pod
  metadata: {name: p}
  spec: {containers: [{name: app}]}
";
    let (code, out, _) = inject(&["-f", "-"], list);
    assert_eq!(code, Some(0));
    assert!(out.starts_with("apiVersion: v1\nkind: List\nitems:\n# first\n- apiVersion: v1\n  kind: Service\n  metadata: {name: s} # a service\n- apiVersion: v1\n  kind: Pod\n"), "{out}");
    assert!(out.contains("    initContainers:\n    - name: mesh-init\n"), "{out}");
}

#[test]
fn json_in_and_json_out() {
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"app","image":"a"}]}}"#;
    let (code, out, _) = inject(&["-f", "-", "-o", "json"], &format!("{pod}\n---\n{{\"kind\": \"X\"}}\n"));
    assert_eq!(code, Some(0));
    let objects: Vec<serde_json::Value> =
        serde_json::Deserializer::from_str(&out).into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(objects.len(), 2);
    assert_eq!(objects[0]["spec"]["initContainers"][1]["name"], "mesh-proxy");
    assert_eq!(objects[1], serde_json::json!({"kind": "X"}));
    let (code, out, _) = inject(&["-f", "-"], pod);
    assert_eq!(code, Some(0));
    assert!(out.starts_with("apiVersion: v1\nkind: Pod\n"), "{out}");
}

#[test]
fn files_become_documents_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (a, b) = (file("a.yaml", "kind: A"), file("b.yaml", "# b\nkind: B\n"));
    let (code, out, _) = inject(&["-f", &a, "-f", &b, "-f", "-"], "---\nkind: C\n");
    assert_eq!((code, out.as_str()), (Some(0), "kind: A\n---\n# b\nkind: B\n---\nkind: C\n"));
}

/// Half an application must not get through a pipe.
#[test]
fn one_that_cannot_be_injected_stops_all_and_each_is_named() {
    let text = "apiVersion: v1
kind: Pod
metadata: {name: fine}
spec: {containers: [{name: app}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    spec: {containers: [{name: app, ports: [{containerPort: 15001}]}]}
---
a: [
---
just a text
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: odd, labels: {sidecar.istio.io/inject: maybe}}}
";
    let (code, out, complaints) = inject(&["-f", "-"], text);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    for said in [
        "error: (standard input):6: Deployment shop/web: spec.template.spec.containers[0].ports[0].containerPort: \
         is a port of the sidecar's; let the application listen on another\n",
        "error: (standard input):line 1",
        "error: (standard input):15: is no object of Kubernetes",
        "error: (standard input):17: items[0]: Pod default/odd: metadata.labels[sidecar.istio.io/inject]: \"maybe\" \
         is neither",
    ] {
        assert!(complaints.contains(said), "{complaints}\nshould say: {said}");
    }
}

#[test]
fn a_namespace_among_the_documents_is_asked() {
    let pod = |labels: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns, labels: {{{labels}}}}}\n---\napiVersion: v1\n\
             kind: Pod\nmetadata: {{name: p}}\nspec: {{containers: [{{name: a}}]}}\n"
        )
    };
    let is_injected = |labels: &str, args: &[&str]| {
        let (code, out, complaints) = inject(&[&["-f", "-", "-n", "ns"], args].concat(), &pod(labels));
        assert_eq!(code, Some(0), "{complaints}");
        out.contains("mesh-proxy")
    };
    assert!(is_injected("", &[]));
    assert!(is_injected("istio-injection: enabled", &[]));
    assert!(!is_injected("istio-injection: disabled", &[]));
    assert!(is_injected("istio-injection: disabled, mesh.dev/injection: enabled", &[]));
    assert!(!is_injected("istio.io/rev: canary", &[]));
    assert!(is_injected("istio.io/rev: canary", &["--revision=canary"]));
}

#[test]
fn settings_come_from_flags() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a}]}\n";
    let flags = [
        "--image=other:1",
        "--image-pull-policy=Never",
        "--controller=https://c:1",
        "--trust-domain=td.example",
        "--root-namespace=rootns",
        "--token-audience=aud",
        "--root-config-map=cm",
        "--log=debug",
    ];
    let output = meshctl(&[&["inject", "-f", "-"], flags.as_slice()].concat(), pod);
    let out = String::from_utf8(output.stdout).unwrap();
    for said in [
        "image: other:1\n",
        "imagePullPolicy: Never\n",
        "value: https://c:1\n",
        "value: td.example\n",
        "value: rootns\n",
        "audience: aud\n",
        "name: cm\n",
        "value: debug\n",
    ] {
        assert!(out.contains(said), "{said} is not in\n{out}");
    }
}

#[test]
fn usage_that_is_wrong_and_files_that_are_not_there() {
    for args in [&["inject"][..], &["inject", "-f"], &["inject", "-f", "-", "-o", "xml"], &["nothing"], &[]] {
        assert_eq!(meshctl(args, "").status.code(), Some(2), "{args:?}");
    }
    let (code, out, complaints) = inject(&["-f", "/nowhere.yaml"], "");
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(complaints.starts_with("error: cannot read /nowhere.yaml: "), "{complaints}");
    let (code, _, complaints) = inject(&["-f", "-", "-f", "-"], "");
    assert_eq!(code, Some(1));
    assert!(complaints.contains("standard input can be read once"), "{complaints}");
    let help = meshctl(&["inject", "--help"], "");
    assert_eq!(help.status.code(), Some(0));
    assert!(
        String::from_utf8(help.stdout).unwrap().contains("meshctl inject -f app.yaml | kubectl apply -f -")
    );
}

#[test]
fn a_file_has_a_limit() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len((64 << 20) + 1).unwrap();
    let (code, _, complaints) = inject(&["-f", file.path().to_str().unwrap()], "");
    assert_eq!(code, Some(1));
    assert!(complaints.contains("holds more than 67108864 bytes; split it"), "{complaints}");
}
