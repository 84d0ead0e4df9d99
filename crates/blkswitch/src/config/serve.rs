//! `serve`: the command line of the daemon.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use blkswitch_core::multipath::checker::{
    FIRST_INTERVAL_NS, Failback, MAX_MARGINAL_FAILURES, Marginal, NoPathRetry,
};
use blkswitch_io::pool::MAX_QUEUES;
use clap::{Args, ValueEnum};

use crate::raw;

/// Run the daemon in the foreground
///
/// The other verbs make and change devices through its control socket, and it offers them over NBD.
/// It ends with SIGTERM or SIGINT, after the I/O under way; a second signal ends it at once. Ublk
/// disks (attach) outlive it however it ends: their I/O waits until serve runs again and takes them
/// over with their tables and maps. To end them too, run remove_all before. While a disk is in use,
/// a signal is refused unless it is sent again within 10 seconds.
#[derive(Debug, Clone, Args)]
pub struct ServeOptions {
    /// Control socket, from the switch that all verbs share.
    #[arg(skip)]
    pub socket: PathBuf,
    /// Offer the devices over NBD at unix:PATH or tcp:HOST:PORT (HOST is an address, an IPv6 one in
    /// brackets, or a name, which stands for all its addresses, or * for every address of this
    /// machine); may be given several times. There is no TLS and no list of clients: anyone who
    /// reaches a TCP address can read and write every device [default: nbd.sock beside the control
    /// socket]
    #[arg(long, value_name = "ADDRESS")]
    pub nbd: Vec<NbdAddress>,
    /// Queue threads, each with a ring of its own [default: one per core]
    #[arg(long, value_name = "N", value_parser = parse_queues)]
    pub queues: Option<usize>,
    /// Attach every device as a ublk disk (needs root and the kernel's ublk driver)
    #[arg(long)]
    pub ublk: bool,
    /// Keep all devices in this folder, with their tables and region maps: the next serve with the
    /// same folder makes them again. The changes of a message are on the medium before it is
    /// answered
    #[arg(long, value_name = "FOLDER")]
    pub state: Option<PathBuf>,
    /// Do not take over the disks of an earlier daemon: let their requests fail
    #[arg(long)]
    pub abandon_disks: bool,
    /// End with the first signal also while disks are in use: for service managers, which start it
    /// again
    #[arg(long)]
    pub leave_disks: bool,
    /// When it is to end, wait for I/O under way for this time at most, and as long for the last
    /// flushes; then end with an error that names what did not answer
    #[arg(long, value_name = "SECONDS", default_value = "40", value_parser = parse_seconds)]
    pub stop_timeout: Duration,
    /// The path checker's options.
    #[command(flatten)]
    pub paths: PathOptions,
    /// Form of the log
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    pub log_format: LogFormat,
    /// Level of the log: error, warn, info, debug, trace, or a filter like info,blkswitch_io=debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
}

/// Options of the path checker of multipath devices, which does the work of multipathd.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PathOptions {
    /// Probe every path of a multipath after this time; while a path stays up, the time doubles up
    /// to four times; 0: never
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    pub path_checker_interval: Duration,
    /// Go back to a better priority group that has a path again: immediate, manual (by message
    /// only), or after it has had one for this number of seconds. With DEVICE= for this multipath
    /// only; may be given several times [default: immediate]
    #[arg(long, value_name = "[DEVICE=]WHEN", value_parser = |text: &str| Setting::parse(text, parse_failback))]
    pub failback: Vec<Setting<Failback>>,
    /// Without a path fail I/O, queue it, or queue it for N intervals of the checker (above 0) and
    /// then fail it. With DEVICE= for this multipath only; may be given several times [default: as
    /// queue_if_no_path in the table or a message says]
    #[arg(
        long,
        value_name = "[DEVICE=]fail|queue|N",
        value_parser = |text: &str| Setting::parse(text, parse_no_path_retry)
    )]
    pub no_path_retry: Vec<Setting<NoPathRetry>>,
    /// Use a path that has failed N times (1 to 16) within SECONDS only while no other is up, until
    /// it has answered for --marginal-path-quiet [default: a path that answers is used]
    #[arg(long, value_name = "N/SECONDS", value_parser = parse_flapping)]
    pub marginal_path: Option<(u32, Duration)>,
    /// How long a marginal path must answer without a failure to be used again
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = parse_seconds)]
    pub marginal_path_quiet: Duration,
}

