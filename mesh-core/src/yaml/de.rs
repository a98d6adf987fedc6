//! From a located tree to typed values, with errors that name field and line.

use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use serde::forward_to_deserialize_any;

use super::node::{Entry, Node, Number, Value};

/// How alike two names must be for one to be suggested for the other (1 is the same).
const ALIKE: f64 = 0.75;

/// Why a tree could not be read as the type that was wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The line in the file, counted from 1; 0 where it is not known.
    pub line: u32,
    /// The way to the field, innermost first.
    path: Vec<Step>,
    /// What is wrong and the way out.
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

impl FieldError {
    fn new(line: u32, message: impl Into<String>) -> Self {
        Self { line, path: Vec::new(), message: message.into() }
    }

    fn at(mut self, step: Step, line: u32) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self.path.push(step);
        self
    }

    /// The field, as `http[0].match[1].uri`, under `prefix`.
    pub fn field(&self, prefix: &str) -> String {
        let mut field = prefix.to_owned();
        for step in self.path.iter().rev() {
            match step {
                Step::Index(index) => field.push_str(&format!("[{index}]")),
                Step::Key(key)
                    if !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') =>
                {
                    if !field.is_empty() {
                        field.push('.');
                    }
                    field.push_str(key);
                }
                Step::Key(key) => field.push_str(&format!("[{key}]")),
            }
        }
        field
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field("") {
            field if field.is_empty() => f.write_str(&self.message),
            field => write!(f, "{field}: {}", self.message),
        }
    }
}

impl std::error::Error for FieldError {}

/// The name among `known` that is nearest to `name`, when one is near.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_ascii_lowercase();
    known
        .into_iter()
        .map(|k| (strsim::normalized_damerau_levenshtein(&lower, &k.to_ascii_lowercase()), k))
        .fold(None, |best: Option<(f64, &str)>, next| match best {
            Some(best) if best.0 >= next.0 => Some(best),
            _ => Some(next),
        })
        .filter(|(likeness, k)| *likeness >= ALIKE || (name.len() <= 5 && k.len() <= 5 && *likeness >= 0.5))
        .map(|(_, k)| k)
}

/// `did you mean "x"?`, or the names that are known.
pub(crate) fn suggestion(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {near:?}?"),
        None if known.is_empty() => "there is none".to_owned(),
        None => format!("known are {}", known.join(", ")),
    }
}

impl de::Error for FieldError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(0, message.to_string())
    }

    fn invalid_type(found: de::Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        Self::new(0, format!("{wanted} is wanted, found {found}"))
    }

    fn invalid_value(found: de::Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        Self::new(0, format!("{wanted} is wanted, found {found}"))
    }

    fn unknown_variant(value: &str, known: &'static [&'static str]) -> Self {
        let near = match nearest(value, known.iter().copied()) {
            Some(near) => format!("did you mean {near:?}? "),
            None => String::new(),
        };
        Self::new(0, format!("unknown value {value:?}; {near}It is one of {}", known.join(", ")))
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::new(0, format!("unknown field; {}", suggestion(field, known)))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(0, format!("the field {field} is required"))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(0, format!("the field {field} stands here twice"))
    }
}

impl Node {
    /// What the node is, for messages.
    fn told(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("{value}"),
            Value::Number(_, text) => format!("the number {text}"),
            Value::Text(text) => {
                let short: String = text.chars().take(64).collect();
                format!("the text {short:?}")
            }
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "an object".to_owned(),
        }
    }

    fn wanted(&self, what: &str) -> FieldError {
        FieldError::new(self.line, format!("{what} is wanted, found {}", self.told()))
    }

    fn text(&self) -> Result<&str, FieldError> {
        match &self.value {
            Value::Text(text) => Ok(text),
            // What protobuf's JSON takes for an absent field.
            Value::Null => Ok(""),
            Value::Bool(_) | Value::Number(..) => {
                let written = self.as_scalar().unwrap_or_default();
                Err(FieldError::new(
                    self.line,
                    format!("a text is wanted, found {}; quote it: \"{written}\"", self.told()),
                ))
            }
            _ => Err(self.wanted("a text")),
        }
    }

    fn int(&self) -> Result<i128, FieldError> {
        match &self.value {
            Value::Null => Ok(0),
            Value::Number(Number::Int(n), _) => Ok(i128::from(*n)),
            Value::Number(Number::Large(n), _) => Ok(i128::from(*n)),
            Value::Text(text) if text.parse::<i64>().is_ok() => Err(FieldError::new(
                self.line,
                format!("a number is wanted, found the text {text:?}; drop the quotes"),
            )),
            _ => Err(self.wanted("a whole number")),
        }
    }
}

macro_rules! ints {
    ($($method:ident => $visit:ident: $ty:ty),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
            let number = self.int()?;
            let number = <$ty>::try_from(number).map_err(|_| {
                FieldError::new(
                    self.line,
                    format!("the number {number} is out of range, which is {} to {}", <$ty>::MIN, <$ty>::MAX),
                )
            })?;
            visitor.$visit(number)
        }
    )*};
}

