//! Threads and memory over documents, drawn: on white, so that it can be read in dark mode too.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::{CHECKPOINTS, Course, Pool, Sample, Variant};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const SIZE: (u32, u32) = (880, 620);
const PANEL_WIDTH: u32 = 630;
const FONT: &str = "sans-serif";
const TEXT: RGBColor = RGBColor(60, 60, 60);
const GRID: RGBColor = RGBColor(225, 225, 225);

pub fn draw(path: &Path, courses: &[Course]) -> Result<(), Box<dyn Error>> {
    let picture = SVGBackend::new(path, SIZE).into_drawing_area();
    picture.fill(&WHITE)?;
    let (panels, legend) = picture.split_horizontally(PANEL_WIDTH);
    let (upper, lower) = panels.split_vertically(SIZE.1 / 2);
    draw_panel(&upper, "threads", 0.8..10_000.0, courses, |sample| float(sample.threads))?;
    draw_panel(&lower, "memory, MB", 20.0..2_000.0, courses, megabytes)?;
    draw_legend(&legend, courses)?;
    picture.present()?;
    Ok(())
}

fn draw_panel(
    area: &Area,
    what: &str,
    range: Range<f64>,
    courses: &[Course],
    value: fn(&Sample) -> f64,
) -> Result<(), Box<dyn Error>> {
    let most = float(CHECKPOINTS[CHECKPOINTS.len() - 1]);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d((1.0..most).log_scale(), range.log_scale())?;
    let number = |number: &f64| format!("{number:.0}");
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(TEXT)
        .label_style((FONT, 14, &TEXT))
        .x_desc("documents")
        .y_desc(what)
        .x_label_formatter(&number)
        .y_label_formatter(&number)
        .draw()?;
    for course in courses {
        let points = course.samples.iter().filter(|sample| sample.documents > 0);
        let points = points.map(|sample| (float(sample.documents), value(sample)));
        let (style, is_dashed) = style(course.variant);
        if is_dashed {
            chart.draw_series(DashedLineSeries::new(points, 7, 5, style))?;
        } else {
            chart.draw_series(LineSeries::new(points, style))?;
        }
    }
    Ok(())
}

fn draw_legend(area: &Area, courses: &[Course]) -> Result<(), Box<dyn Error>> {
    for (y, course) in (40..).step_by(26).zip(courses) {
        let (style, is_dashed) = style(course.variant);
        let dashes: &[(i32, i32)] = if is_dashed { &[(0, 7), (12, 19), (24, 30)] } else { &[(0, 30)] };
        for (start, end) in dashes {
            area.draw(&PathElement::new([(*start, y), (*end, y)], style))?;
        }
        area.draw(&Text::new(course.variant.name(), (40, y - 6), (FONT, 14).into_font().color(&TEXT)))?;
    }
    Ok(())
}

/// The colour tells pools apart, the dashes caches.
fn style(variant: Variant) -> (ShapeStyle, bool) {
    let (colour, width, is_dashed) = match variant {
        Variant::Library { pool, evicts } => {
            let colour = match pool {
                Pool::NeverClosed => RGBColor(200, 40, 40),
                Pool::Dropped => RGBColor(225, 140, 0),
                Pool::Joined => RGBColor(40, 100, 190),
            };
            (colour, 2, evicts)
        }
        Variant::Pressrun => (RGBColor(30, 130, 60), 4, false),
    };
    (colour.stroke_width(width), is_dashed)
}

fn megabytes(sample: &Sample) -> f64 {
    float(usize::try_from(sample.memory_bytes / 1_000).unwrap()) / 1_000.0
}

/// Exact for what is drawn here.
fn float(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap())
}
