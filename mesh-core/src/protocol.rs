//! What a service's port speaks, as its declaration says.
//!
//! ```
//! use tower_mesh_core::protocol::Protocol;
//!
//! assert_eq!(Protocol::of_port(Some("http-web"), None, 9080), Protocol::Http1);
//! assert_eq!(Protocol::of_port(Some("grpc"), None, 9080), Protocol::Grpc);
//! assert_eq!(Protocol::of_port(Some("x"), Some("kubernetes.io/h2c"), 80), Protocol::Http2);
//! assert_eq!(Protocol::of_port(None, None, 3306), Protocol::Tcp);
//! assert_eq!(Protocol::of_port(None, None, 9080), Protocol::Auto);
//! ```

/// The declared protocol of a service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// Not declared: found out from the first bytes.
    #[default]
    Auto,
    /// HTTP/1.1 (`http`, `grpc-web`).
    Http1,
    /// HTTP/2 (`http2`).
    Http2,
    /// gRPC over HTTP/2 (`grpc`).
    Grpc,
    /// TLS that belongs to the application (`https`, `tls`).
    Tls,
    /// Bytes (`tcp`, `mongo`, `redis`, `mysql`, and well-known ports).
    Tcp,
    /// Not proxied.
    Udp,
}

impl Protocol {
    /// Decides as Istio does: `appProtocol`, else the part of the port's name before the first `-`, else
    /// the well-known ports 25, 53, 3306 and 27017 are TCP, else [`Auto`](Self::Auto).
    pub fn of_port(name: Option<&str>, app_protocol: Option<&str>, port: u16) -> Self {
        if let Some(app) = app_protocol {
            match app.to_ascii_lowercase().as_str() {
                "kubernetes.io/h2c" => return Self::Http2,
                "kubernetes.io/ws" => return Self::Http1,
                "kubernetes.io/wss" => return Self::Tls,
                other => {
                    if let Some(found) = Self::named(other) {
                        return found;
                    }
                }
            }
        }
        if let Some(found) = name.and_then(Self::prefixed) {
            return found;
        }
        if matches!(port, 25 | 53 | 3306 | 27017) { Self::Tcp } else { Self::Auto }
    }

    fn prefixed(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        // The only name with a dash in it.
        if name == "grpc-web" || name.starts_with("grpc-web-") {
            return Some(Self::Http1);
        }
        Self::named(name.split('-').next().unwrap_or_default())
    }

    /// A protocol by its name alone, as `ServiceEntry` ports give it; case does not matter.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "http" | "grpc-web" => Self::Http1,
            "http2" => Self::Http2,
            "grpc" => Self::Grpc,
            "https" | "tls" => Self::Tls,
            "tcp" | "mongo" | "redis" | "mysql" => Self::Tcp,
            "udp" => Self::Udp,
            _ => return None,
        })
    }

    /// Whether the port carries HTTP for certain.
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2 | Self::Grpc)
    }

    /// Whether the port carries bytes that are never looked into.
    pub const fn is_opaque(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls | Self::Udp)
    }

    /// Whether the mesh speaks HTTP/2 to such a port of its own accord.
    pub const fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}
