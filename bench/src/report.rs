//! The tables and the JSON file.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::measure::LOGGED;
use crate::peer::Peer;
use crate::stats::median;

/// Below this share of its requests a peer's access log counts as incomplete; the rest may be on its way.
const FULL_LOG: f64 = 95.0;

/// A figure that a case measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name in the JSON file.
    pub id: &'static str,
    /// The head of its column.
    pub title: &'static str,
    /// Digits after the point.
    pub digits: usize,
    /// Whether its ratio to the base says something.
    pub ratio: bool,
}

impl Metric {
    /// A figure that is shown with its ratio.
    pub const fn new(id: &'static str, title: &'static str, digits: usize) -> Self {
        Self { id, title, digits, ratio: true }
    }

    /// A figure for orientation.
    pub const fn plain(id: &'static str, title: &'static str, digits: usize) -> Self {
        Self { id, title, digits, ratio: false }
    }
}

/// What one measurement gave, by the names of the metrics.
pub type Sample = BTreeMap<&'static str, f64>;

/// One peer in one case: a sample for each round.
#[derive(Debug, Clone)]
pub struct Row {
    /// Who.
    pub peer: Peer,
    /// What was measured, in the order of the rounds.
    pub rounds: Vec<Sample>,
    /// Why it has no figures.
    pub error: Option<String>,
}

impl Row {
    /// The median of a metric over the rounds; none where something went wrong.
    pub fn median(&self, metric: &Metric) -> Option<f64> {
        if self.error.is_some() {
            return None;
        }
        let values: Vec<f64> =
            self.rounds.iter().filter_map(|sample| sample.get(metric.id).copied()).collect();
        median(&values)
    }

    /// The lowest and highest value of a metric over the rounds.
    fn spread(&self, metric: &Metric) -> Option<(f64, f64)> {
        let mut values: Vec<f64> = self.rounds.iter().filter_map(|s| s.get(metric.id).copied()).collect();
        values.sort_by(f64::total_cmp);
        Some((*values.first()?, *values.last()?))
    }
}

/// The result of a case.
#[derive(Debug, Clone)]
pub struct CaseReport {
    /// `plain`, `tcp/bulk`, ...
    pub id: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// What it measures.
    pub metrics: &'static [Metric],
    /// To whom the ratios are.
    pub base: Peer,
    /// The peers.
    pub rows: Vec<Row>,
    /// What is to be known about this run of it.
    pub notes: Vec<String>,
}

/// A number with a point and thousands apart: `12,345.6`.
pub fn number(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return "-".into();
    }
    let text = format!("{:.digits$}", value.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = String::new();
    if value < 0.0 {
        out.push('-');
    }
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    out + rest
}

impl CaseReport {
    /// The table of medians, with the ratio to the base behind each figure.
    pub fn table(&self) -> String {
        let base = self.rows.iter().find(|row| row.peer == self.base);
        let base_name = self.base.name();
        let mut head = vec![String::new()];
        for metric in self.metrics {
            head.push(metric.title.to_owned());
            if metric.ratio {
                head.push(format!("/{base_name}"));
            }
        }
        let mut lines = vec![head];
        let mut errors = String::new();
        for row in &self.rows {
            let mut cells = vec![row.peer.name().to_owned()];
            for metric in self.metrics {
                let value = row.median(metric);
                cells.push(value.map_or_else(|| "-".into(), |value| number(value, metric.digits)));
                if metric.ratio {
                    let of = base.and_then(|base| base.median(metric));
                    // Differences may be below nothing, and then there is no ratio to speak of.
                    let ratio = value
                        .zip(of)
                        .filter(|(value, of)| *value >= 0.0 && *of > 0.0)
                        .map(|(value, of)| value / of);
                    cells.push(ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}x")));
                }
            }
            lines.push(cells);
            if let Some(error) = &row.error {
                let _ = writeln!(errors, "  {}: ERROR: {}", row.peer.name(), error.trim_end());
            }
        }
        let mut text = format!("{}: {}\n", self.id, self.about);
        text.push_str(&aligned(&lines));
        text.push_str(&errors);
        for row in &self.rows {
            if let Some(logged) = row.median(&LOGGED).filter(|logged| *logged < FULL_LOG) {
                let name = row.peer.name();
                let _ = writeln!(
                    text,
                    "  note: {name} wrote {logged:.0}% of its log lines; its CPU figure leaves out that work"
                );
            }
        }
        for note in &self.notes {
            let _ = writeln!(text, "  note: {note}");
        }
        text
    }

