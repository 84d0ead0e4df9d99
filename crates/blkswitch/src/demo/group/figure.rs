//! The figure: the samples and events as SVG.

use std::fmt::Write as _;

use super::watch::{Event, Sample};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 88.0;
const PLOT_HEIGHT: f64 = 150.0;
const GAP: f64 = 64.0;
const LINE: f64 = 19.0;
const FORWARDED: &str = "#d97706";
const REQUESTS: &str = "#2563eb";

/// Draws two plots over time: the share of forwarded requests, and requests per second. The events
/// stand below.
pub(super) fn draw(members: u32, samples: &[Sample], events: &[Event]) -> String {
    let end = samples.last().map_or(1.0, |sample| sample.at);
    let most = samples.iter().map(|sample| sample.per_second).fold(1.0, f64::max);
    let top = nice(most);
    let x = |at: f64| LEFT + at / end * (WIDTH - LEFT - RIGHT);
    let second = TOP + PLOT_HEIGHT + GAP;
    let legend = second + PLOT_HEIGHT + 56.0;
    let height = legend + LINE * events.len().div_ceil(2) as f64 + 8.0;
    let mut svg = String::new();
    let mut add = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    add(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13" fill="#1f2937">"##
    ));
    add(format!(r##"<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>"##));
    add(format!(
        r##"<text x="{LEFT}" y="26" font-size="16" font-weight="600">One volume over {members} members: what they must forward, while its regions move</text>"##
    ));
    axes(
        &mut add,
        TOP,
        "requests forwarded by members, %",
        &[(0.0, "0"), (0.5, "50"), (1.0, "100")],
    );
    let labels = [0.0, 0.5, 1.0].map(|share| (share, thousands(share * top)));
    let labels: Vec<(f64, &str)> =
        labels.iter().map(|(share, label)| (*share, label.as_str())).collect();
    axes(&mut add, second, "requests of the host per second", &labels);
    let forwarded: Vec<(f64, f64)> =
        samples.iter().map(|s| (x(s.at), TOP + PLOT_HEIGHT * (1.0 - s.forwarded))).collect();
    let base = TOP + PLOT_HEIGHT;
    let (first, last) = (x(0.0), x(end));
    add(format!(
        r#"<path d="M{first:.1} {base} L{} L{last:.1} {base} Z" fill="{FORWARDED}" fill-opacity="0.25"/>"#,
        points(&forwarded)
    ));
    add(format!(
        r#"<path d="M{}" fill="none" stroke="{FORWARDED}" stroke-width="2"/>"#,
        points(&forwarded)
    ));
    let requests: Vec<(f64, f64)> = samples
        .iter()
        .map(|s| (x(s.at), second + PLOT_HEIGHT * (1.0 - s.per_second / top)))
        .collect();
    add(format!(
        r#"<path d="M{}" fill="none" stroke="{REQUESTS}" stroke-width="2"/>"#,
        points(&requests)
    ));
    for (event, number) in events.iter().zip(1..) {
        let (at, bottom) = (x(event.at), second + PLOT_HEIGHT);
        add(format!(
            r##"<path d="M{at:.1} {TOP} V{bottom}" stroke="#6b7280" stroke-dasharray="3 3"/><circle cx="{at:.1}" cy="{:.1}" r="9" fill="#374151"/><text x="{at:.1}" y="{:.1}" fill="#ffffff" font-size="11" text-anchor="middle">{number}</text>"##,
            TOP - 10.0,
            TOP - 6.0
        ));
        let (column, row) =
            ((number - 1) / events.len().div_ceil(2), (number - 1) % events.len().div_ceil(2));
        let (left, down) = (LEFT + column as f64 * 440.0, legend + row as f64 * LINE);
        add(format!(
            r#"<text x="{left}" y="{down}"><tspan font-weight="600">{number}</tspan>  {}</text>"#,
            escape(&event.text)
        ));
    }
    let below = second + PLOT_HEIGHT;
    for step in 0..=(end / 5.0) as u32 {
        let at = f64::from(step) * 5.0;
        add(format!(
            r#"<text x="{:.1}" y="{}" text-anchor="middle">{at:.0} s</text>"#,
            x(at),
            below + 18.0
        ));
    }
    add("</svg>".to_owned());
    svg
}

fn axes(add: &mut impl FnMut(String), top: f64, title: &str, labels: &[(f64, &str)]) {
    add(format!(r#"<text x="{LEFT}" y="{}" font-weight="600">{title}</text>"#, top - 24.0));
    for (share, label) in labels {
        let y = top + PLOT_HEIGHT * (1.0 - share);
        add(format!(
            r##"<path d="M{LEFT} {y} H{}" stroke="#e5e7eb"/><text x="{}" y="{}" text-anchor="end">{label}</text>"##,
            WIDTH - RIGHT,
            LEFT - 8.0,
            y + 4.0
        ));
    }
}

fn points(points: &[(f64, f64)]) -> String {
    let mut text = String::new();
    for (x, y) in points {
        // Writing to a string cannot fail.
        let _ = write!(text, "{x:.1} {y:.1} ");
    }
    text.trim_end().to_owned()
}

/// The smallest round number that is not below `number`.
fn nice(number: f64) -> f64 {
    let decade = 10f64.powf(number.log10().floor());
    [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0]
        .into_iter()
        .map(|step| step * decade)
        .find(|nice| *nice >= number)
        .unwrap_or(number)
}

fn thousands(number: f64) -> String {
    if number >= 1000.0 { format!("{:.0}k", number / 1000.0) } else { format!("{number:.0}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