/// Reads a tree strictly. A field that is `null` counts as absent, as in protobuf's JSON; an item of a list
/// and a value of a map must not be.
impl<'de> Deserializer<'de> for &'de Node {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(Number::Int(n), _) => visitor.visit_i64(*n),
            Value::Number(Number::Large(n), _) => visitor.visit_u64(*n),
            Value::Number(Number::Float(n), _) => visitor.visit_f64(*n),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(Items(items.iter().enumerate())),
            Value::Map(entries) => visitor.visit_map(Fields::new(entries, false)),
        }
    }

    ints! {
        deserialize_i8 => visit_i8: i8,
        deserialize_i16 => visit_i16: i16,
        deserialize_i32 => visit_i32: i32,
        deserialize_i64 => visit_i64: i64,
        deserialize_u8 => visit_u8: u8,
        deserialize_u16 => visit_u16: u16,
        deserialize_u32 => visit_u32: u32,
        deserialize_u64 => visit_u64: u64,
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match &self.value {
            Value::Null => visitor.visit_bool(false),
            Value::Bool(value) => visitor.visit_bool(*value),
            _ => Err(self.wanted("true or false")),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match &self.value {
            Value::Null => visitor.visit_f64(0.0),
            Value::Number(Number::Float(n), _) => visitor.visit_f64(*n),
            #[expect(clippy::cast_precision_loss, reason = "a percentage needs no more than 53 bits")]
            Value::Number(Number::Int(n), _) => visitor.visit_f64(*n as f64),
            #[expect(clippy::cast_precision_loss, reason = "a percentage needs no more than 53 bits")]
            Value::Number(Number::Large(n), _) => visitor.visit_f64(*n as f64),
            _ => Err(self.wanted("a number")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match &self.value {
            Value::Null => visitor.visit_seq(Items([].iter().enumerate())),
            Value::List(items) => visitor.visit_seq(Items(items.iter().enumerate())),
            _ => Err(self.wanted("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match &self.value {
            Value::Null => visitor.visit_map(Fields::new(&[], true)),
            Value::Map(entries) => visitor.visit_map(Fields::new(entries, true)),
            _ => Err(self.wanted("an object")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        match &self.value {
            Value::Null => visitor.visit_map(Fields::new(&[], false)),
            Value::Map(entries) => visitor.visit_map(Fields::new(entries, false)),
            _ => Err(self.wanted("an object")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        visitor.visit_enum(Name { name: self.text()?, line: self.line })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct }
}

struct Items<'a>(std::iter::Enumerate<std::slice::Iter<'a, Node>>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = FieldError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, FieldError> {
        let Some((index, item)) = self.0.next() else { return Ok(None) };
        if item.is_null() {
            return Err(FieldError::new(item.line, "the item is empty").at(Step::Index(index), item.line));
        }
        seed.deserialize(item).map(Some).map_err(|e| e.at(Step::Index(index), item.line))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Fields<'a> {
    entries: std::slice::Iter<'a, Entry>,
    current: Option<&'a Entry>,
    /// Whether keys are data, so that a value that is nothing is nobody's default.
    data: bool,
}

impl<'a> Fields<'a> {
    fn new(entries: &'a [Entry], data: bool) -> Self {
        Self { entries: entries.iter(), current: None, data }
    }
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, FieldError> {
        let Some(entry) = self.entries.next() else { return Ok(None) };
        self.current = Some(entry);
        seed.deserialize(Key(&entry.key))
            .map(Some)
            .map_err(|e| e.at(Step::Key(entry.key.clone()), entry.line))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, FieldError> {
        let Some(entry) = self.current.take() else {
            return Err(FieldError::new(0, "a value without a key"));
        };
        let at = |e: FieldError| e.at(Step::Key(entry.key.clone()), entry.line);
        if self.data && entry.value.is_null() {
            return Err(at(FieldError::new(
                entry.line,
                "the value is empty; write \"\" or {} if that is meant",
            )));
        }
        seed.deserialize(&entry.value).map_err(at)
    }
}

/// A key: a text, or the number that it spells where a number is wanted.
struct Key<'a>(&'a str);

macro_rules! key_ints {
    ($($method:ident => $visit:ident: $ty:ty),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
            match self.0.parse::<$ty>() {
                Ok(number) => visitor.$visit(number),
                Err(_) => Err(FieldError::new(
                    0,
                    format!("the key must be a number from {} to {}", <$ty>::MIN, <$ty>::MAX),
                )),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_borrowed_str(self.0)
    }

    key_ints! {
        deserialize_i8 => visit_i8: i8,
        deserialize_i16 => visit_i16: i16,
        deserialize_i32 => visit_i32: i32,
        deserialize_i64 => visit_i64: i64,
        deserialize_u8 => visit_u8: u8,
        deserialize_u16 => visit_u16: u16,
        deserialize_u32 => visit_u32: u32,
        deserialize_u64 => visit_u64: u64,
    }

    forward_to_deserialize_any! {
        bool f32 f64 i128 u128 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

/// The name of an enum's value.
struct Name<'a> {
    name: &'a str,
    line: u32,
}

impl<'de> EnumAccess<'de> for Name<'de> {
    type Error = FieldError;
    type Variant = Unit;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Unit), FieldError> {
        let name = IntoDeserializer::<FieldError>::into_deserializer(self.name);
        match seed.deserialize(name) {
            Ok(value) => Ok((value, Unit)),
            Err(mut error) => {
                error.line = self.line;
                Err(error)
            }
        }
    }
}

/// A value of an enum that holds nothing.
struct Unit;

impl<'de> VariantAccess<'de> for Unit {
    type Error = FieldError;

    fn unit_variant(self) -> Result<(), FieldError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, FieldError> {
        Err(FieldError::new(0, "the value cannot be a text alone"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, FieldError> {
        Err(FieldError::new(0, "the value cannot be a text alone"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, FieldError> {
        Err(FieldError::new(0, "the value cannot be a text alone"))
    }
}
