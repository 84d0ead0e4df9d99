//! How long a queue polls for a completion before it sleeps: adaptive polling, like KVM's
//! `halt_poll_ns` and QEMU's `poll-max-ns`.
//!
//! On an idle machine, sleeping and waking up takes longer than a small request. So a client that
//! sends one request at a time mostly waits for that. Polling pays only if the next completion
//! comes soon. So it starts after a short sleep, stops when it has found nothing, and is tried
//! again more rarely the more often it failed. An idle queue sleeps, and a queue that always has
//! work never polls.

/// Longest poll in ns, KVM's default. The client must also wake up before it sends its next
/// request.
const LOOK_NS: u64 = 200_000;
/// Longest sleep in ns that counts as short. Polling would have found its completion, because the
/// rest of the time is the wake-up.
const SHORT_SLEEP_NS: u64 = 300_000;
/// Largest n. After the n-th poll in vain, 2^n short sleeps pass before the next one. So polls in
/// vain cost less than a thousandth of the time.
const MAX_FAILURES: u32 = 10;

/// The state of adaptive polling.
#[derive(Debug, Default)]
pub(super) struct Polling {
    active: bool,
    failures: u32,
    /// Number of short sleeps before the next try.
    pause: u32,
}

impl Polling {
    /// How long to poll before this sleep, in ns.
    pub(super) fn look_ns(&self) -> u64 {
        if self.active { LOOK_NS } else { 0 }
    }

    /// Records a sleep: its whole duration `waited_ns`, and whether polling before it found a
    /// completion.
    pub(super) fn waited(&mut self, found: bool, waited_ns: u64) {
        match (self.active, found) {
            (true, true) => self.failures = self.failures.saturating_sub(1),
            (true, false) => {
                self.active = false;
                self.pause = 1 << self.failures;
                self.failures = (self.failures + 1).min(MAX_FAILURES);
            }
            (false, _) if waited_ns > SHORT_SLEEP_NS => {}
            (false, _) if self.pause > 0 => self.pause -= 1,
            (false, _) => self.active = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits for completions that come `gap_ns` after the last. Returns the number of polls in
    /// vain.
    fn run(polling: &mut Polling, gap_ns: u64, times: u32) -> u32 {
        let mut in_vain = 0;
        for _ in 0..times {
            let look = polling.look_ns();
            let found = look >= gap_ns;
            in_vain += u32::from(look > 0 && !found);
            polling.waited(found, gap_ns);
        }
        in_vain
    }

    #[test]
    fn looks_where_it_pays_only() {
        let mut polling = Polling::default();
        assert_eq!(polling.look_ns(), 0, "a new queue sleeps");
        run(&mut polling, 20_000, 10);
        assert_eq!(polling.look_ns(), LOOK_NS, "requests follow one another closely");
        assert_eq!(run(&mut polling, 5_000_000, 1000), 1, "a client that went away costs one look");
        assert_eq!(polling.look_ns(), 0);
    }

    #[test]
    fn looks_in_vain_become_rare() {
        let mut polling = Polling::default();
        let in_vain = run(&mut polling, 250_000, 1_000_000);
        assert!(in_vain < 1010, "short sleeps, but longer than a look: {in_vain} of a million");
        run(&mut polling, 20_000, 2000);
        assert_eq!(polling.look_ns(), LOOK_NS, "it recovers");
    }
}
