"""The device-mapper through its ioctls, the kernel's log, and disks whose sectors say where they are.

Processes start slowly in an emulated guest, so what is done thousands of times is done here without dmsetup. The
layout of the ioctls is include/uapi/linux/dm-ioctl.h.
"""

import errno
import fcntl
import mmap
import os
import re
import struct
import subprocess

SECTOR = 512
HEADER = struct.Struct("=3I I I I i I I I Q 128s 129s 7x")
TARGET = struct.Struct("=Q Q i I 16s")
assert HEADER.size == 312 and TARGET.size == 40
CREATE, REMOVE, SUSPEND, STATUS, LOAD, CLEAR, TABLE, MESSAGE = 3, 4, 6, 7, 9, 10, 12, 14
READONLY, SUSPENDED, STATUS_TABLE, BUFFER_FULL, INACTIVE, NOFLUSH = 1, 2, 16, 256, 4096, 2048
FIRST_BUFFER = 16384


class Dm:
    """/dev/mapper/control."""

    def __init__(self):
        if not os.path.exists("/dev/mapper/control"):
            raise SystemExit("no /dev/mapper/control: modprobe dm-mod")
        self.fd = os.open("/dev/mapper/control", os.O_RDWR)

    def call(self, number, name, flags=0, targets=0, payload=b"", size=FIRST_BUFFER):
        """One ioctl: (errno or 0, header fields, answer)."""
        size = max(size, HEADER.size + len(payload) + 8)
        head = HEADER.pack(4, 0, 0, size, HEADER.size, targets, 0, flags, 0, 0, 0, name.encode(), b"")
        buffer = bytearray(head + payload + bytes(size - HEADER.size - len(payload)))
        try:
            fcntl.ioctl(self.fd, 3 << 30 | HEADER.size << 16 | 0xFD << 8 | number, buffer)
        except OSError as error:
            return error.errno, None, b""
        fields = HEADER.unpack_from(buffer)
        if fields[7] & BUFFER_FULL and size < 1 << 28:
            return self.call(number, name, flags, targets, payload, 4 * size)
        return 0, fields, bytes(buffer[fields[4]:fields[3]])

    def create(self, name):
        """Makes a device without a table, and its node; returns (major, minor)."""
        error, fields, _ = self.call(CREATE, name)
        if error:
            raise OSError(error, f"create {name}: {os.strerror(error)}")
        device = fields[10]
        number = (device >> 8) & 0xFFF, (device & 0xFF) | ((device >> 12) & 0xFFF00)
        node = f"/dev/mapper/{name}"
        if os.path.exists(node):
            os.unlink(node)
        os.mknod(node, 0o060600, os.makedev(*number))
        return number

    def load(self, name, table, flags=0):
        """Loads table lines; returns an errno or 0."""
        payload = b""
        lines = [line.split(None, 3) for line in table.split("\n")]
        for line in lines:
            start, length, kind = line[:3]
            # What follows the type, to the letter.
            params = (line[3] if len(line) > 3 else "").encode("latin-1") + b"\0"
            params += bytes(-len(params) % 8)
            next_target = TARGET.size + len(params)
            payload += TARGET.pack(int(start), int(length), 0, next_target, kind.encode()) + params
        return self.call(LOAD, name, flags, len(lines), payload)[0]

    def resume(self, name, flags=0):
        return self.call(SUSPEND, name, flags)[0]

    def suspend(self, name, flags=0):
        return self.call(SUSPEND, name, flags | SUSPENDED)[0]

    def message(self, name, sector, text):
        """Sends a message: (errno or 0, answer)."""
        data = text if isinstance(text, bytes) else text.encode("latin-1")
        error, _, answer = self.call(MESSAGE, name, 0, 0, struct.pack("=Q", sector) + data + b"\0")
        return error, answer.split(b"\0")[0].decode("latin-1")

    def status(self, name, flags=0):
        """The lines of `dmsetup status`, or with STATUS_TABLE of `dmsetup table`."""
        error, fields, answer = self.call(TABLE, name, flags)
        if error:
            raise OSError(error, f"status {name}: {os.strerror(error)}")
        lines, at = [], 0
        for _ in range(fields[5]):
            start, length, _, next_target, kind = TARGET.unpack_from(answer, at)
            text = answer[at + TARGET.size:].split(b"\0")[0].decode("latin-1")
            lines.append(f"{start} {length} {kind.split(bytes(1))[0].decode()} {text}")
            at = next_target
        return lines

    def table(self, name):
        return self.status(name, STATUS_TABLE)

    def remove(self, name):
        error = self.call(REMOVE, name)[0]
        if not error and os.path.exists(f"/dev/mapper/{name}"):
            os.unlink(f"/dev/mapper/{name}")
        return error

    def make(self, name, table, flags=0):
        """create + load + resume; returns (major, minor)."""
        number = self.create(name)
        for step in (lambda: self.load(name, table, flags), lambda: self.resume(name, flags)):
            error = step()
            if error:
                self.remove(name)
                raise OSError(error, f"{table}: {os.strerror(error)}")
        return number


