//! Reads a region map: as runs, as a picture, or as a message.
//!
//! Contract: maps may have a billion regions, so answers are produced in pieces ([`in_pieces`]).
//! The table stays in memory while its map is read, even if the device is loaded again or removed
//! meanwhile.

use std::collections::VecDeque;
use std::io::Write as _;
use std::iter;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use blkswitch_core::map::search;
use blkswitch_io::Device;
use blkswitch_io::table::RegionMap as IoMap;

use crate::compact::Compact;
use crate::daemon::devices::switch::Switch;
use crate::daemon::failure::Failure;
use crate::daemon::server::app::App;
use crate::daemon::server::pieces::{PIECE_BYTES, Pieces, in_pieces};
use crate::daemon::server::reply::{self, Name, QueryParams, Refused, blocking, refuse};
use crate::daemon::tables::words::address;
use crate::picture;
use crate::protocol::{
    CompactMap, Errno, ExportQuery, GENERATION_COMMENT, MapForm, MapPicture, MapQuery,
    PICTURE_CELLS_MAX, PictureQuery, RegionMap, Run, route,
};

/// The ioctl in refusals. Libdm has none for this; `status` is the nearest.
const IOCTL: &str = "status";
/// Media type of a [`CompactMap`]. It tells a client that the body is no [`RegionMap`].
const COMPACT: &str = "application/vnd.blkswitch.compact+json";
/// Regions that are searched for those of one path at a time: some milliseconds of work.
const STEP_REGIONS: u64 = 1 << 22;

/// Checks a range of regions, and returns its first and last region.
fn range(map: &IoMap, from: Option<u64>, to: Option<u64>) -> Result<(u64, u64), Failure> {
    let last = map.geometry().nr_regions() - 1;
    let (from, to) = (from.unwrap_or(0), to.unwrap_or(last));
    if from <= to && to <= last {
        return Ok((from, to));
    }
    let reason = format!(
        "the regions {from} to {to}: the first must not be above the last, nor the last above {last}"
    );
    Err(Failure::new(Errno::Einval, reason))
}

/// Checks the path whose regions are to be listed.
fn check_path(map: &IoMap, query: &MapQuery) -> Result<(), Failure> {
    let Some(path) = query.path else { return Ok(()) };
    let paths = map.geometry().num_paths();
    if path >= paths {
        let reason = format!("path {path}: it must be from 0 to {}", paths - 1);
        return Err(Failure::new(Errno::Einval, reason));
    }
    if query.form == MapForm::Compact {
        let reason = "form=compact lists all runs, so it does not go with path: use runs or lines";
        return Err(Failure::new(Errno::Einval, reason));
    }
    Ok(())
}

/// The region map as runs.
#[utoipa::path(
    get,
    path = route::MAP,
    params(("name" = String, Path, description = "The device"), MapQuery),
    responses(
        (status = 200, content(
            (RegionMap = "application/json"),
            (CompactMap = COMPACT),
            (String = "application/x-ndjson")
        )),
        Refused
    )
)]
pub async fn runs(
    State(app): State<App>,
    Name(name): Name,
    QueryParams(query): QueryParams<MapQuery>,
) -> Result<Response, Refused> {
    let device = app.devices.find(&name).map_err(refuse(IOCTL, None))?;
    let begin = || -> Result<RunsText, Failure> {
        let switch = Switch::of(&device, query.sector)?;
        let map = switch.map()?;
        let (from, to) = range(map, query.from, query.to)?;
        check_path(map, &query)?;
        let generation = device.generation_at_rest();
        Ok(RunsText {
            device: device.clone(),
            generation,
            switch,
            form: query.form,
            path: query.path,
            from,
            to,
            next: from,
            joined: None,
            stage: Stage::Head,
            listed: false,
        })
    };
    let content_type = match query.form {
        MapForm::Lines => "application/x-ndjson",
        MapForm::Compact => COMPACT,
        MapForm::Runs => "application/json",
    };
    let text = begin().map_err(refuse(IOCTL, Some(device.id())))?;
    Ok(reply::text(content_type, in_pieces(text)))
}

/// The part of the text that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Head,
    Runs,
    Over,
}

/// The text of the runs, in one of its forms.
struct RunsText {
    device: Arc<Device>,
    /// The generation before the text was begun; `None` if a message was under way.
    generation: Option<u64>,
    switch: Switch,
    form: MapForm,
    /// The only path whose runs are listed.
    path: Option<u32>,
    from: u64,
    to: u64,
    /// The next region to look at.
    next: u64,
    /// A run of `path` that the next step may continue.
    joined: Option<Run>,
    stage: Stage,
    /// Whether a run was written.
    listed: bool,
}

