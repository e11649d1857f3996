//! Losses over epochs as a picture: SVG that stands by itself.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
/// What is left of, right of, above and below the axes.
const LEFT: f64 = 72.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 52.0;

/// The most ticks of an axis.
const TICKS: f64 = 8.0;

/// Colours that differ for all kinds of sight (Okabe and Ito, 2008).
const COLOURS: [&str; 2] = ["#0072b2", "#d55e00"];

/// A range of numbers along an axis, whose ticks are round.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// The round numbers about a range.
    fn about(low: f64, high: f64) -> Axis {
        let width = if high > low { high - low } else { low.abs().max(1.0) };
        let rough = width / TICKS;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|&step| step >= rough);
        let step = step.unwrap_or(10.0 * power);
        let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        Axis { low, high: if high > low { high } else { low + step }, step }
    }

    /// Whole numbers from 1 to so many.
    fn epochs(count: usize) -> Axis {
        let high = count.max(2) as f64;
        Axis { low: 1.0, high, step: Axis::about(0.0, high).step.max(1.0).round() }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let first = (self.low / self.step).ceil() as i64;
        let last = (self.high / self.step + 1e-9).floor() as i64;
        (first..=last).map(|number| number as f64 * self.step)
    }

    /// A tick's number, with the decimals that its neighbours differ by.
    fn label(&self, tick: f64) -> String {
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        if decimals > 6 || tick.abs() >= 1e7 { format!("{tick:.1e}") } else { format!("{tick:.decimals$}") }
    }

    /// Where a number is, as a part of the axis.
    fn part(&self, x: f64) -> f64 {
        (x - self.low) / (self.high - self.low)
    }
}

/// The picture of one or two losses; what is not a number is a gap.
pub fn svg(loss: &[f64], validation: &[f64]) -> String {
    let curves = [("loss", loss), ("validation loss", validation)];
    let numbers = || curves.iter().flat_map(|(_, curve)| curve.iter().copied()).filter(|x| x.is_finite());
    let (low, high) = (numbers().fold(f64::INFINITY, f64::min), numbers().fold(f64::NEG_INFINITY, f64::max));
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    // From 0 on, if that is not far.
    let low = if low > 0.0 && low < high / 2.0 { 0.0 } else { low };
    let across = Axis::epochs(loss.len().max(validation.len()));
    let up = Axis::about(low, high);
    let x = |epoch: f64| LEFT + across.part(epoch) * (WIDTH - LEFT - RIGHT);
    let y = |loss: f64| HEIGHT - BOTTOM - up.part(loss) * (HEIGHT - TOP - BOTTOM);
    let mut text = String::new();
    // Writing to a string does not fail.
    let mut line = |s: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{s}");
    };
    line(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
    ));
    line(format_args!(r#"<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>"#));
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for tick in up.ticks() {
        let (at, label) = (y(tick), up.label(tick));
        line(format_args!(r##"<path d="M{LEFT} {at:.1}H{right}" stroke="#ddd"/>"##));
        line(format_args!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#,
            LEFT - 8.0,
            at + 4.0
        ));
    }
    for tick in across.ticks() {
        let (at, label) = (x(tick), across.label(tick));
        line(format_args!(r#"<path d="M{at:.1} {bottom}v5" stroke="black"/>"#));
        line(format_args!(
            r#"<text x="{at:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#,
            bottom + 20.0
        ));
    }
    line(format_args!(r#"<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="black"/>"#));
    let (middle, low) = (f64::midpoint(LEFT, right), HEIGHT - 12.0);
    line(format_args!(r#"<text x="{middle}" y="{low}" text-anchor="middle">epoch</text>"#));
    let middle = f64::midpoint(TOP, bottom);
    line(format_args!(
        r#"<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">loss</text>"#
    ));
    let shown = curves.iter().zip(COLOURS).filter(|((_, curve), _)| !curve.is_empty());
    for (row, ((name, curve), colour)) in shown.enumerate() {
        let path = path(curve, &x, &y);
        line(format_args!(r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>"#));
        if let ([only], true) = (curve, curve.iter().all(|x| x.is_finite())) {
            line(format_args!(r#"<circle cx="{:.1}" cy="{:.1}" r="3" fill="{colour}"/>"#, x(1.0), y(*only)));
        }
        let at = TOP + 16.0 + 18.0 * row as f64;
        line(format_args!(
            r#"<path d="M{:.1} {at}h24" stroke="{colour}" stroke-width="2"/><text x="{:.1}" y="{:.1}">{name}</text>"#,
            right - 150.0,
            right - 120.0,
            at + 4.0
        ));
    }
    line(format_args!("</svg>"));
    text
}

/// The lines between neighbouring numbers.
fn path(curve: &[f64], x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) -> String {
    let mut path = String::new();
    let mut drawn = false;
    for (epoch, &loss) in curve.iter().enumerate() {
        if loss.is_finite() {
            let letter = if drawn { 'L' } else { 'M' };
            let _ = write!(path, "{letter}{:.1} {:.1}", x(epoch as f64 + 1.0), y(loss));
        }
        drawn = loss.is_finite();
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let ticks = |low, high| {
            let axis = Axis::about(low, high);
            axis.ticks().map(|tick| axis.label(tick)).collect::<Vec<_>>()
        };
        assert_eq!(ticks(0.0, 1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(ticks(0.013, 0.018), ["0.013", "0.014", "0.015", "0.016", "0.017", "0.018"]);
        assert_eq!(Axis::epochs(3).ticks().collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
        assert_eq!(Axis::epochs(100).ticks().collect::<Vec<_>>(), [20.0, 40.0, 60.0, 80.0, 100.0]);
    }

    #[test]
    fn any_numbers_make_a_picture() {
        let cases: [(&[f64], &[f64]); 5] = [
            (&[], &[]),
            (&[1.0], &[]),
            (&[0.5, 0.5], &[0.5, 0.5]),
            (&[f64::NAN, 2.0, f64::INFINITY, 1.0], &[]),
            (&[-1.0, -3.0, 1e-30], &[1e30, 2.0, 0.0]),
        ];
        for (loss, validation) in cases {
            let svg = svg(loss, validation);
            assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert_eq!(svg.contains("validation"), !validation.is_empty());
        }
    }
}
