# A small NBD client over a unix socket, for tests that need several requests under way and no package: structured
# replies where contexts are asked for, simple ones otherwise.
import socket, struct

READ, WRITE, DISCONNECT, FLUSH, TRIM, STATUS, ZEROES = 0, 1, 2, 3, 4, 7, 6
FUA, NO_HOLE, FAST_ZERO = 1, 2, 16


class Client:
    def __init__(self, path, export, contexts=(), timeout=60):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(path)
        self.take(18)
        self.socket.sendall(struct.pack(">I", 3))
        name = export.encode()
        if contexts:
            self.option(8)
            queries = b"".join(struct.pack(">I", len(c)) + c.encode() for c in contexts)
            self.option(10, struct.pack(">I", len(name)) + name + struct.pack(">I", len(contexts)) + queries)
        for kind, data in self.option(7, struct.pack(">I", len(name)) + name + b"\0\0"):
            if kind == 3 and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:12])
        self.cookie = 0

    def take(self, count):
        got = bytearray()
        while len(got) < count:
            more = self.socket.recv(count - len(got))
            if not more:
                raise EOFError("the server closed the connection")
            got += more
        return bytes(got)

    def option(self, number, data=b""):
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        replies = []
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            replies.append((kind, self.take(length)))
            if kind == 1:
                return replies
            if kind >> 31:
                raise OSError(f"option {number} is refused: {kind:#x} {replies[-1][1]}")

    def send(self, command, offset=0, length=0, flags=0, data=b""):
        self.cookie += 1
        header = struct.pack(">IHHQQI", 0x25609513, flags, command, self.cookie, offset, length)
        self.socket.sendall(header + data)
        return self.cookie

    # The next answer: (cookie, error, data).
    def reply(self, length=0):
        magic, = struct.unpack(">I", self.take(4))
        if magic == 0x67446698:
            error, cookie = struct.unpack(">IQ", self.take(12))
            return cookie, error, self.take(length) if not error else b""
        assert magic == 0x668e33ef, f"magic {magic:#x}"
        data, error = b"", 0
        while True:
            flags, kind, cookie, size = struct.unpack(">HHQI", self.take(16))
            chunk = self.take(size)
            if kind >> 15:
                error, = struct.unpack(">I", chunk[:4])
            elif kind == 1:
                data += chunk[8:]
            elif kind == 5:
                data += chunk[4:]
            if flags & 1:
                return cookie, error, data
            self.take(4)

    def call(self, command, offset=0, length=0, flags=0, data=b""):
        cookie = self.send(command, offset, length, flags, data)
        answered, error, got = self.reply(length if command == READ else 0)
        assert answered == cookie, "an answer to another request"
        return error, got

    # [(bytes, status)] of the first context.
    def extents(self, offset, length):
        error, data = self.call(STATUS, offset, length)
        assert error == 0, error
        return [struct.unpack_from(">II", data, at) for at in range(0, len(data), 8)]
