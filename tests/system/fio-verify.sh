# fio's nbd engine writes and verifies while the maps of its devices change, tables are reloaded, devices are
# suspended, and regions are moved from path to path with their data, as a storage array would.
# Debian 13's programs, too.
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

def paths():
    "The path of every region."
    runs = json.loads(blkswitch("map", "show", "files", "--json"))["runs"]
    return [run["path"] for run in runs for _ in range(run["count"])]

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
    "Regions move with their data: suspended, copied, mapped anew, resumed. What is left behind is spoilt."
    leaves = [open(f"{here}/files.{name}", "r+b", buffering=0) for name in "abc"]
    blkswitch("suspend", "files")
    words, now = [], paths()
    for number in rng.sample(range(regions), 128):
        source, to = now[number], (now[number] + rng.choice([1, 2])) % 3
        data = os.pread(leaves[source].fileno(), region, number * region)
        os.pwrite(leaves[to].fileno(), data, number * region)
        os.pwrite(leaves[source].fileno(), b"\xde" * region, number * region)
        words.append(f"{number:x}:{to}")
    blkswitch("message", "files", "0", "set_region_mappings", *words)
    blkswitch("resume", "files")

def suspend_resume():
    blkswitch("suspend", rng.choice(["files", "alike"]))
    blkswitch("resume", "files")
    blkswitch("resume", "alike")

def reload():
    "A new table, round robin again; its paths are still the one file."
    blkswitch("load", "alike", "--table", alike_table)
    blkswitch("resume", "alike")

# Every kind comes in each round, so none is missing however few there is time for.
kinds, waiting = [scatter, scatter, repeat_map, migrate, migrate, migrate, suspend_resume, reload], []
while any(os.path.exists(f"/proc/{pid}") for pid in pids):
    waiting = waiting or rng.sample(kinds, len(kinds))
    change = waiting.pop()
    change()
    counts[change.__name__] = counts.get(change.__name__, 0) + 1
print(counts)
assert all(counts.get(c.__name__, 0) > 0 for c in (scatter, repeat_map, migrate, suspend_resume, reload)), counts
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
