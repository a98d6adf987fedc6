//! What is read, and what is refused.

mod decode;
mod request;
