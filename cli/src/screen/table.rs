//! Columns of text, as wide as they need to be; what does not fit the terminal is cut from the last column, and said.

use lampyris_plan::visible;

/// Between two columns.
const GAP: &str = "  ";

/// Narrowest last column: below it lines are longer than the terminal rather than empty.
const LAST_WIDTH: usize = 12;

/// Longest cell, whatever the terminal: a path of the system. A damaged file may have a line of any length, and a message
/// that quotes it.
const MAX_CELL: usize = 4096;

/// A table that grows by rows.
pub(crate) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// With a heading for each column.
    pub(crate) fn new(heading: &[&str; N]) -> Table<N> {
        Table { rows: vec![heading.map(str::to_string)] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| shortened(&visible::line(&cell), MAX_CELL)));
    }

    /// The text, in at most `width` columns. A column without any cell is left out.
    pub(crate) fn text(&self, width: usize) -> String {
        let length = |cell: &String| cell.chars().count();
        let used = |column: usize| self.rows.iter().skip(1).any(|row| !row[column].is_empty());
        let columns: Vec<usize> = (0..N).filter(|column| used(*column)).collect();
        let widest =
            |column: usize| self.rows.iter().map(|row| length(&row[column])).max().unwrap_or(0);
        let mut widths: Vec<usize> = columns.iter().map(|column| widest(*column)).collect();
        if let Some((last, others)) = widths.split_last_mut() {
            let before = others.iter().map(|width| width + GAP.len()).sum();
            *last = (*last).min(width.saturating_sub(before).max(LAST_WIDTH));
        }
        let line = |row: &[String; N]| {
            let cells =
                columns.iter().zip(&widths).map(|(column, width)| cut(&row[*column], *width));
            cells.collect::<Vec<String>>().join(GAP).trim_end().to_string()
        };
        self.rows.iter().map(line).collect::<Vec<String>>().join("\n")
    }
}

/// A cell of exactly `width` columns.
fn cut(cell: &str, width: usize) -> String {
    let kept = shortened(cell, width);
    let missing = width.saturating_sub(kept.chars().count());
    kept + &" ".repeat(missing)
}

/// A text of at most `length` characters.
fn shortened(text: &str, length: usize) -> String {
    if text.chars().nth(length).is_none() {
        return text.to_string();
    }
    let kept: String = text.chars().take(length.saturating_sub(1)).collect();
    kept + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_only_the_last_is_cut() {
        let mut table = Table::new(&["a", "empty", "why"]);
        table.row(["1".into(), String::new(), "short".into()]);
        table.row(["1000".into(), String::new(), "a long reason indeed".into()]);
        assert_eq!(table.text(80), "a     why\n1     short\n1000  a long reason indeed");
        assert_eq!(table.text(20), "a     why\n1     short\n1000  a long reason…");
        assert!(table.text(1).lines().all(|line| line.chars().count() <= 18));
    }

    #[test]
    fn a_cell_of_any_length_is_shown_and_cut() {
        let mut table = Table::new(&["long", "why"]);
        table.row(["x".repeat(1 << 20), "y".repeat(1 << 20)]);
        for width in [80, usize::MAX] {
            assert!(table.text(width).lines().all(|line| line.chars().count() <= 2 * MAX_CELL + 2));
        }
    }
}
