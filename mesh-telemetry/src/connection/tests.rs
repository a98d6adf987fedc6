use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_core::facts::{Connection, Direction, Transport};
use mesh_core::failure::FailureCode;

use super::*;
use crate::access_log::{Format, Sink};
use crate::metrics::{Exposition, Metrics, OwnWorkload};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_one_line_and_four_counters() {
    let metrics = Metrics::new(OwnWorkload::default());
    let lines = Lines::default();
    let (log, writer) = AccessLog::new(Sink::Writer(Box::new(lines.clone())), Format::Json).unwrap();
    let transport = Transport::Passthrough { sni: Some("db.example.com".into()) };
    let facts = Facts::new(Connection::builder().direction(Direction::Outbound).transport(transport).build());

    let record = ConnectionRecord::with_start(&metrics, log.clone(), &facts, SystemTime::UNIX_EPOCH);
    record.connected();
    record.received(5);
    record.sent(6);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    record.fail(FailureCode::UpstreamReset.into());
    record.fail(FailureCode::Internal.into());
    drop(record);
    log.close();
    writer.run().await;

    let line: serde_json::Value = serde_json::from_slice(&lines.0.lock().unwrap()).unwrap();
    for (key, value) in [
        ("method", serde_json::Value::Null),
        ("response_code", 0.into()),
        ("response_flags", "UC".into()),
        ("bytes_received", 5.into()),
        ("bytes_sent", 6.into()),
        ("duration", 1_500.into()),
        ("requested_server_name", "db.example.com".into()),
        ("reason", "upstream_reset".into()),
    ] {
        assert_eq!(line[key], value, "{key}");
    }
    let text = metrics.encode(Exposition::Classic);
    let has = |name: &str, flag: &str, value: u64| {
        let flag = format!("response_flags=\"{flag}\"");
        let found = text.lines().find(|l| l.starts_with(&format!("{name}{{")) && l.contains(&flag));
        assert_eq!(found.map(|l| l.ends_with(&format!(" {value}"))), Some(true), "{name}: {found:?}");
    };
    has("istio_tcp_connections_opened_total", "-", 1);
    has("istio_tcp_connections_closed_total", "UC", 1);
    has("istio_tcp_sent_bytes_total", "-", 6);
    has("istio_tcp_received_bytes_total", "-", 5);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_reaches_nobody_is_opened_and_closed() {
    let metrics = Metrics::new(OwnWorkload::default());
    let facts = Facts::default();
    let record = ConnectionRecord::new(&metrics, AccessLog::off(), &facts);
    facts.set_failure(FailureCode::Denied.into());
    drop(record);
    let text = metrics.encode(Exposition::Classic);
    for name in ["istio_tcp_connections_opened_total{", "istio_tcp_connections_closed_total{"] {
        assert!(text.lines().any(|l| l.starts_with(name) && l.ends_with(" 1")), "{name}");
    }
}
