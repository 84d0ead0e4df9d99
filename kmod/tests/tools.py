"""Replays the recorded dmsetup transcripts (tests/golden/tools.jsonl) against the module.

All of them concern switch devices. A step is a command, or something done beside the commands: what each kind of step
means stands with the function that does it. What is not compared, and why, is in NOT_COMPARED.
"""

import errno
import os
import re
import threading

import dm
import golden

NODE = "/dev/mapper/switch"
# Commands whose answer depends on the machine and not on the target.
NOT_COMPARED = {
    "dmsetup version": "versions of the library and the kernel",
    "dmsetup targets | sort": "which other targets are loaded",
    "mkdir -p /tmp/m; mount -t ext4 /dev/ram0 /tmp/m": "the words of another mount command",
}
# Cases whose errno is that of a device which cannot be opened, which is the kernel's affair.
LOOK_UPS = ("tools-024", "tools-036")
NO_TABLE = "device-mapper: ioctl: The device has no table."
# Long for an emulated processor that others use, too.
BLOCKED_AFTER_S = 3


class Transcript:
    def __init__(self, results, differences):
        self.dm, self.log, self.results, self.differences = dm.Dm(), dm.Log(), results, differences
        # I/O that did not end yet: (thread, where it puts what it found).
        self.waiting = None
        self.major = dm.run("awk '/device-mapper$/ {print $1}' /proc/devices | tail -1")[1].strip()

    def replay(self, case):
        pairs = []
        self.log.read()
        for step in case["steps"]:
            if "cmd" in step:
                pairs += self.command(step)
            else:
                for what, expected in step.items():
                    pairs.append((what, self.other(what, expected), expected))
        wrong = [pair for pair in pairs if pair[1] != pair[2]]
        if case["id"] in self.differences:
            self.results.check(f"{case['id']} is listed as different, and is", bool(wrong), True)
            return
        self.results.passed += not wrong
        for what, found, expected in wrong:
            self.results.check(f"{case['id']} {case['name']}: {what}", found, expected)

    def command(self, step):
        """A shell command: its exit status, what it prints, and the kernel's log."""
        command = step["cmd"]
        code, out, err = dm.run(command.replace("-j 253", f"-j {self.major}"), check=False)
        log = [[level, self.recorded(text)] for level, text in golden.own(self.log.read())]
        if command in NOT_COMPARED:
            return []
        if any(text == NO_TABLE for _, text in step.get("kmsg", [])):
            # The core's own answer changed between 6.12.95 (success) and 6.12.117 (this error).
            return []
        found = code, self.recorded(out), self.recorded(err)
        expected = step["rc"], step["stdout"], step["stderr"]
        expected_log = [[level, text.replace("$DEV", "253:0")] for level, text in golden.own(step.get("kmsg", []))]
        return [(command, found, expected), (f"log of {command}", log, expected_log)]

    def recorded(self, text):
        """The device-mapper's major number as it was where the transcripts were recorded."""
        return re.sub(rf"\b{self.major}\b", "253", text)

    def other(self, what, expected):
        if what == "map":
            return self.map(expected)
        if what == "ioctl":
            fields = self.dm.call(dm.STATUS, "switch")[1]
            return {"flags": fields[7], "event_nr": fields[8], "open": fields[6], "targets": fields[5]}
        if what == "while open":
            with open(NODE, "rb"):
                return self.nested(expected)
        if what == "ram3 held":
            held = os.open("/dev/ram3", os.O_RDWR | os.O_EXCL)
            found = self.nested(expected)
            os.close(held)
            return found
        if what == "O_EXCL open of a path":
            return attempt(lambda: os.open("/dev/ram0", os.O_RDWR | os.O_EXCL))
        if what.startswith("I/O at sector"):
            return self.start_io(int(what.split()[-1]))
        if what == "the same I/O later":
            return self.finish_io()
        if what == "ram1 sector 0":
            return dm.read_direct("/dev/ram1", 0, 1)[:4].hex()
        if what == "read":
            # Without a table there is no node, or there is one without a device.
            return self.start_io(0).replace("ENXIO", "ENOENT")
        if what == "reads":
            return [where(dm.read_direct(NODE, sector, 1)) for sector in (0, 128, 129, 1000)]
        if what == "write":
            return attempt(lambda: write_first(NODE))
        if what.startswith("four threads"):
            return four_threads()
        raise SystemExit(f"tools.jsonl has a step '{what}' that is not known here")

    def nested(self, expected):
        code, out, err = dm.run(expected["cmd"], check=False)
        return {"cmd": expected["cmd"], "rc": code, "stdout": out, "stderr": err}

    def map(self, text):
        """The recorded map if every region reads so, else what was read."""
        line = self.dm.table("switch")[0].split()
        start, length, region_size, words = int(line[0]), int(line[1]), int(line[4]), line[6:]
        found = dm.origins(NODE, start, length, region_size)
        expected = []
        for region, path in enumerate(dm.expand(text)):
            expected.append((disk(words[2 * path]), int(words[2 * path + 1]) + region * region_size))
        # Sector 0 of ram1 was written to by a case before.
        same = all(a == b or b == ("ram1", 0) for a, b in zip(found, expected))
        return text if same and len(found) == len(expected) else found

    def start_io(self, sector):
        """Reads a sector, or writes sector 0 in the one case that does; 'blocked' if that takes longer."""
        found = []
        writes = self.writes

        def work():
            try:
                if writes:
                    fd = os.open(NODE, os.O_RDWR | os.O_DIRECT)
                    page = dm.mmap.mmap(-1, 4096)
                    page[:512] = b"\x77" * 512
                    os.pwrite(fd, memoryview(page)[:512], 0)
                    os.close(fd)
                    found.append("wrote 1")
                else:
                    found.append(where(dm.read_direct(NODE, sector, 1)))
            except OSError as error:
                found.append(errno.errorcode[error.errno])

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(BLOCKED_AFTER_S)
        self.waiting = thread, found
        return "blocked" if thread.is_alive() else found[0]

    writes = False

    def finish_io(self):
        thread, found = self.waiting
        thread.join(BLOCKED_AFTER_S)
        return "blocked" if thread.is_alive() else found[0]


