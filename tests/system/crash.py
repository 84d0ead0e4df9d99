# The two sides of crash.sh. `write` keeps many writes in flight, flushes every now and then, and notes in memory what
# is certain; when the server dies it stores that. `check` compares it with what the device holds.
#
# A block of 4 KiB says its number and its generation, over and over. A generation is certain once it is covered by
# a flush that was answered, or written with FUA and answered; a later one may be there as well, never one that was
# not written. Blocks in flight are written once at a time, so their order is that of their generations.
import json, random, struct, sys

import nbd

BLOCK = 4096
mode, uri, journal = sys.argv[1:4]


def content(block, generation):
    return struct.pack("<QQ", block, generation) * (BLOCK // 16)


def write(blocks, seed):
    rng = random.Random(seed)
    h = nbd.NBD()
    h.connect_uri(uri)
    written, answered, certain = [0] * blocks, [0] * blocks, [0] * blocks
    first = h.pread(blocks * BLOCK, 0)
    for block in range(blocks):
        written[block] = answered[block] = certain[block] = struct.unpack_from("<QQ", first, block * BLOCK)[1]
    in_flight, flush, requests, ready = {}, None, 0, False
    try:
        while True:
            while len(in_flight) < 64:
                block = rng.randrange(blocks)
                if block in in_flight.values():
                    continue
                written[block] += 1
                fua = rng.randrange(16) == 0
                data = nbd.Buffer.from_bytearray(bytearray(content(block, written[block])))
                in_flight[h.aio_pwrite(data, block * BLOCK, flags=nbd.CMD_FLAG_FUA if fua else 0), data, fua] = block
                requests += 1
            if flush is None and rng.randrange(8) == 0:
                flush = h.aio_flush(), list(answered)
            h.poll(1000)
            for key in list(in_flight):
                cookie, _, fua = key
                if h.aio_command_completed(cookie):
                    block = in_flight.pop(key)
                    answered[block] = written[block]
                    if fua:
                        certain[block] = max(certain[block], written[block])
            if flush and h.aio_command_completed(flush[0]):
                certain = [max(pair) for pair in zip(certain, flush[1])]
                flush = None
            # Once there are so many, and some of them are certain: several may have been added at a time.
            if not ready and requests > 1024 and any(certain):
                ready = True
                print("ready", flush=True)
    except nbd.Error:
        # Killed: what is certain now is what counts.
        with open(journal, "w") as out:
            json.dump({"written": written, "certain": certain, "requests": requests}, out)


def check():
    state = json.load(open(journal))
    h = nbd.NBD()
    h.connect_uri(uri)
    blocks = len(state["written"])
    data = h.pread(blocks * BLOCK, 0)
    ahead = 0
    for block in range(blocks):
        held = data[block * BLOCK:(block + 1) * BLOCK]
        number, generation = struct.unpack_from("<QQ", held)
        low, high = state["certain"][block], state["written"][block]
        assert generation == 0 or held == content(block, generation), f"block {block}: torn or foreign"
        assert low <= generation <= high, f"block {block}: {generation} is not in {low}..{high}"
        ahead += generation > low
    print(f"{state['requests']} writes, {sum(state['certain'])} generations certain, {ahead} blocks ahead of that")
    assert sum(state["certain"]) > 0 and state["requests"] > 1024
    h.shutdown()


if mode == "write":
    write(int(sys.argv[4]), int(sys.argv[5]))
else:
    check()
