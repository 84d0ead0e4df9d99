//! Samples the group and the host at intervals, for lines on the terminal and for the figure.

use std::io::{Write as _, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::bail;

use super::member::Member;
use crate::workload::Load;

/// Time between two samples.
pub(super) const INTERVAL: Duration = Duration::from_millis(250);
/// Number of samples between two printed lines.
const SAMPLES_PER_LINE: u32 = 2;
/// Fewer requests in an interval are only probes of the host's paths, not load.
const FEW: u64 = 50;
/// Cells of the bar.
const BAR: usize = 30;

/// The events of one interval.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// End of the interval, in seconds since the start.
    pub(super) at: f64,
    /// Requests of the load that were answered, per second.
    pub(super) per_second: f64,
    /// The share of requests that the members forwarded, 0 to 1.
    pub(super) forwarded: f64,
    /// The longest time of a request, ended or not.
    pub(super) longest: Duration,
}

/// An action on the group.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) at: f64,
    pub(super) text: String,
}

/// Takes samples and records events.
pub(super) struct Watch {
    started: Instant,
    counted: (u64, u64),
    done: u64,
    at: f64,
    pub(super) samples: Vec<Sample>,
    pub(super) events: Vec<Event>,
    colour: bool,
    interrupted: Arc<AtomicBool>,
}

impl Watch {
    /// Starts now. `interrupted` ends it with an error.
    pub(super) fn new(colour: bool, interrupted: Arc<AtomicBool>) -> Watch {
        let (samples, events) = (Vec::new(), Vec::new());
        Watch {
            started: Instant::now(),
            counted: (0, 0),
            done: 0,
            at: 0.0,
            samples,
            events,
            colour,
            interrupted,
        }
    }

    /// Records an action that is about to happen.
    pub(super) fn event(&mut self, text: &str) -> anyhow::Result<()> {
        let at = self.started.elapsed().as_secs_f64();
        self.events.push(Event { at, text: text.to_owned() });
        crate::demo::stage::say(&format!("[{}] {text}", self.events.len()))?;
        Ok(())
    }

    /// Samples for a while and returns the last sample.
    pub(super) fn look_on(
        &mut self,
        time: Duration,
        load: &Load,
        members: &[Member],
    ) -> anyhow::Result<Sample> {
        let end = Instant::now() + time;
        // Begin the interval now, so that earlier requests do not count.
        self.sample(load, members)?;
        let mut number = 0;
        loop {
            std::thread::sleep(INTERVAL);
            if self.interrupted.load(SeqCst) {
                bail!("interrupted");
            }
            if load.has_failed() {
                bail!("a client of the load has ended");
            }
            let sample = self.sample(load, members)?;
            self.samples.push(sample);
            number += 1;
            let is_over = Instant::now() >= end;
            if number % SAMPLES_PER_LINE == 0 || is_over {
                self.show(&sample)?;
            }
            if is_over {
                return Ok(sample);
            }
        }
    }

    fn sample(&mut self, load: &Load, members: &[Member]) -> anyhow::Result<Sample> {
        let mut counted = (0, 0);
        for member in members {
            let (all, forwarded) = member.counted()?;
            counted = (counted.0 + all, counted.1 + forwarded);
        }
        let (at, done) = (self.started.elapsed().as_secs_f64(), load.done());
        let (all, forwarded) = (counted.0 - self.counted.0, counted.1 - self.counted.1);
        let sample = Sample {
            at,
            per_second: (done - self.done) as f64 / (at - self.at).max(1e-9),
            forwarded: if all < FEW { 0.0 } else { forwarded as f64 / all as f64 },
            longest: load.take_longest(),
        };
        (self.counted, self.done, self.at) = (counted, done, at);
        Ok(sample)
    }

    fn show(&self, sample: &Sample) -> anyhow::Result<()> {
        let filled = ((sample.forwarded * BAR as f64).round() as usize).min(BAR);
        let bar = format!("{}{}", "█".repeat(filled), "·".repeat(BAR - filled));
        let bar = if self.colour { format!("\x1b[33m{bar}\x1b[0m") } else { bar };
        let (at, per_second, forwarded) = (sample.at, sample.per_second, sample.forwarded * 100.0);
        let longest = sample.longest.as_secs_f64() * 1e3;
        writeln!(
            stdout(),
            "{at:6.1} s {per_second:8.0} I/O/s   forwarded {forwarded:5.1} % {bar}   longest wait \
             {longest:7.1} ms"
        )?;
        stdout().flush()?;
        Ok(())
    }
}
