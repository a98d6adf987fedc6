//! Says who asks by a token, on each request.
//!
//! ```
//! use tower_mesh_xds::client::Bearer;
//!
//! let channel = tower::service_fn(|request: http::Request<()>| async move {
//!     let said = request.headers()["authorization"].clone();
//!     Ok::<_, std::convert::Infallible>(said)
//! });
//! let channel = Bearer::new(channel, " eyJhbGciOi\n").unwrap();
//! # use tower::ServiceExt;
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! assert_eq!(channel.oneshot(http::Request::new(())).await.unwrap(), "Bearer eyJhbGciOi");
//! # });
//! assert!(Bearer::new((), "").is_err());
//! ```

use std::fmt;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request};
use tower_service::Service;

/// A channel whose requests carry a token. Readiness: pass-through.
#[derive(Clone)]
pub struct Bearer<T> {
    inner: T,
    header: HeaderValue,
}

/// A text that cannot be a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token is no token; is the file right?")]
pub struct InvalidToken;

impl<T> Bearer<T> {
    /// Puts `token` on each request to `inner`; white space around it does not count.
    ///
    /// # Errors
    /// When it is empty, or holds what no header may hold.
    pub fn new(inner: T, token: &str) -> Result<Self, InvalidToken> {
        let token = token.trim();
        if token.is_empty() {
            return Err(InvalidToken);
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| InvalidToken)?;
        header.set_sensitive(true);
        Ok(Self { inner, header })
    }
}

impl<T, B> Service<Request<B>> for Bearer<T>
where
    T: Service<Request<B>>,
{
    type Response = T::Response;
    type Error = T::Error;
    type Future = T::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), T::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> T::Future {
        request.headers_mut().insert(AUTHORIZATION, self.header.clone());
        self.inner.call(request)
    }
}

impl<T> fmt::Debug for Bearer<T> {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer")
    }
}
