//! A progress bar on standard error, shown only on a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One bar that is reused for phase after phase.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar titled `title`.
    pub(crate) fn new(title: &str) -> Self {
        // Drawing at most 10 times a second keeps the bar out of the measurement.
        let target = ProgressDrawTarget::stderr_with_hz(10);
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let template = "{prefix:>16} {msg:<18} [{bar:40}] {percent:>3} % {elapsed:>4}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(title.to_string());
        Self(bar)
    }

    /// Starts over with another phase.
    pub(crate) fn begin(&self, phase: &str, units: u64) {
        self.0.set_length(units.max(1));
        self.0.set_position(0);
        self.0.reset_elapsed();
        self.0.set_message(phase.to_string());
        self.0.tick();
    }

    /// So much more is done.
    pub(crate) fn advance(&self, units: u64) {
        self.0.inc(units);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
