//! What the demo prints while it runs: a table that redraws on a terminal, plain lines elsewhere.

use std::io::Write;
use std::time::Duration;

use super::load::Window;

/// One look at the load.
pub(super) struct Row<'a> {
    pub(super) at: Duration,
    pub(super) weight: u32,
    pub(super) window: &'a Window,
    pub(super) over: Duration,
}

/// Prints rows.
pub(super) struct Table {
    terminal: bool,
    drawn: bool,
    bars: Vec<String>,
}

/// How many past rows a terminal shows.
const HISTORY: usize = 10;

impl Table {
    pub(super) fn new(terminal: bool) -> Self {
        println!("   time  weights   seen v1/v2      rate  failed      p50      p99");
        Self { terminal, drawn: false, bars: Vec::new() }
    }

    pub(super) fn row(&mut self, row: &Row<'_>) {
        let line = line(row);
        if !self.terminal {
            println!("{line}");
            return;
        }
        self.bars.push(format!("{line}  {}", bar(row.window.share_v1())));
        if self.bars.len() > HISTORY {
            self.bars.remove(0);
            // Up to the first row; each is then written over.
            print!("\x1b[{HISTORY}A");
        } else if self.drawn {
            print!("\x1b[{}A", self.bars.len() - 1);
        }
        self.drawn = true;
        for line in &self.bars {
            println!("\x1b[2K{line}");
        }
        let _ = std::io::stdout().flush();
    }

    /// A line that stays between the rows.
    pub(super) fn note(&mut self, text: &str) {
        if self.terminal {
            self.bars.clear();
            self.drawn = false;
        }
        println!("-- {text}");
    }

    pub(super) fn end(&mut self) {
        self.bars.clear();
    }
}

fn line(row: &Row<'_>) -> String {
    let share = row.window.share_v1() * 100.0;
    let (p50, p99) = row.window.percentiles();
    let rate = f64::from(row.window.requests()) / row.over.as_secs_f64().max(0.001);
    format!(
        "{:6.1}s   {:>3}/{:<3}   {:>4.0}% /{:>3.0}%  {:>6.0}/s  {:>6}  {:>7}  {:>7}",
        row.at.as_secs_f64(),
        row.weight,
        100 - row.weight,
        share,
        100.0 - share,
        rate,
        row.window.failed,
        millis(p50),
        millis(p99),
    )
}

fn millis(time: Duration) -> String {
    format!("{:.2}ms", time.as_secs_f64() * 1000.0)
}

fn bar(share: f64) -> String {
    let v1 = (share.clamp(0.0, 1.0) * 20.0).round() as usize;
    format!("\x1b[32m{}\x1b[33m{}\x1b[0m", "#".repeat(v1), "+".repeat(20 - v1))
}
