# The client of discard.sh: one request over NBD.
import sys

from nbdwire import TRIM, WRITE, Client

SEND_TRIM = 1 << 5

mode, path, export = sys.argv[1:4]
client = Client(path, export)
if mode == "offered":
    print("yes" if client.flags & SEND_TRIM else "no")
else:
    if mode == "write":
        error, _ = client.call(WRITE, 0, 65536, data=bytes(range(256)) * 256)
    else:
        error, _ = client.call(TRIM, 0, client.size)
    sys.exit(f"error {error}" if error else 0)
