use proptest::prelude::*;
use serde_json::json;

use super::*;

fn read(text: &str) -> Node {
    let documents = documents(text);
    assert_eq!(documents.len(), 1, "{text}");
    documents[0].root.clone().unwrap()
}

/// `text`, with what `change` does to what it holds.
fn rewritten(text: &str, change: impl FnOnce(&mut Value)) -> String {
    let old = read(text);
    let mut new = to_json(&old);
    change(&mut new);
    let out = rewrite(text, &old, &new);
    assert_eq!(to_json(&read(&out)), new, "{out}");
    out
}

const POD: &str = r#"---
# What this is.
kind: Pod   # yes, a pod
apiVersion: v1

metadata: {name: "a"}
spec:
  # The one
  # and only.
  containers:
  - name: app # a name
    # The command.
    command: ["sh", '-c', "echo # no comment"]
    enabled: yes
    mode: 0644
    env:
    # Why it is set.
    - name: A
      value: "1"
    script: |
      #!/bin/sh
      # not a comment
      echo hi
    # after the script
    folded: >-
      one
      two
# The end.
"#;

#[test]
fn comments_order_and_spelling_stay() {
    let out = rewritten(POD, |pod| {
        pod["spec"]["containers"][0]["env"]
            .as_array_mut()
            .unwrap()
            .insert(0, json!({"name": "B", "value": "x"}));
        pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
        pod["metadata"]["labels"] = json!({"b": "2"});
    });
    assert_eq!(
        out,
        r#"---
# What this is.
kind: Pod # yes, a pod
apiVersion: v1
metadata:
  name: a
  labels:
    b: "2"
spec:
  # The one
  # and only.
  containers:
  - name: app # a name
    # The command.
    command: ["sh", '-c', "echo # no comment"]
    enabled: yes
    mode: 0644
    env:
    - name: B
      value: x
    # Why it is set.
    - name: A
      value: "1"
    script: |
      #!/bin/sh
      # not a comment
      echo hi
    # after the script
    folded: one two
  volumes:
  - name: v
    emptyDir: {}
# The end.
"#
    );
}

#[test]
fn lists_are_indented_as_they_were() {
    let out = rewritten("a:\n  - b: 1\n    c:\n      - 2\n", |v| v["a"][0]["d"] = json!([{"name": "e"}]));
    assert_eq!(out, "a:\n  - b: 1\n    c:\n      - 2\n    d:\n      - name: e\n");
    let out = rewritten("a:\n- b: 1\n", |v| v["a"][0]["d"] = json!([[1, 2], []]));
    assert_eq!(out, "a:\n- b: 1\n  d:\n  -\n    - 1\n    - 2\n  - []\n");
}

#[test]
fn anchors_are_written_out() {
    let out = rewritten("a: &x {k: v}\nb: *x\nc: &y 5\nd: *y\n", |v| v["e"] = json!(1));
    assert_eq!(out, "a:\n  k: v\nb:\n  k: v\nc: 5\nd: 5\ne: 1\n");
}

#[test]
fn texts_that_look_like_something_else_are_quoted() {
    for quoted in [
        "",
        "1",
        "1.5",
        "1e3",
        "0x1f",
        "0b1",
        "12:30",
        "2001-01-01",
        "yes",
        "No",
        "on",
        "y",
        "true",
        "Null",
        "~",
        "- a",
        "a: b",
        "a #b",
        "a:",
        " a",
        "a ",
        "#",
        "@a",
        "*a",
        "&a",
        "!a",
        "|",
        ">",
        "%a",
        "`",
        "[",
        "{",
        "\"",
        "'",
        "?",
        "-",
        ".5",
        "+1",
        "1_000",
        "\u{85}",
        "\u{7f}",
        "\r",
        "a\tb",
        "---",
        "--",
        "--1",
        "é",
        "{\"a\":1}",
        "\"'",
        ".inf",
        "<<",
        "=",
    ] {
        let out = scalar(quoted);
        assert!(out.starts_with(['"', '\'']), "{out}");
        assert_eq!(to_json(&read(&format!("a: {out}\n"))), json!({"a": quoted}));
    }
    for plain in
        ["a", "50m", "48Mi", "v1", "/a/b.c", "$(POD_NAME)", "a=b,c", "10.0.0.0/8 and", "nginx:1.2", "--x=1a"]
    {
        let out = scalar(plain);
        assert_eq!(out, plain);
        assert_eq!(to_json(&read(&format!("a: {out}\n"))), json!({"a": plain}));
    }
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9: #'\"-]{0,12}",
        "[ -~\n\t]{0,20}",
        any::<String>(),
        Just("a\n\n".to_owned()),
        Just("a\n b\nc".to_owned()),
    ]
}

fn objects() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        texts().prop_map(Value::from),
    ];
    let inner = leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(texts(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    prop::collection::btree_map(texts(), inner, 1..4).prop_map(|map| Value::Object(map.into_iter().collect()))
}

proptest! {
    /// What is written is read as what it was, from nothing and over any other text.
    #[test]
    fn whatever_is_written_is_read_again(new in objects(), old in objects()) {
        let nothing = Node { line: 1, value: Yaml::Null };
        let text = rewrite("", &nothing, &old);
        let node = read(&text);
        prop_assert_eq!(to_json(&node), old.clone(), "{}", text);
        let over = rewrite(&text, &node, &new);
        prop_assert_eq!(to_json(&read(&over)), new, "{}", over);
        let again = rewrite(&text, &node, &old);
        prop_assert_eq!(to_json(&read(&again)), old, "{}", again);
    }
}
