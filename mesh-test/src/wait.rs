//! Waiting for a condition with a bound and a reason.

use std::time::Duration;

use tokio::time::Instant;

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(10);

/// Looks at `condition` until it holds.
///
/// # Panics
/// With `what` when it does not hold within `timeout`.
pub async fn until(timeout: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + timeout;
    loop {
        match tokio::time::timeout_at(give_up, condition()).await {
            Ok(true) => return,
            Ok(false) if Instant::now() < give_up => tokio::time::sleep(POLL).await,
            Ok(false) | Err(_) => panic!("waited {timeout:?} in vain for: {what}"),
        }
    }
}

/// [`until`] with whole seconds.
pub async fn until_secs(seconds: u64, what: &str, condition: impl AsyncFnMut() -> bool) {
    until(Duration::from_secs(seconds), what, condition).await;
}

/// Looks until `attempt` gives a value; the last error is part of the panic.
///
/// # Panics
/// With `what` and the last error when there is no value within `timeout`.
pub async fn until_ok<T, E: std::fmt::Display>(
    timeout: Duration,
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let give_up = Instant::now() + timeout;
    let mut last = String::from("the first attempt did not end");
    loop {
        match tokio::time::timeout_at(give_up, attempt()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => {}
        }
        if Instant::now() >= give_up {
            panic!("waited {timeout:?} in vain for: {what}; last: {last}");
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn waits_until_it_holds() {
        let mut looks = 0;
        super::until_secs(1, "the third look", async || {
            looks += 1;
            looks == 3
        })
        .await;
        assert_eq!(looks, 3);
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "in vain for: rain; last: sun")]
    async fn names_what_it_waited_for() {
        super::until_ok(Duration::from_secs(1), "rain", async || Err::<(), _>("sun")).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "in vain for: an answer")]
    async fn a_look_that_never_ends_is_bounded() {
        super::until_secs(1, "an answer", async || std::future::pending().await).await;
    }
}
