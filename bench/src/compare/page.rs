//! One self-contained HTML page: what was measured, tables, plots.
//!
//! It asks for nothing: no script, no font, no picture from elsewhere. Colours
//! follow the reader's preference for light or dark.

use std::fmt::Write;
use std::path::Path;

use super::Record;
use super::charts;
use super::records::{ratios, series, spread};
use crate::contenders::Kind;
use crate::error::{Error, Result};
use crate::plot;
use crate::report::mib;
use crate::work::Pattern;

const STYLE: &str = include_str!("page.css");

/// Text with the characters that mean something to HTML replaced.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Writes the page.
pub(super) fn write(path: &Path, record: &Record) -> Result<()> {
    let html = render(record)?;
    std::fs::write(path, html).map_err(|err| Error::io(path.display(), &err))
}

fn render(record: &Record) -> Result<String> {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>ghostmem bench</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>ghostmem bench</h1>\n"
    );
    facts(&mut html, record);
    legend(&mut html, record);
    let limits = record.limits();
    // Plots of one limit show the one nearest to four times as much data.
    let nearest = limits.iter().copied().min_by(|&a, &b| {
        let off = |limit| (record.ratio(limit) / 4.0).ln().abs();
        off(a).total_cmp(&off(b))
    });
    let Some(limit) = nearest else {
        html.push_str("<p>Nothing was measured.</p>\n</body>\n</html>\n");
        return Ok(html);
    };
    let works = works(record);
    let singles: Vec<_> = works.iter().filter(|(_, t)| *t == works[0].1).collect();
    let ratio = format!("data {:.1} times the limit", record.ratio(limit));

    section(&mut html, "Latency of a touch", &ratio);
    for &&(name, threads) in &singles {
        let svg = charts::latency(record, limit, (name, threads))?;
        figure(&mut html, &with_threads(name, threads), svg);
    }
    section(&mut html, "Throughput over data / limit", "medians");
    for &&(name, threads) in &singles {
        let svg = charts::over_ratio(record, (name, threads))?;
        figure(&mut html, &with_threads(name, threads), svg);
    }
    section(&mut html, "Threads", &format!("medians, {ratio}"));
    for &&(name, _) in &singles {
        let svg = charts::over_threads(record, limit, name)?;
        figure(&mut html, name, svg);
    }
    section(
        &mut html,
        "Memory over time",
        &format!("resident and compressed pages and tables of the last run, {ratio}"),
    );
    let svg = charts::memory(record, limit)?;
    figure(&mut html, "all workloads, one after the other", svg);
    html.push_str("</div>\n");
    for limit in limits {
        table(&mut html, record, limit, &works);
    }
    skipped(&mut html, record);
    html.push_str("</body>\n</html>\n");
    Ok(html)
}

/// Workloads and thread counts, in the order they ran.
fn works(record: &Record) -> Vec<(&'static str, u32)> {
    let mut works: Vec<(&str, u32)> = Vec::new();
    for outcome in record.runs.iter().flat_map(|run| &run.results) {
        let pattern = Pattern::ALL
            .into_iter()
            .find(|pattern| pattern.name() == outcome.workload);
        let Some(pattern) = pattern else { continue };
        let work = (pattern.name(), outcome.threads);
        if !works.contains(&work) {
            works.push(work);
        }
    }
    works
}

fn with_threads(name: &str, threads: u32) -> String {
    match threads {
        1 => format!("{name}, 1 thread"),
        _ => format!("{name}, {threads} threads"),
    }
}

/// Ends the section before, if any, and begins another.
fn section(html: &mut String, title: &str, about: &str) {
    if html.contains("<div class=\"plots\">") {
        html.push_str("</div>\n");
    }
    let (title, about) = (escape(title), escape(about));
    let _ = writeln!(
        html,
        "<h2>{title} <small>{about}</small></h2>\n<div class=\"plots\">"
    );
}

fn figure(html: &mut String, caption: &str, svg: Option<String>) {
    if let Some(svg) = svg {
        let caption = escape(caption);
        let _ = writeln!(
            html,
            "<figure class=\"plot\"><figcaption>{caption}</figcaption>\n{svg}\n</figure>"
        );
    }
}

