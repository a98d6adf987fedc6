//! One place for the derives and serde attributes that every resource type carries.

/// Structs of mesh resources: camelCase, every field optional in the text, unknown fields refused.
macro_rules! mesh_types {
    ($( $(#[$meta:meta])* pub struct $name:ident {
        $( $(#[$fmeta:meta])* pub $field:ident : $ty:ty ),* $(,)?
    } )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $name {
            $(
                $(#[$fmeta])*
                #[serde(skip_serializing_if = "crate::resource::common::is_default")]
                pub $field: $ty,
            )*
        }
    )*};
}

/// Structs of Kubernetes' own objects: the fields that the mesh uses, the rest ignored.
/// Kubernetes writes lists that hold nothing as `null`, which is the same as leaving them out.
macro_rules! thin_types {
    ($( $(#[$meta:meta])* pub struct $name:ident {
        $( $(#[$fmeta:meta])* pub $field:ident : $ty:ty ),* $(,)?
    } )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $(
                $(#[$fmeta])*
                #[serde(
                    deserialize_with = "crate::resource::common::or_default",
                    skip_serializing_if = "crate::resource::common::is_default"
                )]
                pub $field: $ty,
            )*
        }
    )*};
}

/// Enums of mesh resources, each value with the text that stands for it.
macro_rules! mesh_enums {
    ($( $(#[$meta:meta])* pub enum $name:ident {
        $( $(#[$vmeta:meta])* $variant:ident = $text:literal ),* $(,)?
    } )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        #[derive(serde::Serialize, serde::Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub enum $name {
            $( $(#[$vmeta])* #[serde(rename = $text)] $variant, )*
        }

        impl $name {
            /// The value as it is written in a resource.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }
        }
    )*};
}
