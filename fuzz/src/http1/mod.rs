//! HTTP/1.1, from both ends.

mod request;
mod response;

pub use request::request;
pub use response::response;