class Log:
    """The kernel's log from now on."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.fd, 0, os.SEEK_END)

    def read(self):
        """New records as [level, text]."""
        records = []
        while True:
            try:
                record = os.read(self.fd, 8192).decode("latin-1")
            except BlockingIOError:
                return records
            except OSError as error:
                if error.errno != errno.EPIPE:
                    raise
                continue
            head, text = record.split(";", 1)
            records.append([int(head.split(",")[0]) & 7, text.split("\n")[0]])

    def read_dm(self):
        """Those of the device-mapper."""
        return [record for record in self.read() if record[1].startswith("device-mapper:")]


def run(command, check=True):
    """A shell command: (exit status, output, errors)."""
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    if check and done.returncode:
        raise SystemExit(f"{command}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.returncode, done.stdout, done.stderr


def mark(device, sectors):
    """Writes to every sector of a device its name and its number."""
    label = os.path.basename(device).ljust(8).encode()
    pad = bytes(SECTOR - 16)
    content = b"".join(label + struct.pack("<Q", sector) + pad for sector in range(sectors))
    with open(device, "wb") as file:
        file.write(content)
        os.fsync(file.fileno())


def read_direct(device, sector, count):
    """Reads sectors past the page cache."""
    length = count * SECTOR
    buffer = mmap.mmap(-1, max(length, 4096))
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        done = os.preadv(fd, [memoryview(buffer)[:length]], sector * SECTOR)
    finally:
        os.close(fd)
    return buffer[:done]


def origin(sector):
    """What a marked sector says: (device, number)."""
    return sector[:8].decode("latin-1").strip(), struct.unpack_from("<Q", sector, 8)[0]


def origins(device, start, length, step, block=1):
    """(device, number) of the first sector of every `step` sectors, read whole regions at a time."""
    data = read_direct(device, start, -(-length // block) * block)
    return [origin(data[at * SECTOR:at * SECTOR + 16]) for at in range(0, length, step)]


def expand(text):
    """A map as golden files write it: '(0 1 2)*16' is the cycle up to 16 regions, '2*5' five regions on path 2."""
    paths = []
    for cycle, up_to, path, count in re.findall(r"\(([^)]*)\)\*(\d+)|(\d+)(?:\*(\d+))?", text):
        if cycle:
            numbers = [int(number) for number in cycle.split()]
            paths += [numbers[at % len(numbers)] for at in range(int(up_to))]
        else:
            paths += [int(path)] * int(count or 1)
    return paths


class Results:
    """Counts and prints what passed and what did not."""

    def __init__(self, title):
        self.title, self.passed, self.failed = title, 0, 0

    def check(self, name, found, expected):
        """Both must be equal."""
        if found == expected:
            self.passed += 1
            return True
        self.failed += 1
        print(f"FAILED {self.title}: {name}\n  expected {expected!r}\n  found    {found!r}", flush=True)
        return False

    def end(self):
        print(f"{self.title}: {self.passed} passed, {self.failed} failed", flush=True)
        return self.failed
