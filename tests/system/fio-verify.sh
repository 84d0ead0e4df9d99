# fio's nbd engine writes and verifies while the maps of its devices change, tables are reloaded, devices are
# suspended, and regions are moved from path to path with their data, as a storage array would.
. "$(dirname "$0")/lib.sh"
need fio fio
fio --enghelp 2>/dev/null | grep -q '\bnbd\b' || { echo "this fio has no nbd engine"; exit 77; }
SECONDS_OF_LOAD=${SECONDS_OF_LOAD:-8}
REGIONS=1024 # 64 MiB
serve

# Three files; and one file that is all three paths, where every move is legal at once.
three files $REGIONS
alike_table="0 $((REGIONS * 128)) switch 3 128 0 $HERE/alike 0 $HERE/alike 0 $HERE/alike 0"
blkswitch create alike --make-files --table "$alike_table"

# load DEVICE: four jobs, each in a quarter of the device, random sizes and depths; every block read is verified.
load() {
    fio --name="$1" --ioengine=nbd --uri="$(uri "$1")" --rw=randrw --bsrange=4k-128k --bs_unaligned=0 --iodepth=16 \
        --numjobs=4 --size=16m --offset_increment=16m --time_based --runtime="$SECONDS_OF_LOAD" --fsync=64 \
        --verify=crc32c --verify_fatal=1 --verify_backlog=256 --verify_state_save=0 --group_reporting \
        --output-format=json --output="$1.json" >"$1.log" 2>&1
}
load files &
files=$!
load alike &
alike=$!

# The disturbances, at random, as long as there is load.
python3 - "$HERE" $REGIONS "$alike_table" $files $alike >changes.log <<'PYTHON'
import json, os, random, subprocess, sys
here, regions, alike_table, pids = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
rng, region, counts = random.Random(os.getpid()), 65536, {}

def blkswitch(*words):
    return subprocess.run(["blkswitch", *words], check=True, capture_output=True, text=True).stdout

def path_of(number):
    shape = json.loads(blkswitch("map", "show", "files", "--json"))
    return next(r["path"] for r in shape["runs"] if r["start"] <= number < r["start"] + r["count"])

def scatter():
    "Any region of the device whose paths are one file goes anywhere."
    words = " ".join(f"{rng.randrange(regions):x}:{rng.randrange(3):x}" for _ in range(rng.randrange(1, 400)))
    subprocess.run(["blkswitch", "message", "alike", "0", "-"], input="set_region_mappings " + words, check=True,
                   text=True, stdout=subprocess.DEVNULL)

def repeat_map():
    "The map of the other device is written once more as it is."
    text = blkswitch("map", "export", "files")
    subprocess.run(["blkswitch", "map", "import", "files", "-"], input=text, check=True, text=True,
                   stdout=subprocess.DEVNULL)

def migrate():
    "A region moves with its data: suspended, copied, mapped anew, resumed."
    number, to = rng.randrange(regions), rng.randrange(3)
    blkswitch("suspend", "files")
    source = path_of(number)
    with open(f"{here}/files.{'abc'[source]}", "rb") as old, open(f"{here}/files.{'abc'[to]}", "r+b") as new:
        old.seek(number * region)
        new.seek(number * region)
        new.write(old.read(region))
    blkswitch("message", "files", "0", "set_region_mappings", f"{number:x}:{to}")
    if source != to:  # what reads from the old place is caught
        with open(f"{here}/files.{'abc'[source]}", "r+b") as old:
            old.seek(number * region)
            old.write(b"\xde" * region)
    blkswitch("resume", "files")

def suspend_resume():
    blkswitch("suspend", rng.choice(["files", "alike"]))
    blkswitch("resume", "files")
    blkswitch("resume", "alike")

def reload():
    "A new table, round robin again; its paths are still the one file."
    blkswitch("load", "alike", "--table", alike_table)
    blkswitch("resume", "alike")

while any(os.path.exists(f"/proc/{pid}") for pid in pids):
    change = rng.choice([scatter, scatter, repeat_map, migrate, migrate, migrate, suspend_resume, reload])
    change()
    counts[change.__name__] = counts.get(change.__name__, 0) + 1
print(counts)
assert all(counts.get(c.__name__, 0) > 2 for c in (scatter, repeat_map, migrate, suspend_resume, reload)), counts
PYTHON
cat changes.log

for device in files alike; do
    wait "${!device}" || fail "fio on $device: $(cat "$device.log" "$device.json")"
    python3 - "$device" <<'PYTHON'
import json, sys
job = json.load(open(sys.argv[1] + ".json"))["jobs"][0]
print(sys.argv[1], "reads", job["read"]["total_ios"], "writes", job["write"]["total_ios"], "error", job["error"])
assert job["error"] == 0 and job["read"]["total_ios"] > 100 and job["write"]["total_ios"] > 100
PYTHON
done
blkswitch stats files
