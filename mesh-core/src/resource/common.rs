//! The small types that several resources share.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Labels, annotations, and what selects by them.
pub type Labels = BTreeMap<String, String>;

/// Whether a value is its type's default, which is what an absent field means.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A value that may be `null`, which is the same as leaving it out.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A list that may be absent but not written as empty: where a list narrows a rule, nobody can tell
/// whether `[]` was meant as "nothing" or as "anything".
pub(crate) fn non_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    match Option::<Vec<T>>::deserialize(deserializer)? {
        Some(list) if list.is_empty() => {
            Err(de::Error::custom("the list is empty; leave the field out, or say what it should hold"))
        }
        list => Ok(list.unwrap_or_default()),
    }
}

/// How a text is compared. Written as an object with at most one of `exact`, `prefix` and `regex`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum StringMatch {
    /// `{}`: the thing is there at all, with any value.
    #[default]
    Present,
    /// The whole text, case-sensitive.
    Exact(String),
    /// The text starts so.
    Prefix(String),
    /// An RE2 expression that the whole text must match.
    Regex(String),
}

/// A length of time, written as in protobuf's JSON (`"1.5s"`) or as Go writes it (`"1h30m"`, `"100ms"`).
///
/// ```
/// use tower_mesh_core::resource::Duration;
///
/// let d: Duration = "1m30s".parse().unwrap();
/// assert_eq!(d.get(), std::time::Duration::from_secs(90));
/// assert_eq!(d.to_string(), "90s");
/// assert!("10".parse::<Duration>().is_err(), "a unit is needed");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Duration(std::time::Duration);

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration: {reason}; write it as \"1.5s\", \"250ms\", \"1m\" or \"1h\"")]
pub struct InvalidDuration {
    text: String,
    reason: &'static str,
}

/// A number or a name, such as a Kubernetes `targetPort`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum IntOrString {
    /// A number.
    Int(i32),
    /// A name (or a number in quotes, which Kubernetes takes as a name).
    String(String),
}

mesh_types! {
    /// A share of 100.
    pub struct Percent {
        /// 0, or 0.0001 to 100.
        pub value: f64,
    }

    /// A port by its number.
    pub struct PortSelector {
        /// The number.
        pub number: u16,
    }

    /// Which workloads a policy applies to (`selector` of security and telemetry resources).
    pub struct Selector {
        /// All of these labels with exactly these values; empty selects everything in reach.
        pub match_labels: Labels,
    }

    /// Which workloads a `ServiceEntry` or `Sidecar` takes (`workloadSelector` of networking resources).
    pub struct WorkloadSelector {
        /// All of these labels with exactly these values.
        pub labels: Labels,
    }

    /// The object that a policy attaches to in place of a selector.
    pub struct TargetRef {
        /// The API group; empty for Kubernetes' core group.
        pub group: String,
        /// The kind, such as `Gateway` or `Service`.
        pub kind: String,
        /// The name.
        pub name: String,
        /// The namespace; empty for the policy's own, which is the only one allowed.
        pub namespace: String,
    }

    /// A port as `Sidecar` listeners declare it.
    pub struct SidecarPort {
        /// The number; 0 only for unix sockets.
        pub number: u16,
        /// `HTTP`, `HTTPS`, `GRPC`, `HTTP2`, `MONGO`, `TCP` or `TLS`.
        pub protocol: String,
        /// A name for the port.
        pub name: String,
        /// Deprecated upstream and without meaning here.
        pub target_port: u16,
    }
}

impl Selector {
    /// A selector for `labels`.
    pub fn new<K: Into<String>, V: Into<String>>(labels: impl IntoIterator<Item = (K, V)>) -> Self {
        Self { match_labels: labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect() }
    }

    /// Whether a workload with `labels` is selected; an empty selector selects all.
    pub fn selects(&self, labels: &Labels) -> bool {
        selects(&self.match_labels, labels)
    }
}

impl WorkloadSelector {
    /// Whether a workload with `labels` is selected; an empty selector selects all.
    pub fn selects(&self, labels: &Labels) -> bool {
        selects(&self.labels, labels)
    }
}

/// Whether each pair of `wanted` stands in `labels`.
pub fn selects(wanted: &Labels, labels: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

impl Duration {
    /// From a standard duration.
    pub const fn new(duration: std::time::Duration) -> Self {
        Self(duration)
    }

    /// As a standard duration.
    pub const fn get(self) -> std::time::Duration {
        self.0
    }

    /// Whether it is zero, which several fields read as "off".
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl From<std::time::Duration> for Duration {
    fn from(duration: std::time::Duration) -> Self {
        Self(duration)
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

fn unit(text: &str) -> Option<(u64, &str)> {
    // Longest first: "ms" is no "m" followed by "s".
    const UNITS: [(&str, u64); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    UNITS.iter().find_map(|(name, nanos)| Some((*nanos, text.strip_prefix(name)?)))
}

fn parse_duration(text: &str) -> Result<std::time::Duration, &'static str> {
    const TOO_LONG: &str = "it is longer than 10000 years";
    /// The longest duration that protobuf allows, in seconds.
    const MAX_SECONDS: u64 = 315_576_000_000;

    if text.starts_with('-') {
        return Err("it is negative");
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err("it is empty");
    }
    if rest == "0" {
        return Ok(std::time::Duration::ZERO);
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (whole, after) = rest.split_at(digits(rest));
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err("a number is missing");
        }
        let Some((nanos, after)) = unit(after) else {
            return Err("a unit (ns, us, ms, s, m, h) is missing");
        };
        if whole.len() > 18 {
            return Err(TOO_LONG);
        }
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| TOO_LONG)? };
        total += whole * u128::from(nanos);
        // Digits beyond a nanosecond make no difference.
        let mut scale = u128::from(nanos);
        for digit in fraction.bytes() {
            scale /= 10;
            total += u128::from(digit - b'0') * scale;
        }
        if total > u128::from(MAX_SECONDS) * 1_000_000_000 {
            return Err(TOO_LONG);
        }
        rest = after;
    }
    let seconds = u64::try_from(total / 1_000_000_000).map_err(|_| TOO_LONG)?;
    let nanos = u32::try_from(total % 1_000_000_000).map_err(|_| TOO_LONG)?;
    Ok(std::time::Duration::new(seconds, nanos))
}

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_duration(text)
            .map(Self)
            .map_err(|reason| InvalidDuration { text: text.chars().take(64).collect(), reason })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.subsec_nanos();
        if nanos == 0 {
            return write!(f, "{}s", self.0.as_secs());
        }
        let fraction = format!("{nanos:09}");
        write!(f, "{}.{}s", self.0.as_secs(), fraction.trim_end_matches('0'))
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Duration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"1.5s\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[derive(Serialize, Deserialize, Default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, rename = "StringMatch")]
struct StringMatchFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    exact: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    regex: Option<Cow<'a, str>>,
}

