use std::fs;
use std::io::Write;
use std::time::SystemTime;

use mesh_core::facts::Facts;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;

/// Hands every batch to the test; fails while it is told to.
struct Wire(mpsc::UnboundedSender<Vec<u8>>, Arc<AtomicBool>);

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.1.load(Ordering::Relaxed) {
            return Err(io::Error::other("no space"));
        }
        self.0.send(bytes.to_vec()).unwrap();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wire() -> (Sink, mpsc::UnboundedReceiver<Vec<u8>>, Arc<AtomicBool>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let broken = Arc::new(AtomicBool::new(false));
    (Sink::Writer(Box::new(Wire(sender, Arc::clone(&broken)))), receiver, broken)
}

fn write(log: &AccessLog, code: u16) {
    let facts = Facts::default();
    log.write(&Entry { response_code: code, ..Entry::new(&facts, SystemTime::UNIX_EPOCH) });
}

fn lines(batch: &[u8]) -> usize {
    batch.iter().filter(|b| **b == b'\n').count()
}

#[tokio::test(start_paused = true)]
async fn a_line_is_written_within_250_ms() {
    let (sink, mut batches, _) = wire();
    let (log, writer) = AccessLog::new(sink, Format::Json).unwrap();
    let writer = tokio::spawn(writer.run());
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(777)).await;
        let ended = Instant::now();
        write(&log, 200);
        write(&log, 201);
        assert_eq!(lines(&batches.recv().await.unwrap()), 2, "one batch");
        assert!(ended.elapsed() <= Duration::from_millis(250));
    }
    drop(log);
    writer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_large_batch_does_not_wait() {
    let (sink, mut batches, _) = wire();
    let (log, writer) = AccessLog::new(sink, Format::Json).unwrap();
    let writer = tokio::spawn(writer.run());
    let started = Instant::now();
    let facts = Facts::default();
    let path = [b'x'; MAX_PATH];
    let mut written = 0;
    // Three batches and a bit; the runtime runs the writer when this task waits for it.
    for _ in 0..3 {
        for _ in 0..BATCH / MAX_PATH {
            log.write(&Entry { path: Some(&path), ..Entry::new(&facts, SystemTime::UNIX_EPOCH) });
            written += 1;
        }
        written -= lines(&batches.recv().await.unwrap());
        assert_eq!((written, started.elapsed()), (0, Duration::ZERO));
    }
    drop(log);
    writer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn closing_writes_what_is_buffered_and_ends_the_writer() {
    let (sink, mut batches, _) = wire();
    let (log, writer) = AccessLog::new(sink, Format::Text).unwrap();
    write(&log, 200);
    log.close();
    let closed = Instant::now();
    writer.run().await;
    assert_eq!(closed.elapsed(), Duration::ZERO, "it does not wait for more");
    assert_eq!(lines(&batches.recv().await.unwrap()), 1);
    write(&log, 200);
    assert_eq!(log.dropped(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_dropped_and_counted() {
    let (sink, mut batches, _) = wire();
    let (log, writer) = AccessLog::with_limit(sink, Format::Text, 1_000).unwrap();
    let mut registry = Registry::default();
    log.register(&mut registry);
    for _ in 0..100 {
        write(&log, 200);
    }
    let dropped = log.dropped();
    assert!((80..100).contains(&dropped), "{dropped}");
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains(&format!("mesh_access_log_dropped_total {dropped}\n")), "{text}");

    let writer = tokio::spawn(writer.run());
    let batch = batches.recv().await.unwrap();
    assert!(batch.len() <= 1_000);
    assert_eq!(lines(&batch) as u64 + dropped, 100);
    // There is room again.
    write(&log, 200);
    assert_eq!(lines(&batches.recv().await.unwrap()), 1);
    assert_eq!(log.dropped(), dropped);
    drop(log);
    writer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_fails_loses_lines_and_recovers() {
    let (sink, mut batches, broken) = wire();
    let (log, writer) = AccessLog::new(sink, Format::Json).unwrap();
    let writer = tokio::spawn(writer.run());
    broken.store(true, Ordering::Relaxed);
    write(&log, 500);
    while log.dropped() == 0 {
        tokio::time::sleep(FLUSH_INTERVAL).await;
    }
    broken.store(false, Ordering::Relaxed);
    write(&log, 200);
    let batch = String::from_utf8(batches.recv().await.unwrap()).unwrap();
    assert!(batch.contains("\"response_code\":200") && !batch.contains("500"), "{batch}");
    assert_eq!(log.dropped(), 1);
    log.close();
    writer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_renamed_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let (path, rotated) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    fs::write(&path, "before\n").unwrap();
    let (log, writer) = AccessLog::new(Sink::File(path.clone()), Format::Json).unwrap();
    let writer = tokio::spawn(writer.run());
    write(&log, 201);
    while lines(&fs::read(&path).unwrap()) < 2 {
        tokio::time::sleep(FLUSH_INTERVAL).await;
    }
    fs::rename(&path, &rotated).unwrap();
    write(&log, 202);
    log.close();
    writer.await.unwrap();
    let (old, new) = (fs::read_to_string(rotated).unwrap(), fs::read_to_string(path).unwrap());
    assert!(old.starts_with("before\n") && old.contains("201") && !old.contains("202"), "{old}");
    assert!(new.contains("202") && lines(new.as_bytes()) == 1, "{new}");
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let error = AccessLog::new(Sink::File("/does/not/exist/a.log".into()), Format::Json).unwrap_err();
    assert!(error.to_string().contains("/does/not/exist/a.log"), "{error}");
}

#[test]
fn many_threads_lose_nothing() {
    let (sink, mut batches, _) = wire();
    let (log, writer) = AccessLog::new(sink, Format::Json).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..100).for_each(|_| write(&log, 200)));
        }
    });
    log.close();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(writer.run());
    let mut all = Vec::new();
    while let Ok(batch) = batches.try_recv() {
        all.extend(batch);
    }
    assert_eq!((lines(&all), log.dropped()), (800, 0));
    for line in String::from_utf8(all).unwrap().lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

#[test]
fn off_takes_nothing() {
    let log = AccessLog::off();
    assert!(!log.is_on());
    write(&log, 200);
    log.close();
    assert_eq!(log.dropped(), 0);
}