def where(sector):
    disk, number = dm.origin(sector)
    return f"{disk} {number}"


def write_first(node):
    fd = os.open(node, os.O_RDWR | os.O_DIRECT)
    try:
        os.pwrite(fd, dm.mmap.mmap(-1, 4096), 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def disk(number):
    """The disk that a path's maj:min is, or that is behind it."""
    name = os.path.basename(os.readlink(f"/sys/dev/block/{number}"))
    behind = os.listdir(f"/sys/block/{name}/slaves") if name.startswith("dm-") else []
    return behind[0] if behind else name


def attempt(function):
    try:
        os.close(function())
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]


def four_threads():
    """Four threads send fifty messages each that map all regions to one path, while sector 0 is read."""
    target, failures, wrong = dm.Dm(), [], []
    number = target.make("together", "0 2048 switch 3 128 0 /dev/ram0 0 /dev/ram1 0 /dev/ram2 0")

    def send(path):
        own = dm.Dm()
        for _ in range(50):
            error, _ = own.message("together", 0, f"set_region_mappings 0:{path % 3} R1,f")
            if error:
                failures.append(error)

    threads = [threading.Thread(target=send, args=(path,)) for path in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        disk, sector = dm.origin(dm.read_direct("/dev/mapper/together", 128, 1))
        if not disk.startswith("ram") or sector != 128:
            wrong.append((disk, sector))
    disks = {disk for disk, _ in dm.origins("/dev/mapper/together", 128, 1920, 128)}
    target.remove("together")
    del number
    return {
        "failures": failures,
        "all regions on one path at the end": len(disks) == 1,
        "every read gave sector 0 of some path": not wrong,
    }


def run(reference):
    """Replays all; on another kernel than the reference without what depends on the errno of a device look-up. Returns the number of failures. Needs the module as `switch`, no other mapped device, and the ram disks."""
    for number in range(3):
        dm.mark(f"/dev/ram{number}", golden.RAM_SECTORS)
    results = dm.Results("tools")
    differences = golden.listed_differences(False)
    transcript = Transcript(results, differences)
    for case in golden.cases("tools"):
        if not reference and case["id"] in LOOK_UPS:
            continue
        transcript.writes = case["name"] == "write while suspended"
        transcript.replay(case)
    return results.end()