impl RunsText {
    /// Writes the text before the runs. Writing to a `Vec` cannot fail, here and below.
    fn head(&self, map: &IoMap, out: &mut Vec<u8>) {
        let geometry = map.geometry();
        let (from, to) = (self.from, self.to);
        let _ = write!(
            out,
            r#"{{"regions":{},"paths":{},"region_size":{}"#,
            geometry.nr_regions(),
            geometry.num_paths(),
            geometry.region_size()
        );
        let _ = match self.form {
            MapForm::Runs => write!(out, r#","runs":["#),
            MapForm::Compact => write!(out, r#","from":{from},"to":{to},"runs":["#),
            MapForm::Lines => {
                let generation = self.generation.map(|number| format!(r#","generation":{number}"#));
                let generation = generation.unwrap_or_default();
                writeln!(out, r#","from":{from},"to":{to}{generation}}}"#)
            }
        };
    }

    /// Writes the text after the runs.
    fn tail(&self, out: &mut Vec<u8>) {
        let generation = self.generation.filter(|before| *before == self.device.generation());
        let _ = match (self.form, generation) {
            (MapForm::Lines, _) => Ok(()),
            (_, Some(generation)) => write!(out, r#"],"generation":{generation}}}"#),
            (_, None) => write!(out, "]}}"),
        };
    }

    fn run(&mut self, run: Run, out: &mut Vec<u8>) {
        let Run { start, count, path } = run;
        let is_lines = self.form == MapForm::Lines;
        let separator = if self.listed && !is_lines { "," } else { "" };
        let _ = match self.form {
            MapForm::Compact => write!(out, "{separator}[{count},{path}]"),
            _ => write!(out, r#"{separator}{{"start":{start},"count":{count},"path":{path}}}"#),
        };
        if is_lines {
            out.push(b'\n');
        }
        self.listed = true;
    }

    /// Writes the runs of one path, as far as a step goes.
    fn search(&mut self, map: &IoMap, path: u32, out: &mut Vec<u8>) {
        let end = self.next.saturating_add(STEP_REGIONS).min(self.to + 1);
        for found in search::regions_of(map, path, self.next, end) {
            self.next = found.start + found.count;
            let whole = match &mut self.joined {
                Some(joined) if joined.start + joined.count == found.start => {
                    joined.count += found.count;
                    None
                }
                joined => joined.replace(Run { start: found.start, count: found.count, path }),
            };
            if let Some(run) = whole {
                self.run(run, out);
                if out.len() >= PIECE_BYTES {
                    return;
                }
            }
        }
        self.next = end;
        if end > self.to
            && let Some(run) = self.joined.take()
        {
            self.run(run, out);
        }
    }
}

impl Pieces for RunsText {
    fn next_piece(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(PIECE_BYTES + 128);
        let switch = self.switch.clone();
        let map = switch.map().ok()?;
        match self.stage {
            Stage::Head => self.head(map, &mut out),
            Stage::Runs => {}
            Stage::Over => return None,
        }
        match self.path {
            Some(path) => self.search(map, path, &mut out),
            None => {
                for run in map.runs(self.next, self.to + 1) {
                    self.next = run.start + run.count;
                    self.run(Run { start: run.start, count: run.count, path: run.path }, &mut out);
                    if out.len() >= PIECE_BYTES {
                        break;
                    }
                }
            }
        }
        self.stage = Stage::Runs;
        if self.next > self.to && self.joined.is_none() {
            self.tail(&mut out);
            self.stage = Stage::Over;
        }
        Some(out)
    }
}

/// The region map condensed to so many cells.
#[utoipa::path(
    get,
    path = route::MAP_PICTURE,
    params(("name" = String, Path, description = "The device"), PictureQuery),
    responses((status = 200, body = MapPicture), Refused)
)]
pub async fn picture(
    State(app): State<App>,
    Name(name): Name,
    QueryParams(query): QueryParams<PictureQuery>,
) -> Result<Json<MapPicture>, Refused> {
    blocking(move || {
        let device = app.devices.find(&name).map_err(refuse(IOCTL, None))?;
        draw(&device, query).map(Json).map_err(refuse(IOCTL, Some(device.id())))
    })
    .await?
}

fn draw(device: &Device, query: PictureQuery) -> Result<MapPicture, Failure> {
    if !(1..=PICTURE_CELLS_MAX).contains(&query.cells) {
        let reason = format!("{} cells: from 1 to {PICTURE_CELLS_MAX} can be drawn", query.cells);
        return Err(Failure::new(Errno::Einval, reason));
    }
    let switch = Switch::of(device, query.sector)?;
    let map = switch.map()?;
    let (from, to) = range(map, query.from, query.to)?;
    let geometry = map.geometry();
    let runs = shares(map, from, to, picture::cell_size(to - from + 1, query.cells as u64));
    let (cells, totals) = picture::condense(from, to, query.cells, geometry.num_paths(), runs);
    let address = |segment, path| address(&switch.table, segment, path);
    let addresses = switch.segment().map(|(segment, _)| {
        (0..segment.target.paths().len()).map(|path| address(segment, path)).collect()
    });
    Ok(MapPicture {
        regions: geometry.nr_regions(),
        paths: geometry.num_paths(),
        region_size: geometry.region_size(),
        start_sector: switch.start,
        from,
        to,
        cells,
        totals,
        addresses: addresses.unwrap_or_default(),
    })
}

/// The runs for counting cells of `cell` regions. A stretch of round robin within one cell becomes
/// one run per path, with that path's share of the regions. The counts are the same, and a map of a
/// billion regions with few changes is not read region by region.
fn shares(map: &IoMap, from: u64, to: u64, cell: u64) -> impl Iterator<Item = Run> + '_ {
    let paths = u64::from(map.geometry().num_paths());
    let mut next = from;
    let mut queue = VecDeque::new();
    iter::from_fn(move || {
        if queue.is_empty() && next <= to {
            let cell_end = next.saturating_add(cell - (next - from) % cell).min(to + 1);
            let unchanged = map.next_changed(next, cell_end).unwrap_or(cell_end) - next;
            if unchanged >= paths {
                let first = u64::from(map.geometry().default_path(next));
                for index in 0..paths {
                    let count = unchanged / paths + u64::from(index < unchanged % paths);
                    queue.push_back(Run {
                        start: next,
                        count,
                        path: ((first + index) % paths) as u32,
                    });
                    next += count;
                }
            } else if let Some(run) = map.runs(next, cell_end).next() {
                queue.push_back(Run { start: run.start, count: run.count, path: run.path });
                next += run.count;
            }
        }
        queue.pop_front()
    })
}

/// The region map as a `set_region_mappings` message that makes it again.
#[utoipa::path(
    get,
    path = route::MAP_MESSAGE,
    params(("name" = String, Path, description = "The device"), ExportQuery),
    responses(
        (status = 200, description = "Words of a message", body = String, content_type = "text/plain"),
        Refused
    )
)]
pub async fn export(
    State(app): State<App>,
    Name(name): Name,
    QueryParams(query): QueryParams<ExportQuery>,
) -> Result<Response, Refused> {
    let device = app.devices.find(&name).map_err(refuse(IOCTL, None))?;
    let begin = || -> Result<MessageText, Failure> {
        let switch = Switch::of(&device, query.sector)?;
        let (device, compact) = (device.clone(), Some(Compact::in_lines()));
        let (begun, generation) = (false, None);
        Ok(MessageText {
            device,
            switch,
            compact,
            with_generation: query.generation,
            begun,
            generation,
        })
    };
    let text = begin().map_err(refuse(IOCTL, Some(device.id())))?;
    Ok(reply::text("text/plain; charset=utf-8", in_pieces(text)))
}

/// The text of the message that makes the map again.
struct MessageText {
    device: Arc<Device>,
    switch: Switch,
    /// `None` when everything is written.
    compact: Option<Compact>,
    with_generation: bool,
    begun: bool,
    /// The generation when the first piece was written; `None` if the map has no messages.
    generation: Option<u64>,
}

impl Pieces for MessageText {
    fn next_piece(&mut self) -> Option<Vec<u8>> {
        let (map, compact) = (self.switch.map().ok()?, self.compact.as_mut()?);
        let mut out = Vec::with_capacity(PIECE_BYTES + 128);
        // Keeps messages from changing the map while a piece is written. If there is no messenger,
        // the device was removed or has another kind of table, and nobody writes to this map any
        // more.
        let messenger = self.device.messenger(self.switch.start);
        let is_live =
            messenger.as_ref().is_ok_and(|one| Arc::ptr_eq(one.table(), &self.switch.table));
        let now = is_live.then(|| self.device.generation());
        if !self.begun {
            (self.begun, self.generation) = (true, now);
        }
        if !compact.write(map, PIECE_BYTES, &mut out) {
            self.compact = None;
            let unchanged = now.filter(|now| self.generation == Some(*now) && self.with_generation);
            if let Some(generation) = unchanged {
                let _ = writeln!(out, "{GENERATION_COMMENT}{generation}");
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use blkswitch_core::switch::{Geometry, Map, Message};

    use super::*;

    #[test]
    fn a_picture_counts_shares_as_it_counts_runs() {
        for (paths, regions) in [(1, 50), (2, 1000), (3, 1000), (16, 4099), (300, 4099)] {
            let geometry = Geometry::new(regions, paths, 1).unwrap();
            let map: IoMap =
                Map::new(geometry, blkswitch_io::table::region_storage(&geometry).unwrap())
                    .ok()
                    .unwrap();
            Message::new().apply_text(&mut map.writer().unwrap(), b"7:0 R1,5 20:0", true).unwrap();
            for (from, to, cells) in
                [(0, regions - 1, 10), (0, regions - 1, 4096), (9, regions - 3, 3), (40, 40, 1)]
            {
                let runs = map.runs(from, to + 1);
                let runs =
                    runs.map(|run| Run { start: run.start, count: run.count, path: run.path });
                let cell = picture::cell_size(to - from + 1, cells as u64);
                assert_eq!(
                    picture::condense(from, to, cells, paths, shares(&map, from, to, cell)),
                    picture::condense(from, to, cells, paths, runs),
                    "{paths} paths, {regions} regions, {from} to {to}, {cells} cells"
                );
            }
        }
    }
}
