# Devices that change under their clients: docs/nbd.md, "What happens to a connection when ...".
import errno, os, subprocess, time

REGION = 65536
HERE = os.getcwd()


def blkswitch(*words, ok=True):
    result = subprocess.run(["blkswitch", *words], capture_output=True, text=True)
    assert (result.returncode == 0) == ok, (words, result)
    return result.stdout + result.stderr


def table(regions):
    return f"0 {regions * 128} switch 3 128 0 {HERE}/x.a 0 {HERE}/x.b 0 {HERE}/x.c 0"


def connect(name):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.connect_uri(f"nbd+unix:///{name}?socket={os.environ['NBD']}")
    return h


def fails(error, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as e:
        assert e.errnum == error, (e, arguments)
    else:
        raise AssertionError(("did not fail", call, arguments))


blkswitch("create", "x", "--make-files", "--table", table(16))
h = connect("x")
block = os.urandom(REGION)
h.pwrite(block, REGION)

# Suspended: requests wait for the resume, and then succeed; handshakes do not wait.
blkswitch("suspend", "x")
buffer = nbd.Buffer(REGION)
cookie = h.aio_pread(buffer, REGION)
until = time.monotonic() + 0.3
while time.monotonic() < until:
    h.poll(50)
assert not h.aio_command_completed(cookie)
assert connect("x").get_size() == 16 * REGION
blkswitch("resume", "x")
while not h.aio_command_completed(cookie):
    h.poll(-1)
assert buffer.to_bytearray() == block

# A message is seen by the next request of a connection that was there before.
blkswitch("message", "x", "0", "set_region_mappings", "1:2")
assert h.pread(REGION, REGION) == bytes(REGION)
blkswitch("message", "x", "0", "set_region_mappings", "1:1")
assert h.pread(REGION, REGION) == block

# Shrunk: the announced size stays, what lies behind the new end fails.
blkswitch("load", "x", "--table", table(8))
blkswitch("resume", "x")
assert h.get_size() == 16 * REGION and h.pread(REGION, REGION) == block
fails(errno.EINVAL, h.pread, 512, 8 * REGION)
fails(errno.ENOSPC, h.pwrite, bytes(512), 8 * REGION)
assert connect("x").get_size() == 8 * REGION
# Grown: new connections see the new size.
blkswitch("load", "x", "--make-files", "--table", table(16))
blkswitch("resume", "x")
assert connect("x").get_size() == 16 * REGION
h.pwrite(block, 15 * REGION)

# A flush on one connection reaches what another has written, and only the path that has something to flush.
def flushes():
    import json
    stats = json.loads(blkswitch("stats", "x", "--json"))
    return [path["io"]["flushes"] for path in stats["paths"]]


h.flush()
before = flushes()
other = connect("x")
h.pwrite(block, 4 * REGION)
other.flush()
after = flushes()
assert [b - a for a, b in zip(before, after)] == [0, 1, 0], (before, after)
other.flush()
assert flushes() == after  # nothing is dirty any more

# Removed: refused while it is open, unless by force, which ends its clients' connections.
assert "busy" in blkswitch("remove", "x", ok=False).lower()
blkswitch("create", "y", "--make-files", "--table", f"0 128 linear {HERE}/y 0")
victim = connect("y")
blkswitch("remove", "--force", "y")
try:
    victim.pread(512, 0)
    raise AssertionError("connected to a device that is gone")
except nbd.Error:
    pass
# Deferred: with its last client.
blkswitch("remove", "--deferred", "x")
assert h.pread(REGION, 15 * REGION) == block
for client in (h, other):
    client.shutdown()
del h, other, victim
until = time.monotonic() + 60
while "x\t" in blkswitch("ls"):
    assert time.monotonic() < until, "still there"
    time.sleep(0.05)

# Read-only: announced, and kept.
blkswitch("create", "z", "--readonly", "--table", table(16))
h = connect("z")
assert h.is_read_only()
assert h.pread(REGION, 15 * REGION) == block
fails(errno.EPERM, h.pwrite, bytes(512), 0)
fails(errno.EPERM, h.zero, 512, 0)
fails(errno.EPERM, h.trim, 512, 0)
h.flush()
h.shutdown()
