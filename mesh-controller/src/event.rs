//! What happens to an object of the cluster, in the mesh's own words.
//!
//! Whoever watches Kubernetes makes these; whoever keeps the [`Store`](mesh_core::store::Store) takes them.
//!
//! ```
//! use mesh_controller::event::Event;
//! use mesh_core::resource::{Resource, Service};
//!
//! let service = Resource::new("default", "reviews", Service::default());
//! let put = Event::Put(service.clone().into());
//! let gone = Event::Gone(service.reference());
//! assert_eq!(put.reference(), gone.reference());
//! assert_eq!(put.reference().to_string(), "Service default/reviews");
//! ```

use mesh_core::diagnostic::ResourceRef;
use mesh_core::resource::Object;

/// One object is there in this form from now on, or is not there any more.
///
/// Which of several is newer is its maker's to know: they are applied in the order in which they come.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It is new or has changed. Carries what is put in force: the object as its user wrote it, its last good
    /// form, or its closed reading.
    Put(Object),
    /// It was deleted.
    Gone(ResourceRef),
}

impl Event {
    /// Which object it is about.
    pub fn reference(&self) -> ResourceRef {
        match self {
            Self::Put(object) => object.reference(),
            Self::Gone(reference) => reference.clone(),
        }
    }
}
