//! What is seen of a comparison while it runs.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::contenders::Kind;

/// A bar on standard error; on no terminal, a line per measured process.
pub(super) struct Progress {
    bar: ProgressBar,
    done: std::cell::Cell<u64>,
}

impl Progress {
    pub(super) fn new(steps: u64) -> Self {
        // Drawing at most 5 times a second keeps the bar out of the measurement.
        let target = ProgressDrawTarget::stderr_with_hz(5);
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        let template = "{prefix:<28} {msg:<24} [{bar:30}] {percent:>3} % {elapsed} left {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self {
            bar,
            done: std::cell::Cell::new(0),
        }
    }

    pub(super) fn begin(&self, kind: &Kind, ratio: f64, repetition: u32) {
        let text = format!("{}: {kind}, data {ratio:.1}x", repetition + 1);
        if self.bar.is_hidden() {
            eprintln!("{text}");
        }
        self.bar.set_prefix(text);
    }

    pub(super) fn at(&self, what: String) {
        self.bar.set_message(what);
        self.bar.inc(1);
    }

    pub(super) fn child_done(&self, steps: u64) {
        self.done.set(self.done.get() + steps);
        self.bar.set_position(self.done.get());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
