//! Who is measured.

/// A peer, or a variant of a scenario that compares variants of one program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// The `mesh-proxy` that was built.
    Ours,
    /// Another `mesh-proxy`, beside it.
    OursB,
    /// Envoy.
    Envoy,
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// hyper on both sides and nothing between.
    Relay,
    /// No proxy at all.
    Direct,
    /// An axum service alone.
    Alone,
    /// The service with our server layers around it.
    Layers,
    /// The service with our server layers and a rate limit.
    LayersLimit,
    /// The service with our server layers and a JSON access log.
    LayersLog,
    /// The service with tower-http's `TraceLayer`, which writes a JSON line for each request.
    TraceLayer,
}

impl Peer {
    /// Its name in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::OursB => "ours-b",
            Self::Envoy => "envoy",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Relay => "relay",
            Self::Direct => "direct",
            Self::Alone => "axum alone",
            Self::Layers => "mesh layers",
            Self::LayersLimit => "mesh + limit",
            Self::LayersLog => "mesh + log",
            Self::TraceLayer => "TraceLayer",
        }
    }

    /// Whether `--peers` decides about it.
    pub const fn is_chosen(self) -> bool {
        matches!(self, Self::Envoy | Self::Nginx | Self::Haproxy | Self::Relay)
    }

    /// Whether it is a `mesh-proxy`.
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::OursB)
    }
}
