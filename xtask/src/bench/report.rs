//! What the benchmark found, as Markdown.
use std::fmt::{self, Display, Write};

/// Repeated measurements of one thing.
#[derive(Debug, Clone, Default)]
pub struct Series(Vec<f64>);

impl From<Vec<f64>> for Series {
    fn from(values: Vec<f64>) -> Self {
        Self(values)
    }
}

impl Series {
    /// Adds one.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => sorted[count / 2],
            count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
        }
    }

    /// Each divided by its neighbour of the same round.
    pub fn over(&self, other: &Self) -> Self {
        Self(
            self.0
                .iter()
                .zip(&other.0)
                .map(|(one, other)| one / other)
                .collect(),
        )
    }
}

/// Median, least and greatest.
impl Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let digits = match self.median().abs() {
            size if size < 0.1 => 4,
            size if size < 10.0 => 2,
            size if size < 100.0 => 1,
            _ => 0,
        };
        let median = self.median();
        match self.0.len() {
            1 => write!(f, "{median:.digits$}"),
            _ => write!(f, "{median:.digits$} ({least:.digits$}–{greatest:.digits$})"),
        }
    }
}

/// What a figure has to be.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// At least this.
    Least(f64),
    /// At most this.
    Most(f64),
}

/// Two tables under way: figures, and targets with their verdict.
#[derive(Debug, Default)]
pub struct Report {
    figures: String,
    targets: String,
}

impl Report {
    /// A figure for information.
    pub fn figure(&mut self, what: &str, found: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.figures, "| {what} | {found} |");
    }

    /// A figure that was promised; `found` is shown, its median judged.
    pub fn target(&mut self, what: &str, found: &Series, target: Target) {
        let (sign, bound, met) = match target {
            Target::Least(bound) => ("≥", bound, found.median() >= bound),
            Target::Most(bound) => ("≤", bound, found.median() <= bound),
        };
        let verdict = if met { "yes" } else { "**no**" };
        let bound = Series(vec![bound]);
        let _ = writeln!(self.targets, "| {what} | {sign} {bound} | {found} | {verdict} |");
    }

    /// A figure that was promised and could not be had.
    pub fn missing(&mut self, what: &str, why: &str) {
        let _ = writeln!(self.targets, "| {what} | | not compared: {why} | – |");
    }

    /// The document.
    pub fn render(&self, title: &str, circumstances: &str) -> String {
        format!(
            "# {title}\n\n{circumstances}\n\n\
             ## Targets\n\n| what | target | median (least–greatest) | met |\n|---|---|---|---|\n{}\n\
             ## Figures\n\n| what | median (least–greatest) |\n|---|---|\n{}",
            self.targets, self.figures
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_shown_and_judged() {
        let (one, other) = (Series(vec![3.0, 9.0, 6.0]), Series(vec![1.0, 2.0, 3.0]));
        assert_eq!(one.to_string(), "6.00 (3.00–9.00)");
        assert_eq!(one.over(&other).median(), 3.0);
        let mut report = Report::default();
        report.target("ratio", &one, Target::Least(6.0));
        report.target("time", &one, Target::Most(2.0));
        report.missing("peer", "no cmake");
        let text = report.render("T", "c");
        assert!(
            text.contains("| ratio | ≥ 6.00 | 6.00 (3.00–9.00) | yes |"),
            "{text}"
        );
        assert!(
            text.contains("| time | ≤ 2.00 | 6.00 (3.00–9.00) | **no** |"),
            "{text}"
        );
        assert!(text.contains("| peer | | not compared: no cmake | – |"), "{text}");
    }
}
