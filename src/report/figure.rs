//! Numbers for the eye, and curves.

mod panel;

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;

use crate::bench;
pub use panel::{Panel, Series, panels};

/// `1216858464` as `1,216,858,464`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number for the eye: three digits that count, or all those before the point.
pub fn significant(number: impl Into<f64>) -> String {
    let number: f64 = number.into();
    let size = number.abs();
    let magnitude = size.log10().floor();
    let digits = match magnitude {
        _ if size == 0.0 || !size.is_finite() => size.to_string(),
        _ if !(-4.0..15.0).contains(&magnitude) => format!("{size:.2e}").replace('-', "−"),
        _ if magnitude >= 3.0 => grouped(size.round() as u64),
        _ => format!("{size:.*}", (2.0 - magnitude) as usize),
    };
    if number < 0.0 { format!("−{digits}") } else { digits }
}

/// The same without zeros at the end, as for an axis.
pub fn label(number: &f64) -> String {
    // What a range's margin and rounding leave of zero.
    let text = if number.abs() < 1e-12 { "0".into() } else { significant(*number) };
    match text.contains('.') && !text.contains('e') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Of curves and bars, legible on light and dark.
const COLOURS: [RGBColor; 6] = [
    RGBColor(66, 133, 190),
    RGBColor(214, 110, 42),
    RGBColor(70, 155, 92),
    RGBColor(165, 92, 178),
    RGBColor(178, 150, 40),
    RGBColor(100, 100, 100),
];

/// Of words and axes, the same.
const TEXT: RGBColor = RGBColor(128, 128, 128);

type Drawing = std::result::Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b, X, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>;

/// An SVG of this size, without a fixed colour of its background.
fn drawn(size: (u32, u32), draw: impl FnOnce(&Area) -> Drawing) -> String {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let present = |()| Ok(root.present()?);
        draw(&root).and_then(present).expect("drawing into a string cannot fail");
    }
    svg
}

/// From the least to the greatest of those that are finite, and a little more on both sides.
fn range(values: impl IntoIterator<Item = f64>) -> Range<f64> {
    let finite = values.into_iter().filter(|value| value.is_finite());
    let (low, high) = finite.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    let margin = 0.05 * (high - low).max(1e-9 + 1e-3 * high.abs());
    if low > high { 0.0..1.0 } else { low - margin..high + margin }
}

/// Axes that leave the eye to what is drawn.
fn axes<X, Y>(chart: &mut Chart<X, Y>, names: (&str, &str), labels: (usize, usize)) -> Drawing
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(names.0)
        .y_desc(names.1)
        .x_labels(labels.0)
        .y_labels(labels.1)
        .x_label_formatter(&label)
        .y_label_formatter(&label)
        .axis_style(TEXT)
        .bold_line_style(TEXT.mix(0.25))
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 12).into_font().color(&TEXT))
        .draw()?;
    Ok(())
}

/// Says what each series is.
fn name_series<'a, 'b: 'a, X, Y>(chart: &mut Chart<'a, 'b, X, Y>, position: SeriesLabelPosition) -> Drawing
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    let style = ("sans-serif", 12).into_font().color(&TEXT);
    chart.configure_series_labels().position(position).label_font(style).border_style(TRANSPARENT).draw()?;
    Ok(())
}

/// A curve in a [`curves`] plot.
pub struct Curve<'a> {
    /// Its name in the legend.
    pub name: &'a str,
    /// Its points; those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// Curves over a common axis, as SVG without a fixed colour of its background.
pub fn curves(title: &str, x_name: &str, curves: &[Curve]) -> String {
    let finite = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite();
    let points: Vec<(f64, f64)> =
        curves.iter().flat_map(|c| c.points.iter().filter(finite)).copied().collect();
    let (xs, ys) = (range(points.iter().map(|p| p.0)), range(points.iter().map(|p| p.1)));
    drawn((420, 260), |root| {
        let mut chart = ChartBuilder::on(root)
            .caption(title, ("sans-serif", 15).into_font().color(&TEXT))
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(56)
            .build_cartesian_2d(xs, ys)?;
        axes(&mut chart, (x_name, ""), (5, 6))?;
        for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
            let line = LineSeries::new(curve.points.iter().filter(finite).copied(), colour.stroke_width(2));
            let legend = move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(2));
            chart.draw_series(line)?.label(curve.name).legend(legend);
        }
        if curves.len() > 1 {
            name_series(&mut chart, SeriesLabelPosition::UpperRight)?;
        }
        Ok(())
    })
}

