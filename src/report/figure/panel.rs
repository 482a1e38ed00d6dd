//! Figures of several panels: curves with bands, dots, and histograms.

use std::ops::Range;

use plotters::prelude::*;

use super::{Area, COLOURS, Drawing, TEXT, axes, drawn, range};

const SIZE: (u32, u32) = (420, 260);
/// Width of a legend.
const LEGEND: u32 = 84;

/// What is drawn in a [`Panel`].
#[derive(Debug, Clone)]
pub enum Series {
    /// A curve.
    Curve {
        /// Its name in the legend.
        name: String,
        /// Its points; those that are not finite are left out.
        points: Vec<(f64, f64)>,
        /// A band around it: x, lower and upper end; none if empty.
        band: Vec<(f64, f64, f64)>,
    },
    /// A point for each of many things.
    Dots {
        /// Its name in the legend.
        name: String,
        /// The points; those that are not finite are left out.
        points: Vec<(f64, f64)>,
    },
    /// A histogram.
    Bars {
        /// Where bars begin and end: one more than there are counts.
        edges: Vec<f64>,
        /// Height of each.
        counts: Vec<usize>,
    },
}

/// One of the parts of a figure, with its own axes.
#[derive(Debug, Clone)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// Name of the horizontal axis.
    pub x_name: String,
    /// Name of the vertical axis.
    pub y_name: String,
    /// What is drawn; a legend says which is which of several.
    pub series: Vec<Series>,
}

/// Panels in rows of `columns`, as SVG without a fixed colour of its background.
pub fn panels(panels: &[Panel], columns: usize) -> String {
    let columns = columns.clamp(1, panels.len().max(1));
    let rows = panels.len().div_ceil(columns).max(1);
    drawn((SIZE.0 * columns as u32, SIZE.1 * rows as u32), |root| {
        let areas = root.split_evenly((rows, columns));
        areas.iter().zip(panels).try_for_each(|(area, panel)| draw_panel(area, panel))
    })
}

fn draw_panel(area: &Area, panel: &Panel) -> Drawing {
    let (xs, ys) = ranges(&panel.series);
    let names: Vec<(&str, RGBColor)> = panel
        .series
        .iter()
        .zip(COLOURS.into_iter().cycle())
        .filter_map(|(series, colour)| match series {
            Series::Curve { name, .. } | Series::Dots { name, .. } => Some((name.as_str(), colour)),
            Series::Bars { .. } => None,
        })
        .collect();
    // Beside the axes: inside it would hide what it explains.
    let (area, legend) = area.split_horizontally(SIZE.0 - if names.len() > 1 { LEGEND } else { 0 });
    for (line, (name, colour)) in names.iter().enumerate().filter(|_| names.len() > 1) {
        let y = 44 + 15 * line as i32;
        legend.draw(&Rectangle::new([(2, y), (14, y + 3)], colour.filled()))?;
        legend.draw(&Text::new(*name, (19, y - 4), ("sans-serif", 11).into_font().color(&TEXT)))?;
    }
    let mut chart = ChartBuilder::on(&area)
        .caption(&panel.title, ("sans-serif", 15).into_font().color(&TEXT))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(56)
        .build_cartesian_2d(xs, ys)?;
    axes(&mut chart, (&panel.x_name, &panel.y_name), (6, 6))?;
    let finite = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite();
    for (series, colour) in panel.series.iter().zip(COLOURS.into_iter().cycle()) {
        match series {
            Series::Curve { points, band, .. } => {
                let upper = band.iter().map(|&(x, _, high)| (x, high));
                let lower = band.iter().rev().map(|&(x, low, _)| (x, low));
                let outline: Vec<(f64, f64)> = upper.chain(lower).filter(|p| finite(&p)).collect();
                if outline.len() > 2 {
                    chart.draw_series([Polygon::new(outline, colour.mix(0.18).filled())])?;
                }
                let line = LineSeries::new(points.iter().filter(finite).copied(), colour.stroke_width(2));
                chart.draw_series(line)?;
            }
            Series::Dots { points, .. } => {
                let dots = points.iter().filter(finite).map(|&p| Circle::new(p, 2, colour.mix(0.6).filled()));
                chart.draw_series(dots)?;
            }
            Series::Bars { edges, counts } => {
                let bars = edges.windows(2).zip(counts).map(|(edge, &count)| {
                    Rectangle::new([(edge[0], 0.0), (edge[1], count as f64)], colour.mix(0.7).filled())
                });
                chart.draw_series(bars)?;
            }
        }
    }
    Ok(())
}

/// Axes that hold all that is finite; histograms begin at 0.
fn ranges(series: &[Series]) -> (Range<f64>, Range<f64>) {
    let (mut xs, mut ys) = (Vec::new(), Vec::new());
    for series in series {
        match series {
            Series::Curve { points, band, .. } => {
                xs.extend(points.iter().map(|p| p.0));
                ys.extend(points.iter().map(|p| p.1).chain(band.iter().flat_map(|b| [b.1, b.2])));
            }
            Series::Dots { points, .. } => {
                xs.extend(points.iter().map(|p| p.0));
                ys.extend(points.iter().map(|p| p.1));
            }
            Series::Bars { edges, counts } => {
                xs.extend(edges);
                ys.extend(counts.iter().map(|&count| count as f64).chain([0.0]));
            }
        }
    }
    (range(xs), range(ys))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(series: Vec<Series>) -> Panel {
        let name = |text: &str| text.to_owned();
        Panel { title: name("a title"), x_name: name("across"), y_name: name("up"), series }
    }

    #[test]
    fn every_panel_is_drawn_and_what_is_no_number_is_left_out() {
        let curve = Series::Curve {
            name: "unit".into(),
            points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)],
            band: vec![(0.0, 0.5, 1.5), (1.0, f64::NAN, 2.0), (2.0, 2.0, 4.0)],
        };
        let dots = Series::Dots { name: "units".into(), points: vec![(1.0, 2.0), (f64::INFINITY, 1.0)] };
        let bars = Series::Bars { edges: vec![0.0, 1.0, 2.0], counts: vec![3, 5] };
        let svg = panels(&[panel(vec![curve]), panel(vec![dots]), panel(vec![bars]), panel(Vec::new())], 2);
        assert!(svg.starts_with("<svg") && svg.contains("width=\"840\" height=\"520\""), "{}", &svg[..200]);
        assert_eq!(svg.matches("a title").count(), 4);
        assert!(svg.contains("<polygon") && svg.contains("<circle") && !svg.contains("NaN"));
    }

    #[test]
    fn axes_hold_the_bands_and_histograms_begin_at_0() {
        let curve = Series::Curve {
            name: "unit".into(),
            points: vec![(0.0, 1.0), (4.0, 2.0)],
            band: vec![(0.0, -1.0, 5.0)],
        };
        let (xs, ys) = ranges(&[curve]);
        assert!(xs.start < 0.0 && xs.end > 4.0 && ys.start < -1.0 && ys.end > 5.0);
        let (_, ys) = ranges(&[Series::Bars { edges: vec![0.0, 1.0], counts: vec![7] }]);
        assert!(ys.contains(&0.0) && ys.contains(&7.0));
        assert_eq!(ranges(&[]), (0.0..1.0, 0.0..1.0));
    }
}
