//! Connections to the control plane.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use mesh_core::normal::Authority;
use mesh_tls::named::NamedServer;
use mesh_tls::{Clock, MAX_PEM, MaybeTls, Pem};
use mesh_xds::client::{Bearer, BoxError, Channel, ClientLimits, connect};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::ControlPlane;

/// The port of `https`, for an address that names none.
const HTTPS: u16 = 443;
/// The largest token that is read, in bytes; Kubernetes' have 1 to 2 KiB.
const MAX_TOKEN: usize = 64 * 1024;
/// How long one of several addresses is tried before the next.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Where a control plane is: `https://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: Arc<str>,
    port: u16,
}

/// Why a text is no address of a control plane.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address of a control plane; write https://HOST or https://HOST:PORT")]
pub struct InvalidAddress(String);

impl FromStr for Address {
    type Err = InvalidAddress;

    /// Reads `https://HOST[:PORT]`.
    ///
    /// ```
    /// use tower_mesh::control::Address;
    ///
    /// let address: Address = "https://mesh-controller.mesh-system.svc:15012".parse().unwrap();
    /// assert_eq!((address.host(), address.port()), ("mesh-controller.mesh-system.svc", 15012));
    /// assert!("http://mesh-controller".parse::<Address>().is_err());
    /// ```
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.chars().take(256).collect());
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        let plain =
            uri.scheme_str() == Some("https") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        let authority = uri.authority().filter(|_| plain).ok_or_else(invalid)?;
        if authority.as_str().contains('@') {
            return Err(invalid());
        }
        let authority = Authority::parse(authority.as_str()).map_err(|_| invalid())?;
        let port = authority.port().unwrap_or(HTTPS);
        Ok(Self { host: authority.name().into(), port })
    }
}

impl Address {
    /// The name by which it is looked up and must identify itself; or an address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = (&self.host, self.port);
        if host.contains(':') {
            write!(f, "https://[{host}]:{port}")
        } else {
            write!(f, "https://{host}:{port}")
        }
    }
}

/// Makes connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    address: Address,
    token: PathBuf,
    ca_root: PathBuf,
    clock: Clock,
    limits: ClientLimits,
}

impl Dialer {
    pub(super) fn new(control: &ControlPlane, clock: Clock) -> Self {
        Self {
            address: control.address.clone(),
            token: control.token.clone(),
            ca_root: control.ca_root.clone(),
            clock,
            limits: control.client_limits(),
        }
    }

    /// The workload's token as it is now.
    pub(super) async fn token(&self) -> Result<String, BoxError> {
        let bytes = read(&self.token, MAX_TOKEN, "the token").await?;
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| format!("the token {} is no text", self.token.display()))?;
        Ok(text.trim().to_owned())
    }

    /// The roots as they are now.
    pub(super) async fn roots(&self) -> Result<Vec<u8>, BoxError> {
        read(&self.ca_root, MAX_PEM, "the control plane's roots").await
    }

    /// A new connection with HTTP/2 over it.
    pub(super) async fn channel(&self) -> Result<Channel, BoxError> {
        let this = self.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let this = this.clone();
            async move { this.secured().await }
        });
        // The scheme is for the connector, which makes TLS itself.
        let authority = self.address.to_string().replacen("https", "http", 1);
        connect(authority.parse::<Uri>()?, connector, &self.limits).await
    }

    /// As [`channel`](Self::channel), with the token on each request.
    pub(super) async fn authenticated(&self) -> Result<Bearer<Channel>, BoxError> {
        let token = self.token().await?;
        Ok(Bearer::new(self.channel().await?, &token)?)
    }

    async fn secured(&self) -> Result<TokioIo<MaybeTls<TcpStream>>, BoxError> {
        let roots = self.roots().await?;
        let file = self.ca_root.display().to_string();
        let server = NamedServer::new(self.address.host(), Pem::new(&file, &roots), &self.clock)?;
        let stream = self.tcp().await?;
        stream.set_nodelay(true)?;
        let secured = server.secure(stream).await;
        let secured = secured.map_err(|e| format!("TLS with {}: {e}; see {file}", self.address))?;
        Ok(TokioIo::new(secured))
    }

    /// A connection to one of the addresses behind the name, in random order: replicas share the load, and one
    /// that is gone is passed over.
    async fn tcp(&self) -> Result<TcpStream, BoxError> {
        let Address { host, port } = &self.address;
        let found = tokio::net::lookup_host((&**host, *port)).await;
        let mut addresses: Vec<SocketAddr> =
            found.map_err(|e| format!("{host} cannot be looked up: {e}"))?.collect();
        fastrand::shuffle(&mut addresses);
        let mut last: BoxError = format!("{host} has no address").into();
        for address in addresses {
            match tokio::time::timeout(ADDRESS_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = format!("no connection to {address}: {error}").into(),
                Err(_) => last = format!("no connection to {address} in {ADDRESS_TIMEOUT:?}").into(),
            }
        }
        Err(last)
    }
}

async fn read(path: &Path, most: usize, what: &str) -> Result<Vec<u8>, BoxError> {
    let unreadable = |e: std::io::Error| format!("{what} {} cannot be read: {e}", path.display());
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    file.take(limit).read_to_end(&mut bytes).await.map_err(unreadable)?;
    if bytes.len() > most {
        return Err(format!("{what} {} is larger than {most} bytes", path.display()).into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_https_and_nothing_else() {
        for (text, told) in [
            ("https://controller", Some("https://controller:443")),
            ("https://controller:15012/", Some("https://controller:15012")),
            ("https://10.0.0.1:15012", Some("https://10.0.0.1:15012")),
            ("https://[::1]:15012", Some("https://[::1]:15012")),
            ("http://controller", None),
            ("controller:15012", None),
            ("https://controller/path", None),
            ("https://user@controller", None),
            ("https://", None),
            ("", None),
        ] {
            let address = text.parse::<Address>().ok().map(|a| a.to_string());
            assert_eq!(address.as_deref(), told, "{text}");
        }
    }
}