/// Histograms over the same bins from `low` to `high`, each as shares of its own total, and a line at `mark`. As SVG.
pub fn histograms(
    title: &str,
    x_name: &str,
    (low, high): (f64, f64),
    histograms: &[(&str, &[u32])],
    mark: f64,
) -> String {
    let shares = |counts: &[u32]| -> Vec<f64> {
        let total = counts.iter().sum::<u32>().max(1);
        counts.iter().map(|&count| 100.0 * f64::from(count) / f64::from(total)).collect()
    };
    let most = histograms.iter().flat_map(|(_, counts)| shares(counts)).fold(1.0, f64::max);
    let high = if high > low { high } else { low + 1.0 };
    drawn((560, 300), |root| {
        let mut chart = ChartBuilder::on(root)
            .caption(title, ("sans-serif", 15).into_font().color(&TEXT))
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(56)
            .build_cartesian_2d(low..high, 0.0..1.05 * most)?;
        axes(&mut chart, (x_name, "% of its pictures"), (11, 11))?;
        for ((name, counts), colour) in histograms.iter().zip(COLOURS) {
            let width = (high - low) / counts.len() as f64;
            let bars = shares(counts).into_iter().enumerate().map(|(bin, share)| {
                let left = low + bin as f64 * width;
                Rectangle::new([(left, 0.0), (left + width, share)], colour.mix(0.5).filled())
            });
            let legend =
                move |(x, y)| Rectangle::new([(x, y - 4), (x + 14, y + 4)], colour.mix(0.5).filled());
            chart.draw_series(bars)?.label(*name).legend(legend);
        }
        let line = [(mark, 0.0), (mark, 1.05 * most)];
        chart.draw_series(LineSeries::new(line, TEXT.stroke_width(2)))?;
        // On the wider side of the mark.
        let left = mark - low > high - mark;
        name_series(
            &mut chart,
            if left { SeriesLabelPosition::UpperLeft } else { SeriesLabelPosition::UpperRight },
        )?;
        Ok(())
    })
}

/// Rate over arithmetic intensity, both logarithmic: each kernel on the most threads measured, below what the machine can do
/// by its arithmetic and by its memory.
pub fn roofline(report: &bench::Report) -> String {
    let Some(peak) = report.peaks.last() else { return String::new() };
    let here = report.entries.iter().filter(|entry| entry.threads == peak.threads);
    let points: Vec<(&str, f64, f64)> =
        here.filter_map(|e| Some((e.name.as_str(), e.intensity?, e.gflops?))).collect();
    let roof = |x: f64| peak.gflops.min(x * peak.read_gb_per_second);
    let most = points.iter().map(|p| p.1).fold(1000.0, f64::max) * 2.0;
    let least = points.iter().map(|p| p.2).fold(peak.gflops, f64::min) / 3.0;
    drawn((760, 460), |root| {
        let caption = format!("{} on {} threads", report.cpu, peak.threads);
        let mut chart = ChartBuilder::on(root)
            .caption(caption, ("sans-serif", 15).into_font().color(&TEXT))
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(56)
            .build_cartesian_2d((0.1..most).log_scale(), (least..peak.gflops * 1.6).log_scale())?;
        axes(&mut chart, ("FLOP for each byte that must move", "GFLOP/s"), (11, 11))?;
        let ridge = peak.gflops / peak.read_gb_per_second;
        let line = [0.1, ridge, most].map(|x| (x, roof(x).max(least)));
        chart.draw_series(LineSeries::new(line, TEXT.stroke_width(2)))?;
        for (number, (name, x, y)) in points.iter().enumerate() {
            let colour = Palette99::pick(number).to_rgba();
            chart
                .draw_series([Circle::new((*x, *y), 5, colour.filled())])?
                .label(*name)
                .legend(move |(x, y)| Circle::new((x + 7, y), 4, colour.filled()));
        }
        name_series(&mut chart, SeriesLabelPosition::LowerLeft)?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_but_no_digit_before_the_point_is_lost() {
        let shown = [0.0, 1.0, 5.667182, -0.04996, 31.63, 417.83, 1160.2, -1216858464.0, 2.5e-7];
        let want = ["0", "1.00", "5.67", "−0.0500", "31.6", "418", "1,160", "−1,216,858,464", "2.50e−7"];
        assert_eq!(shown.map(|n: f64| significant(n)), want);
        assert_eq!(
            [0.0, 1e-17, 0.35, 0.4, 100.0, 20_000.0].map(|n| label(&n)),
            ["0", "0", "0.35", "0.4", "100", "20,000"]
        );
    }

    #[test]
    fn curves_leave_out_what_is_no_number() {
        let svg = curves(
            "loss",
            "step",
            &[Curve { name: "a", points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 0.5)] }],
        );
        assert!(svg.starts_with("<svg") && !svg.contains("NaN"));
    }
}
