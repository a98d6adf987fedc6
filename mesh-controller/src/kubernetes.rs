//! Words for what the API server says.

/// An error in one line: what the API server says where it says something, without the structure around it.
pub(crate) fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({} {})", status.message, status.code, status.reason),
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(error) = source {
                let more = error.to_string();
                if !text.contains(&more) {
                    text.push_str(": ");
                    text.push_str(&more);
                }
                source = error.source();
            }
            text
        }
    }
}