impl Serialize for StringMatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = StringMatchFields::default();
        match self {
            Self::Present => {}
            Self::Exact(text) => fields.exact = Some(text.into()),
            Self::Prefix(text) => fields.prefix = Some(text.into()),
            Self::Regex(text) => fields.regex = Some(text.into()),
        }
        fields.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for StringMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = StringMatchFields::deserialize(deserializer)?;
        match (fields.exact, fields.prefix, fields.regex) {
            (None, None, None) => Ok(Self::Present),
            (Some(text), None, None) => Ok(Self::Exact(text.into_owned())),
            (None, Some(text), None) => Ok(Self::Prefix(text.into_owned())),
            (None, None, Some(text)) => Ok(Self::Regex(text.into_owned())),
            _ => Err(de::Error::custom("has more than one of exact, prefix and regex; keep one")),
        }
    }
}

impl Default for IntOrString {
    fn default() -> Self {
        Self::Int(0)
    }
}

impl fmt::Display for IntOrString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => number.fmt(f),
            Self::String(name) => name.fmt(f),
        }
    }
}

impl Serialize for IntOrString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Int(number) => serializer.serialize_i32(*number),
            Self::String(name) => serializer.serialize_str(name),
        }
    }
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = IntOrString;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a name")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<IntOrString, E> {
                i32::try_from(number)
                    .map(IntOrString::Int)
                    .map_err(|_| E::custom(format_args!("the number {number} is out of range")))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<IntOrString, E> {
                i32::try_from(number)
                    .map(IntOrString::Int)
                    .map_err(|_| E::custom(format_args!("the number {number} is out of range")))
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<IntOrString, E> {
                Ok(IntOrString::String(name.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(feature = "schema")]
mod schema {
    use std::borrow::Cow;

    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

    use super::{Duration, IntOrString, StringMatch, StringMatchFields};

    impl JsonSchema for StringMatch {
        fn schema_name() -> Cow<'static, str> {
            "StringMatch".into()
        }
        fn json_schema(generator: &mut SchemaGenerator) -> Schema {
            StringMatchFields::json_schema(generator)
        }
    }

    impl JsonSchema for Duration {
        fn schema_name() -> Cow<'static, str> {
            "Duration".into()
        }
        fn inline_schema() -> bool {
            true
        }
        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({"type": "string"})
        }
    }

    impl JsonSchema for IntOrString {
        fn schema_name() -> Cow<'static, str> {
            "IntOrString".into()
        }
        fn inline_schema() -> bool {
            true
        }
        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]})
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nanos(text: &str) -> Option<u128> {
        text.parse::<Duration>().ok().map(|d| d.get().as_nanos())
    }

    #[test]
    fn durations_are_read_as_protobuf_and_go_write_them() {
        for (text, want) in [
            ("1s", 1_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("100ms", 100_000_000),
            ("1h", 3_600_000_000_000),
            ("1m30s", 90_000_000_000),
            ("0", 0),
            ("0s", 0),
            ("0.000000001s", 1),
            ("3us", 3_000),
            ("3µs", 3_000),
        ] {
            assert_eq!(nanos(text), Some(want), "{text}");
        }
        for text in
            ["", "1", "s", "-1s", "1 s", "1x", "1.s.", "99999999999999999999h", "999999999999h", "1s2"]
        {
            assert_eq!(nanos(text), None, "{text}");
        }
    }

    #[cfg(feature = "schema")]
    #[test]
    fn the_schema_has_every_field_under_its_name() {
        let schema = serde_json::to_value(schemars::schema_for!(crate::resource::VirtualService)).unwrap();
        let route = &schema["$defs"]["HttpRoute"];
        assert_eq!(route["additionalProperties"], false);
        assert_eq!(route["properties"]["match"]["type"], "array");
        assert_eq!(schema["$defs"]["StringMatch"]["properties"]["regex"]["type"][0], "string");
    }

    proptest! {
        #[test]
        fn a_duration_reads_back_what_it_writes(secs in 0u64..1_000_000, nanos in 0u32..1_000_000_000) {
            let d = Duration::new(std::time::Duration::new(secs, nanos));
            prop_assert_eq!(d.to_string().parse::<Duration>().unwrap(), d);
        }

        #[test]
        fn no_text_makes_the_duration_parser_panic(text in "[0-9.+a-zµ-]{0,24}") {
            let _ = text.parse::<Duration>();
        }
    }
}
