# nbdinfo: what is announced, the list of exports, and the live region map as a metadata context.
# Debian 13's programs, too.
. "$(dirname "$0")/lib.sh"
need nbdinfo libnbd-bin
serve
three disk 8

equal "$(nbdinfo --size "$(uri disk)")" $((8 << 16))
has "$(nbdinfo "$(uri disk)")" "export-size: 524288 (512K)"

json=$(nbdinfo --json "$(uri disk)")
for line in '"protocol": "newstyle-fixed"' '"TLS": false' '"structured": true' '"export-name": "disk"' \
    '"export-size": 524288' '"is_read_only": false' '"can_cache": true' '"can_df": true' '"can_fast_zero": true' \
    '"can_flush": true' '"can_fua": true' '"can_multi_conn": true' '"can_trim": true' '"can_zero": true' \
    '"base:allocation"' '"blkswitch:path"' '"block_size_minimum": 512' '"block_size_maximum": 33554432'; do
    has "$json" "$line"
done

# The empty name is the only device, as long as there is only one.
equal "$(nbdinfo --size "$(uri)")" $((8 << 16))
three other 4 --readonly
has "$(refused nbdinfo "$(uri)")" "export"
nbdinfo --is read-only "$(uri other)"
refused nbdinfo --can write "$(uri other)" >/dev/null
has "$(refused nbdinfo "$(uri none)")" "none"
list=$(nbdinfo --list "$(uri)")
has "$list" 'export="disk":'
has "$list" 'export="other":'

# map NAME: regions as 'start length path', in regions of 64 KiB.
map() {
    nbdinfo --map=blkswitch:path "$(uri "$1")" | awk '{ print $1 / 65536, $2 / 65536, $3 }'
}
equal "$(map disk)" "$(printf '%s\n' '0 1 0' '1 1 1' '2 1 2' '3 1 0' '4 1 1' '5 1 2' '6 1 0' '7 1 1')"
blkswitch message disk 0 set_region_mappings 0:0 :1 :2 :0 :1 :2 :1
equal "$(map disk)" "$(printf '%s\n' '0 1 0' '1 1 1' '2 1 2' '3 1 0' '4 1 1' '5 1 2' '6 2 1')"
blkswitch message disk 0 set_region_mappings 1:0 R1,6
equal "$(map disk)" "$(printf '%s\n' '0 8 0')"

# A big map comes in several answers and is the map that the daemon shows.
three big 20000
blkswitch message big 0 set_region_mappings 5:2 17:0 :0 :0 :1 3e8:1 R1,4a37
nbdinfo --map=blkswitch:path --json "$(uri big)" >nbd.json
blkswitch map show big --json >map.json
python3 - <<'PYTHON'
import json
extents = [(e["offset"] >> 16, e["length"] >> 16, e["type"]) for e in json.load(open("nbd.json"))]
runs = [(r["start"], r["count"], r["path"]) for r in json.load(open("map.json"))["runs"]]
merged = []
for start, count, path in extents:
    if merged and merged[-1][2] == path:
        start, count = merged[-1][0], merged.pop()[1] + count
    merged.append((start, count, path))
assert merged == runs, (merged[:20], runs[:20])
assert sum(run[1] for run in runs) == 20000 and len(runs) > 100
PYTHON

# Allocation: nothing, then what was written, on the path it belongs to.
three holes 8
equal "$(nbdinfo --map "$(uri holes)" | awk '{ print $1, $2, $3 }')" "0 524288 3"
nbdsh -u "$(uri holes)" -c 'h.pwrite(bytes([7]) * 65536, 131072)'
equal "$(nbdinfo --map=base:allocation "$(uri holes)" | awk '{ print $1, $2, $3 }')" \
    "$(printf '%s\n' '0 131072 3' '131072 65536 0' '196608 327680 3')"
has "$(nbdinfo --map --totals "$(uri holes)")" "12.5%"
