"""relay.py UNIX-SOCKET: connections to a port of this host, which it prints, go on to a unix socket."""

import socket
import sys
import threading


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()


def join(client):
    with client, socket.socket(socket.AF_UNIX) as server:
        server.connect(sys.argv[1])
        back = threading.Thread(target=pump, args=(server, client), daemon=True)
        back.start()
        pump(client, server)
        back.join()


with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        threading.Thread(target=join, args=(listener.accept()[0],), daemon=True).start()