    /// Everything, for the JSON file.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let medians: BTreeMap<&str, f64> =
                    self.metrics.iter().filter_map(|m| Some((m.id, row.median(m)?))).collect();
                let spread: BTreeMap<&str, (f64, f64)> =
                    self.metrics.iter().filter_map(|m| Some((m.id, row.spread(m)?))).collect();
                json!({
                    "peer": row.peer.name(),
                    "error": row.error,
                    "median": medians,
                    "min_max": spread,
                    "rounds": row.rounds,
                })
            })
            .collect();
        let metrics: BTreeMap<&str, &str> = self.metrics.iter().map(|m| (m.id, m.title)).collect();
        json!({
            "case": self.id,
            "about": self.about,
            "base": self.base.name(),
            "metrics": metrics,
            "notes": self.notes,
            "peers": rows,
        })
    }
}

/// Columns under one another, the first to the left, the others to the right.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut out = String::from("  ");
        for (i, (cell, width)) in line.iter().zip(&widths).enumerate() {
            if i == 0 {
                let _ = write!(out, "{cell:<width$}");
            } else {
                let gap = if cell.ends_with('x') || cell.starts_with('/') { " " } else { "   " };
                let _ = write!(out, "{gap}{cell:>width$}");
            }
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &[Metric] = &[Metric::new("rps", "requests/s", 0), Metric::plain("busy", "busy %", 1)];

    fn row(peer: Peer, values: &[(f64, f64)], error: Option<&str>) -> Row {
        let rounds =
            values.iter().map(|(rps, busy)| Sample::from([("rps", *rps), ("busy", *busy)])).collect();
        Row { peer, rounds, error: error.map(str::to_owned) }
    }

    fn report() -> CaseReport {
        CaseReport {
            id: "plain",
            about: "one hop",
            metrics: METRICS,
            base: Peer::Ours,
            rows: vec![
                row(Peer::Ours, &[(1000.0, 99.0), (30_000.0, 98.0), (2000.0, 100.0)], None),
                row(Peer::Envoy, &[(1500.0, 99.5)], None),
                row(Peer::Nginx, &[(9999.0, 99.5)], Some("12 answers were not 2xx")),
            ],
            notes: vec!["short".into()],
        }
    }

    #[test]
    fn the_table_shows_medians_and_ratios_and_no_figure_for_errors() {
        let expected = "\
plain: one hop
          requests/s /ours   busy %
  ours         2,000 1.00x     99.0
  envoy        1,500 0.75x     99.5
  nginx            -     -        -
  nginx: ERROR: 12 answers were not 2xx
  note: short
";
        let table = report().table();
        let squeezed = |text: &str| -> Vec<String> {
            text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
        };
        assert_eq!(squeezed(&table), squeezed(expected), "{table}");
    }

    #[test]
    fn the_file_has_every_round() {
        let json = report().json();
        assert_eq!(json["peers"][0]["rounds"].as_array().unwrap().len(), 3);
        assert_eq!(json["peers"][0]["median"]["rps"], 2000.0);
        assert_eq!(json["peers"][0]["min_max"]["rps"][1], 30_000.0);
        assert_eq!(json["peers"][2]["error"], "12 answers were not 2xx");
        assert!(json["peers"][2]["median"].as_object().unwrap().is_empty());
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(number(1_234_567.0, 0), "1,234,567");
        assert_eq!(number(999.95, 1), "1,000.0");
        assert_eq!(number(-1234.5, 1), "-1,234.5");
        assert_eq!(number(0.5, 2), "0.50");
        assert_eq!(number(f64::NAN, 2), "-");
    }
}
