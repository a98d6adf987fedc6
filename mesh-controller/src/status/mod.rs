//! What is wrong with a resource stands in its status, where its user finds it.
//!
//! In Istio's shape: `status.conditions` has a condition `Reconciled` with reason and message,
//! `status.validationMessages` has a level and a code for each complaint, and `status.observedGeneration` says about
//! which edit all of that is. Only resources of which something is to be said are written to, and those of which
//! something was: there are no thousands of statuses that say that all is well.
//!
//! [`decide`] is the whole of it, without I/O; [`Reports`] is what is known, and [`run`] writes it while the replica
//! leads.
//!
//! ```
//! use mesh_controller::status::{Report, decide};
//! use mesh_core::diagnostic::{Diagnostic, Effect};
//! use mesh_core::resource::{ObjectMeta, VirtualService};
//! use serde_json::{Value, json};
//!
//! let mut report = Report::of::<VirtualService>(&ObjectMeta::new("shop", "reviews"), Value::Null);
//! assert_eq!(decide(&report, "2024-05-01T00:00:00Z"), None);
//!
//! report.diagnostics.push(
//!     Diagnostic::new(Effect::NotApplied, "unknown field; did you mean \"http\"?").field("spec.htpp"),
//! );
//! let status = decide(&report, "2024-05-01T00:00:00Z").unwrap();
//! assert_eq!(status["conditions"][0]["type"], "Reconciled");
//! assert_eq!(status["conditions"][0]["reason"], "NotApplied");
//! assert_eq!(
//!     status["conditions"][0]["message"],
//!     "spec.htpp: unknown field; did you mean \"http\"?; the resource is not applied"
//! );
//! ```

mod decide;
mod reports;
mod writer;

pub use decide::{MAX_MESSAGE, MAX_MESSAGES, decide};
pub use reports::{MAX_REPORTS, Report, Reports};
pub use writer::{WRITE_INTERVAL, run};
