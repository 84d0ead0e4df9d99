# Every command and flag; what must be refused, and with which error. 8 MiB in regions of 64 KiB over three files.
import errno, os

MiB, REGION = 1 << 20, 65536
SIZE = 8 * MiB
structured = os.environ["FORM"] == "structured"


def connect():
    h = nbd.NBD()
    # Let through what the server has to refuse. A libnbd that has extended headers goes on setting
    # PAYLOAD_LEN, as its users' programs do.
    h.set_strict_mode(getattr(nbd, "STRICT_AUTO_FLAG", 0))
    h.set_request_structured_replies(structured)
    h.add_meta_context("base:allocation")
    h.add_meta_context("blkswitch:path")
    h.connect_uri(os.environ["URI"])
    assert h.get_structured_replies_negotiated() == structured
    return h


def fails(error, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as e:
        assert e.errnum == error, (e, errno.errorcode[error], arguments)
    else:
        raise AssertionError(("did not fail", call, arguments))


h = connect()
assert h.get_size() == SIZE
assert h.get_block_size(nbd.SIZE_MINIMUM) == 512
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MiB
assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero() and h.can_fast_zero() and h.can_cache()
assert h.can_multi_conn() and h.can_df() == structured and not h.is_read_only()

# Writes and reads, in regions, across them, in part, all of it.
data = os.urandom(3 * REGION)
h.pwrite(data, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(3 * REGION, 4096) == data
assert h.pread(512, 4096 + REGION) == data[REGION:REGION + 512]
big = os.urandom(SIZE)
h.pwrite(big, 0)
assert h.pread(SIZE, 0) == big
assert h.pread(0, 0) == b"" and h.pwrite(b"", 0) is None
if structured:
    assert h.pread(SIZE, 0, nbd.CMD_FLAG_DF) == big
    chunks = []
    h.pread_structured(5 * REGION, 512, lambda buf, at, status, e: chunks.append((bytes(buf), at, status)))
    assert b"".join(buf for buf, _, _ in sorted(chunks, key=lambda c: c[1])) == big[512:512 + 5 * REGION]
    assert all(status == nbd.READ_DATA for _, _, status in chunks)
    chunks = []
    h.pread_structured(MiB, 0, lambda buf, at, status, e: chunks.append((len(buf), at)), nbd.CMD_FLAG_DF)
    assert chunks == [(MiB, 0)], chunks
h.flush()

# Zeroes and trims: the range, nothing beside it.
image = bytearray(big)
for call, flags in [
    (h.zero, 0),
    (h.zero, nbd.CMD_FLAG_NO_HOLE),
    (h.zero, nbd.CMD_FLAG_FAST_ZERO),
    (h.zero, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE),
    (h.trim, 0),
    (h.trim, nbd.CMD_FLAG_FUA),
]:
    at, count = 512 * 301, 512 * 777
    h.pwrite(bytes(image[:MiB]), 0)
    call(count, at, flags)
    assert h.pread(MiB, 0) == bytes(image[:at]) + bytes(count) + bytes(image[at + count:MiB]), (call, flags)
h.pwrite(bytes(image[:MiB]), 0)
h.zero(SIZE, 0)
assert h.pread(SIZE, 0) == bytes(SIZE)
h.pwrite(big, 0)
h.cache(SIZE, 0)
assert h.pread(SIZE, 0) == big

# Many at once: the answers come in any order, each with its own data.
buffers = [nbd.Buffer(4096) for _ in range(512)]
cookies = {h.aio_pread(buffer, 4096 * n): n for n, buffer in enumerate(buffers)}
while cookies:
    h.poll(-1)
    for cookie in [c for c in cookies if h.aio_command_completed(c)]:
        n = cookies.pop(cookie)
        assert buffers[n].to_bytearray() == big[4096 * n:4096 * (n + 1)], n

# What is refused.
fails(errno.EINVAL, h.pread, 512, SIZE)
fails(errno.EINVAL, h.pread, 1024, SIZE - 512)
fails(errno.ENOSPC, h.pwrite, bytes(512), SIZE)
fails(errno.ENOSPC, h.pwrite, bytes(1024), SIZE - 512)
fails(errno.ENOSPC, h.zero, 1024, SIZE - 512)
fails(errno.EINVAL, h.trim, 1024, SIZE - 512)
fails(errno.EINVAL, h.cache, 1024, SIZE - 512)
fails(errno.EINVAL, h.pread, 512, 1 << 62)
fails(errno.EINVAL, h.pwrite, bytes(100), 0)
fails(errno.EINVAL, h.pread, 512, 100)
fails(errno.EINVAL, h.zero, 100, 0)
fails(errno.EINVAL, h.trim, 512, 1)
fails(errno.EINVAL, h.trim, 512, 0, nbd.CMD_FLAG_REQ_ONE)
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
fails(errno.EINVAL, h.pwrite, bytes(512), 0, nbd.CMD_FLAG_NO_HOLE)
# With extended headers the protocol has the server drop the connection instead.
if not getattr(h, "get_extended_headers_negotiated", bool)():
    fails(errno.EINVAL, h.pwrite, bytes(40 * MiB), 0)
assert h.pread(SIZE, 0) == big  # nothing of it was done, and the connection is in step

# Extents of both contexts.
seen = {}


def extent(context, offset, entries, error):
    seen[context] = entries


if structured:
    h.block_status(4 * REGION, 32768, extent)
    assert seen == {
        "base:allocation": [4 * REGION, 0],
        "blkswitch:path": [32768, 0, REGION, 1, REGION, 2, REGION, 0, 32768, 1],
    }, seen
    h.block_status(4 * REGION, 32768, extent, nbd.CMD_FLAG_REQ_ONE)
    assert seen == {"base:allocation": [4 * REGION, 0], "blkswitch:path": [32768, 0]}, seen
    h.trim(REGION, 0)
    h.block_status(2 * REGION, 0, extent)
    hole = nbd.STATE_HOLE | nbd.STATE_ZERO
    assert seen["base:allocation"] == [REGION, hole, REGION, 0], seen
    h.pwrite(big[:REGION], 0)
    fails(errno.EINVAL, h.block_status, 1024, SIZE - 512, extent)
    fails(errno.EINVAL, h.block_status, 0, 0, extent)
else:
    assert not h.can_meta_context("blkswitch:path")

# Connections see one device: what one has been told is written, the other reads; a flush on one covers all.
other = connect()
for n in range(64):
    block = os.urandom(4096)
    h.pwrite(block, n * REGION)
    assert other.pread(4096, n * REGION) == block
other.flush()
other.shutdown()
assert h.pread(4096, 63 * REGION) == block
h.shutdown()
