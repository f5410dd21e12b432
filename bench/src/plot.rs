//! Lines over two axes, as SVG text.
//!
//! Ink and grid are drawn in two fixed colours that a page's style sheet
//! replaces, so that one picture serves a light and a dark page. Series have
//! colours that are told apart on both. There is no text but numbers and axis
//! names in a picture: titles and the legend belong to the page. A picture that
//! stands alone has both ([`draw_alone`]).

use std::fmt::Display;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::error::{Error, Result};

/// Replaced by the page's ink.
const INK: RGBColor = RGBColor(16, 16, 16);
/// Replaced by the page's grid.
const GRID: RGBColor = RGBColor(221, 221, 221);
const SIZE: (u32, u32) = (620, 380);

/// One colour per contender, by its place in the record.
const COLOURS: [RGBColor; 12] = [
    RGBColor(127, 127, 127),
    RGBColor(31, 119, 214),
    RGBColor(230, 126, 34),
    RGBColor(39, 154, 85),
    RGBColor(204, 60, 60),
    RGBColor(142, 96, 190),
    RGBColor(150, 110, 90),
    RGBColor(214, 92, 166),
    RGBColor(150, 150, 30),
    RGBColor(20, 160, 175),
    RGBColor(90, 120, 160),
    RGBColor(180, 140, 60),
];

/// The colour of a contender.
pub(crate) fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

/// One line: the index of its contender and its points.
pub(crate) type Line = (usize, Vec<(f64, f64)>);

fn failed(err: impl Display) -> Error {
    Error::Failed(format!("drawing a plot: {err}"))
}

/// Smallest and largest of what `pick` picks; `None` without points.
pub(crate) fn extent(lines: &[Line], pick: fn(&(f64, f64)) -> f64) -> Option<Range<f64>> {
    let values = || lines.iter().flat_map(|(_, points)| points).map(pick);
    let low = values().reduce(f64::min)?;
    Some(low..values().reduce(f64::max)?)
}

/// How an axis is numbered.
pub(crate) struct Axis<'a> {
    pub(crate) name: &'a str,
    pub(crate) label: &'a dyn Fn(&f64) -> String,
    pub(crate) labels: usize,
}

/// What a picture has that stands alone.
struct Words<'a> {
    title: &'a str,
    /// Of each line.
    names: &'a [&'a str],
}

/// Draws lines with a dot at each point if there are few.
pub(crate) fn draw<X, Y>(
    lines: &[Line],
    ranges: (X, Y),
    axes: (Axis<'_>, Axis<'_>),
) -> Result<String>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    drawn(lines, ranges, axes, None)
}

/// Draws a picture that belongs to no page: on white, with a title and a name for each
/// line.
pub(crate) fn draw_alone(
    title: &str,
    lines: &[(&str, Line)],
    (x, y): (Range<f64>, Range<f64>),
    axes: (Axis<'_>, Axis<'_>),
) -> Result<String> {
    let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
    let lines: Vec<Line> = lines.iter().map(|(_, line)| line.clone()).collect();
    let words = Words {
        title,
        names: &names,
    };
    drawn(&lines, (x, y), axes, Some(&words))
}

fn drawn<X, Y>(
    lines: &[Line],
    (x, y): (X, Y),
    (x_axis, y_axis): (Axis<'_>, Axis<'_>),
    words: Option<&Words<'_>>,
) -> Result<String>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut svg = String::new();
    {
        let area: DrawingArea<_, Shift> =
            SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut builder = ChartBuilder::on(&area);
        builder
            .margin(10)
            .x_label_area_size(44)
            .y_label_area_size(64);
        if let Some(words) = words {
            area.fill(&WHITE).map_err(failed)?;
            let style = ("sans-serif", 17).into_font().color(&INK);
            builder.caption(words.title, style);
        }
        let mut chart = builder.build_cartesian_2d(x, y).map_err(failed)?;
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 14).into_font().color(&INK))
            .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
            .x_desc(x_axis.name)
            .y_desc(y_axis.name)
            .x_labels(x_axis.labels)
            .y_labels(y_axis.labels)
            .x_label_formatter(x_axis.label)
            .y_label_formatter(y_axis.label)
            .draw()
            .map_err(failed)?;
        for (number, (index, points)) in lines.iter().enumerate() {
            let colour = colour(*index);
            let series = chart
                .draw_series(LineSeries::new(
                    points.iter().copied(),
                    colour.stroke_width(2),
                ))
                .map_err(failed)?;
            if let Some(name) = words.and_then(|words| words.names.get(number)) {
                series.label(*name).legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
            }
            if points.len() <= 16 {
                chart
                    .draw_series(
                        points
                            .iter()
                            .map(|&point| Circle::new(point, 4, colour.filled())),
                    )
                    .map_err(failed)?;
            }
        }
        if words.is_some() {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE)
                .border_style(GRID)
                .label_font(("sans-serif", 14).into_font().color(&INK))
                .draw()
                .map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// A number with as many digits as tell values apart.
pub(crate) fn plain(value: &f64) -> String {
    if value.abs() >= 10.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{}", (value * 100.0).round() / 100.0)
    }
}
