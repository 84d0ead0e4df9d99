//! Guesses which allowed word a wrong word was meant to be.
//!
//! Contract: pure. A word is near if at most a third of its letters must change. The cost is
//! bounded: a word longer than [`LETTERS_MAX`] is near to nothing, and at most [`WORDS_MAX`] of the
//! allowed words are compared.

/// Longest word that is compared.
const LETTERS_MAX: usize = 64;
/// Most allowed words that are compared.
const WORDS_MAX: usize = 1000;

/// The nearest of the allowed words; `None` if none is near.
pub fn nearest<'a>(word: &str, allowed: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    if word.is_empty() || word.len() > LETTERS_MAX {
        return None;
    }
    let far = word.chars().count().div_ceil(3);
    let near = allowed.into_iter().take(WORDS_MAX).map(|known| (distance(&word, known), known));
    near.filter(|(changes, _)| *changes <= far)
        .min_by_key(|(changes, _)| *changes)
        .map(|near| near.1)
}

/// `did you mean 'switch'? `, or an empty text if no allowed word is near.
pub fn did_you_mean<'a>(word: &str, allowed: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, allowed).map(|near| format!("did you mean '{near}'? ")).unwrap_or_default()
}

/// Number of letters to add, drop, change or swap with the next one to turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.chars().collect(), b.chars().take(LETTERS_MAX).collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for (i, letter) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, other) in b.iter().enumerate() {
            let changed = rows[i][j] + usize::from(letter != other);
            let mut best = changed.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *letter == b[j - 1] && a[i - 1] == *other {
                best = best.min(rows[i - 1][j - 1] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_near() {
        let types = ["error", "linear", "multipath", "striped", "switch", "zero"];
        for (word, meant) in [
            ("swicth", Some("switch")),
            ("Switch", Some("switch")),
            ("multipat", Some("multipath")),
            ("stripe", Some("striped")),
            ("G", None),
            ("", None),
            ("crypt", None),
        ] {
            assert_eq!(nearest(word, types), meant, "{word}");
        }
        assert_eq!(nearest(&"switch".repeat(100), types), None);
        assert_eq!(did_you_mean("zer", types), "did you mean 'zero'? ");
    }
}