/// A setting for one device, or for all devices without a setting of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// The device's name; `None` for all.
    pub device: Option<String>,
    /// The setting.
    pub value: T,
}

impl<T: Copy> Setting<T> {
    fn parse(
        text: &str,
        value: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Setting<T>, String> {
        // A name may contain an equals sign, a value cannot.
        let (device, word) =
            text.rsplit_once('=').map_or((None, text), |(name, word)| (Some(name), word));
        if device == Some("") {
            return Err(format!("'{text}' names no device before '='"));
        }
        Ok(Setting { device: device.map(str::to_owned), value: value(word)? })
    }

    /// The setting for a device, if there is one.
    fn of(settings: &[Setting<T>], device: &str) -> Option<T> {
        let find = |wanted| settings.iter().find(|setting| setting.device.as_deref() == wanted);
        find(Some(device)).or_else(|| find(None)).map(|setting| setting.value)
    }

    /// Refuses two settings for one device, or for all.
    fn check(settings: &[Setting<T>], option: &str) -> Result<(), String> {
        for (at, setting) in settings.iter().enumerate() {
            if settings[..at].iter().any(|before| before.device == setting.device) {
                let device = setting.device.as_deref();
                let whom =
                    device.map_or("all devices".into(), |device| format!("device '{device}'"));
                return Err(format!("'{option}' is given twice for {whom}: once is allowed"));
            }
        }
        Ok(())
    }
}

/// How long a marginal path must answer by default.
const QUIET: Duration = Duration::from_secs(300);

impl Default for PathOptions {
    fn default() -> Self {
        let path_checker_interval = Duration::from_nanos(FIRST_INTERVAL_NS);
        PathOptions {
            path_checker_interval,
            failback: Vec::new(),
            no_path_retry: Vec::new(),
            marginal_path: None,
            marginal_path_quiet: QUIET,
        }
    }
}

impl PathOptions {
    /// The failback policy of a device.
    pub fn failback_of(&self, device: &str) -> Failback {
        Setting::of(&self.failback, device).unwrap_or_default()
    }

    /// The policy of a device without a path; `None` means as its table or a message says.
    pub fn no_path_retry_of(&self, device: &str) -> Option<NoPathRetry> {
        Setting::of(&self.no_path_retry, device)
    }

    /// When a path counts as marginal, if that is asked for.
    pub fn marginal(&self) -> Option<Marginal> {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let (failures, within) = self.marginal_path?;
        let quiet_ns = ns(self.marginal_path_quiet);
        Some(Marginal { failures, within_ns: ns(within), quiet_ns })
    }

    /// Checks that the options fit together. Errors quote those that do not.
    pub(crate) fn check(&self) -> Result<(), String> {
        Setting::check(&self.failback, "--failback")?;
        Setting::check(&self.no_path_retry, "--no-path-retry")?;
        if self.marginal_path.is_some() && self.path_checker_interval.is_zero() {
            return Err(
                "'--marginal-path' is the checker's, and with '--path-checker-interval 0' \
                 there is none: give an interval above 0"
                    .to_owned(),
            );
        }
        let counts = self.no_path_retry.iter().find_map(|setting| match setting.value {
            NoPathRetry::Rounds(rounds @ 1..) => Some((setting.device.as_deref(), rounds)),
            _ => None,
        });
        match counts {
            // Without rounds of the checker, the intervals would never end.
            Some((device, rounds)) if self.path_checker_interval.is_zero() => Err(format!(
                "'--no-path-retry {}{rounds}' counts intervals of the checker, and with \
                 '--path-checker-interval 0' there are none: give an interval above 0, or \
                 --no-path-retry fail or queue",
                device.map(|device| format!("{device}=")).unwrap_or_default()
            )),
            _ => Ok(()),
        }
    }
}

/// Longest time of an option: a day.
const SECONDS_MAX: f64 = 86_400.0;

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("'{text}' is not a number of seconds from 0 to {SECONDS_MAX}"))
}

/// Reads a number of failures and the time within which they count.
fn parse_flapping(text: &str) -> Result<(u32, Duration), String> {
    let parts = text.split_once('/').and_then(|(failures, seconds)| {
        let failures = failures.parse().ok()?;
        (1..=MAX_MARGINAL_FAILURES).contains(&failures).then_some((failures, seconds))
    });
    let Some((failures, seconds)) = parts else {
        return Err(format!(
            "'{text}' is not N/SECONDS with N from 1 to {MAX_MARGINAL_FAILURES}, as 3/60"
        ));
    };
    Ok((failures, parse_seconds(seconds)?))
}

