//! The layout: the member that owns each region of the volume. It has no pattern, and it changes.

use std::fmt::Write as _;

use crate::workload::Random;

/// The owner of each region.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    members: u32,
    owners: Vec<u32>,
    random: Random,
}

/// A change of a region's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) region: usize,
    pub(super) from: u32,
    pub(super) to: u32,
}

impl Layout {
    /// A random layout. The same seed gives the same layout.
    pub(super) fn new(regions: usize, members: u32, seed: u64) -> Layout {
        let mut random = Random(seed);
        let owners = (0..regions).map(|_| random.below(members)).collect();
        Layout { members, owners, random }
    }

    pub(super) fn members(&self) -> u32 {
        self.members
    }

    /// Moves about one region of `one_in` to another member.
    pub(super) fn shuffle(&mut self, one_in: u32) -> Vec<Move> {
        let mut moves = Vec::new();
        for (region, owner) in self.owners.iter_mut().enumerate() {
            if self.random.below(one_in) == 0 {
                let from = *owner;
                *owner = (from + 1 + self.random.below(self.members - 1)) % self.members;
                moves.push(Move { region, from, to: *owner });
            }
        }
        moves
    }

    /// The words of a message that makes this layout out of any other: `region:path`, hexadecimal.
    pub(super) fn words(&self) -> String {
        let mut text = String::new();
        for (region, owner) in self.owners.iter().enumerate() {
            // Writing to a string cannot fail.
            let _ =
                if region == 0 { write!(text, "0:{owner:x}") } else { write!(text, " :{owner:x}") };
        }
        text
    }
}

/// The words of a message that makes these moves.
pub(super) fn words(moves: &[Move]) -> String {
    let words: Vec<String> =
        moves.iter().map(|moved| format!("{:x}:{:x}", moved.region, moved.to)).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_go_to_other_members() {
        let mut layout = Layout::new(1000, 4, 1);
        let before = layout.owners.clone();
        let moves = layout.shuffle(4);
        assert!((150..350).contains(&moves.len()), "{} moves", moves.len());
        for moved in &moves {
            assert_eq!(before[moved.region], moved.from);
            assert_eq!(layout.owners[moved.region], moved.to);
            assert_ne!(moved.from, moved.to);
        }
        assert_eq!(words(&[Move { region: 26, from: 0, to: 2 }]), "1a:2");
        let whole = layout.words();
        assert_eq!(whole.split(' ').count(), 1000);
        assert!(
            whole.starts_with("0:") && whole.split(' ').skip(1).all(|word| word.starts_with(':'))
        );
    }
}