fn facts(html: &mut String, record: &Record) {
    html.push_str("<dl class=\"facts\">\n");
    let mut fact = |name: &str, value: &str| {
        let (name, value) = (escape(name), escape(value));
        let _ = writeln!(html, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    };
    fact(
        "data",
        &format!(
            "{} MiB, LZ4 ratio {:.2}",
            mib(record.data_bytes),
            record.mix["lz4_ratio"].as_f64().unwrap_or(0.0)
        ),
    );
    if let Some(facts) = record.machine.as_object() {
        for (name, value) in facts {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            fact(&name.replace('_', " "), &text);
        }
    }
    html.push_str("</dl>\n");
}

fn legend(html: &mut String, record: &Record) {
    html.push_str("<ul class=\"legend\">\n");
    for (index, kind) in record.contenders().iter().enumerate() {
        let colour = plot::colour(index);
        let (r, g, b) = (colour.0, colour.1, colour.2);
        let name = escape(&shown(kind));
        let _ = writeln!(
            html,
            "<li><span style=\"background:rgb({r},{g},{b})\"></span>{name}</li>"
        );
    }
    html.push_str("</ul>\n");
}

fn shown(kind: &Kind) -> String {
    match kind {
        Kind::Ghost(backend) => format!("GhostMem {backend}"),
        Kind::Spill => "GhostMem with a file".to_owned(),
        Kind::SpillIdle => "GhostMem, file idle".to_owned(),
        Kind::Plain => "plain memory, no limit".to_owned(),
        Kind::Disk => "swap on disk".to_owned(),
        Kind::File => "mapped file".to_owned(),
        other => other.to_string(),
    }
}

/// Medians of all contenders under one limit.
fn table(html: &mut String, record: &Record, limit: u64, works: &[(&'static str, u32)]) {
    let ratio = record.ratio(limit);
    let _ = writeln!(
        html,
        "<h2>Nanoseconds, data {ratio:.1} times the limit of {} MiB <small>median \
         (min-max); in brackets: times slower than GhostMem inline</small></h2>\n\
         <div class=\"wide\"><table>\n<thead><tr><th>workload</th>",
        mib(limit)
    );
    let kinds = record.contenders();
    for kind in &kinds {
        let _ = write!(html, "<th>{}</th>", escape(&shown(kind)));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for &(name, threads) in works {
        let _ = write!(
            html,
            "<tr><th>{}</th>",
            escape(&with_threads(name, threads))
        );
        let time = |kind| {
            series(record, kind, limit, (name, threads), |o| {
                Some(o.ns_per_touch)
            })
        };
        let inline = time(&Kind::INLINE);
        for kind in &kinds {
            let own = time(kind);
            let text = spread(&own).map_or_else(String::new, |s| s.text());
            let times = ratios(&own, &inline)
                .filter(|_| *kind != Kind::INLINE)
                .map_or_else(String::new, |s| format!(" [{:.2}]", s.median));
            let _ = write!(html, "<td>{text}{times}</td>");
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table></div>\n");
}

fn skipped(html: &mut String, record: &Record) {
    if record.skipped.is_empty() {
        return;
    }
    html.push_str("<h2>Left out</h2>\n<ul>\n");
    for (kind, limit, why) in &record.skipped {
        let (name, why) = (escape(&shown(kind)), escape(why));
        let ratio = record.ratio(*limit);
        let _ = writeln!(
            html,
            "<li>{name}, data {ratio:.1} times the limit: {why}</li>"
        );
    }
    html.push_str("</ul>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that text cannot become markup.
    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }

    /// Proves that a record of nothing still gives a page.
    #[test]
    fn an_empty_record_is_a_page() {
        let record = Record {
            machine: serde_json::json!({ "cpu": "<x>" }),
            mix: serde_json::Value::Null,
            data_bytes: 0,
            runs: Vec::new(),
            small: Vec::new(),
            skipped: Vec::new(),
        };
        let html = render(&record).unwrap();
        assert!(html.contains("&lt;x&gt;") && html.ends_with("</html>\n"));
    }
}
