//! What is read and written, without and with hyper at the other end.

mod attacks;
mod exchange;
mod hyper_too;
