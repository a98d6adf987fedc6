//! Where resources come from.
//!
//! [`Directory`] reads a directory of YAML and follows its changes. What follows from a change is decided by
//! [`merge`], which does no I/O:
//!
//! - additions and changes apply document by document;
//! - a deletion is believed only from a file that loaded whole;
//! - a resource that breaks keeps its last good form, or else (a security resource) takes its closed
//!   reading, or else is not applied;
//! - the same resource in two files is an error that names both, and the one in force before stays.

mod directory;
mod merge;
mod scan;

pub use directory::{Directory, DirectoryError, Loaded, POLL, POLL_SLOWEST, SETTLE};
pub use merge::{Content, FileContent, State, merge};
pub use scan::{MAX_DIRECTORY_DEPTH, MAX_FILE_BYTES, MAX_FILES};