fn parse_failback(text: &str) -> Result<Failback, String> {
    match text {
        "immediate" => Ok(Failback::Immediate),
        "manual" => Ok(Failback::Manual),
        _ => match parse_seconds(text) {
            Ok(delay) => Ok(Failback::After { delay_ns: delay.as_nanos() as u64 }),
            Err(error) => Err(format!("{error}, nor immediate, nor manual")),
        },
    }
}

fn parse_no_path_retry(text: &str) -> Result<NoPathRetry, String> {
    match text {
        "fail" => Ok(NoPathRetry::Fail),
        "queue" => Ok(NoPathRetry::Queue),
        _ => text
            .parse()
            .map(NoPathRetry::Rounds)
            .map_err(|_| format!("'{text}' is neither fail nor queue nor a number of intervals")),
    }
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Human,
    /// An object per line.
    Json,
}

/// An address for NBD clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// Addresses and ports.
    Tcp {
        /// The option's text without `tcp:`.
        text: String,
        /// Its addresses.
        at: Vec<SocketAddr>,
    },
}

/// Every address of this machine. An IPv6 socket also takes IPv4, unless the system is set up
/// otherwise.
fn everywhere(port: &str) -> Option<Vec<SocketAddr>> {
    let port: u16 = port.parse().ok()?;
    Some(vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()])
}

/// The addresses of the text behind `tcp:`.
fn tcp_addresses(text: &str) -> Result<Vec<SocketAddr>, String> {
    let (host, port) = text.rsplit_once(':').ok_or("it has no port")?;
    if matches!(host, "" | "*") {
        return everywhere(port).ok_or_else(|| format!("'{port}' is not a port from 0 to 65535"));
    }
    if port.parse::<u16>().is_err() {
        return Err(format!("'{port}' is not a port from 0 to 65535"));
    }
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return Err(format!("an IPv6 address stands in brackets: tcp:[{host}]:{port}"));
    }
    let found = text.to_socket_addrs().map_err(|error| format!("'{host}': {error}"))?;
    let mut at: Vec<SocketAddr> = Vec::new();
    found.for_each(|address| {
        if !at.contains(&address) {
            at.push(address);
        }
    });
    if at.is_empty() { Err(format!("'{host}' has no address")) } else { Ok(at) }
}

impl FromStr for NbdAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(raw::path(path)));
        }
        let complaint = |why: String| {
            format!(
                "'{text}' is neither unix:PATH nor tcp:HOST:PORT, like tcp:127.0.0.1:10809{why}"
            )
        };
        let address = text.strip_prefix("tcp:").ok_or_else(|| complaint(String::new()))?;
        let at = tcp_addresses(address).map_err(|why| complaint(format!(": {why}")))?;
        Ok(Self::Tcp { text: address.to_owned(), at })
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { text, .. } => write!(f, "tcp:{text}"),
        }
    }
}

fn parse_queues(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(queues) if (1..=MAX_QUEUES).contains(&queues) => Ok(queues),
        _ => Err(format!("'{text}' is not a number of threads from 1 to {MAX_QUEUES}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_counted_only_where_there_are_some() {
        let options = |seconds, retry: &str| PathOptions {
            path_checker_interval: Duration::from_secs(seconds),
            no_path_retry: vec![Setting::parse(retry, parse_no_path_retry).unwrap()],
            ..PathOptions::default()
        };
        for retry in ["3", "member0=3"] {
            let why = options(0, retry).check().unwrap_err();
            assert!(why.contains(&format!("'--no-path-retry {retry}'")), "{why}");
            assert!(why.contains("'--path-checker-interval 0'"), "{why}");
        }
        for (seconds, retry) in [(0, "fail"), (0, "queue"), (0, "0"), (1, "3")] {
            assert_eq!(options(seconds, retry).check(), Ok(()));
        }
        assert_eq!(PathOptions { no_path_retry: Vec::new(), ..options(0, "3") }.check(), Ok(()));
    }

    #[test]
    fn a_marginal_path_is_failures_and_a_time() {
        for (text, failures, seconds) in [("3/60", 3, 60.0), ("1/0.5", 1, 0.5), ("16/0", 16, 0.0)] {
            let parsed = parse_flapping(text);
            assert_eq!(parsed, Ok((failures, Duration::from_secs_f64(seconds))));
        }
        for text in ["3", "0/60", "17/60", "/60", "x/60", "3/", "3/x", "3/60/1", "-1/60"] {
            let why = parse_flapping(text).unwrap_err();
            assert!(why.contains('\''), "{why}");
        }
        let marginal_path = Some((2, Duration::from_secs(9)));
        let options = PathOptions { marginal_path, ..PathOptions::default() };
        let second_ns = 1_000_000_000;
        let policy = Marginal { failures: 2, within_ns: 9 * second_ns, quiet_ns: 300 * second_ns };
        assert_eq!((options.marginal(), options.check()), (Some(policy), Ok(())));
        let never = PathOptions { path_checker_interval: Duration::ZERO, ..options };
        assert!(never.check().unwrap_err().contains("'--marginal-path'"));
    }

    #[test]
    fn a_device_has_its_own_settings_or_those_of_all() {
        let failback = |texts: &[&str]| PathOptions {
            failback: texts
                .iter()
                .map(|text| Setting::parse(text, parse_failback).unwrap())
                .collect(),
            ..PathOptions::default()
        };
        let after = |seconds: u64| Failback::After { delay_ns: seconds * 1_000_000_000 };
        let options = failback(&["a=b=manual", "7", "c=immediate"]);
        assert_eq!(options.check(), Ok(()));
        assert_eq!(options.failback_of("a=b"), Failback::Manual);
        assert_eq!(options.failback_of("c"), Failback::Immediate);
        assert_eq!([options.failback_of("a"), options.failback_of("")], [after(7); 2]);
        assert_eq!(failback(&["c=manual"]).failback_of("d"), Failback::Immediate);
        assert_eq!(options.no_path_retry_of("c"), None);
        let twice = failback(&["c=manual", "d=3", "c=3"]).check();
        assert_eq!(
            twice,
            Err("'--failback' is given twice for device 'c': once is allowed".into())
        );
        let twice = failback(&["manual", "3"]).check();
        assert_eq!(
            twice,
            Err("'--failback' is given twice for all devices: once is allowed".into())
        );
        let unnamed = Setting::parse("=manual", parse_failback);
        assert_eq!(unnamed, Err("'=manual' names no device before '='".into()));
        assert!(
            Setting::parse("c=never", parse_failback).unwrap_err().starts_with("'never' is not")
        );
    }

    #[test]
    fn addresses_come_and_go() {
        for text in [
            "unix:/run/a b.sock",
            "tcp:127.0.0.1:10809",
            "tcp:[::1]:10809",
            "tcp::10809",
            "tcp:*:0",
            "tcp:localhost:10809",
        ] {
            assert_eq!(text.parse::<NbdAddress>().unwrap().to_string(), text);
        }
        let at = |text| tcp_addresses(text).map(|at| at.len());
        assert_eq!([at(":1"), at("*:1"), at("127.0.0.1:1")], [Ok(2), Ok(2), Ok(1)]);
        let why = |text| tcp_addresses(text).unwrap_err();
        assert_eq!(why("::1:10809"), "an IPv6 address stands in brackets: tcp:[::1]:10809");
        assert_eq!(why("*:http"), "'http' is not a port from 0 to 65535");
        for text in ["", "unix:", "/run/nbd.sock", "tcp:127.0.0.1", "tcp:127.0.0.1:99999", "10809"]
        {
            assert!(
                text.parse::<NbdAddress>()
                    .unwrap_err()
                    .starts_with(&format!("'{text}' is neither"))
            );
        }
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(["-1", "x", "", "NaN", "86401"].iter().all(|text| parse_seconds(text).is_err()));
        assert_eq!(parse_failback("manual"), Ok(Failback::Manual));
        assert_eq!(parse_failback("3"), Ok(Failback::After { delay_ns: 3_000_000_000 }));
        assert!(parse_failback("never").is_err());
        assert_eq!(parse_no_path_retry("12"), Ok(NoPathRetry::Rounds(12)));
        assert!(parse_no_path_retry("-1").is_err());
        assert!(
            parse_queues("0").is_err()
                && parse_queues("1025").is_err()
                && parse_queues("two").is_err()
        );
        assert_eq!(parse_queues("8"), Ok(8));
    }
}
