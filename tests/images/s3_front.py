"""What clients of the S3 server speak to: it passes bytes on to moto's server, which holds the objects.

    python -m tests.images.s3_front ADDRESS PORT TARGET_PORT ORDERS

Killing it is what clients see when their server is killed, and the objects stay, as on a server with
disks. Where the file ORDERS holds a number, it is the size in bytes of a request in whose middle this
process kills itself with SIGKILL: the file is removed, and nothing of that request's rest is passed on.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from pathlib import Path

_BLOCK_BYTES = 65536


def _order(path):
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _length(data):
    """Return the size of the body of a PUT whose head begins these bytes; 0 if they begin none."""
    head, _, _ = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    if not first.startswith(b"PUT "):
        return 0
    for line in lines:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def _pass(source, sink, orders):
    """Pass bytes on; orders is None on the way back."""
    in_fatal = None  # bytes of an upload that are still passed on before the end
    try:
        while data := source.recv(_BLOCK_BYTES):
            if orders is not None:
                order = _order(orders) if in_fatal is None else None
                length = _length(data)
                if order is not None and length >= order:
                    in_fatal = length // 2
                if in_fatal is not None:
                    sink.sendall(data[:in_fatal])
                    in_fatal -= len(data)
                    if in_fatal <= 0:
                        orders.unlink()
                        os.kill(os.getpid(), signal.SIGKILL)
                    continue
            sink.sendall(data)
    except OSError:
        pass
    finally:
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def main():
    address, port, target, orders = sys.argv[1:]
    listener = socket.create_server((address, int(port)), backlog=100, reuse_port=False)
    while True:
        client, _ = listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", int(target)))
        except OSError:
            client.close()
            continue
        for way in ((client, server, Path(orders)), (server, client, None)):
            threading.Thread(target=_pass, args=way, daemon=True).start()


if __name__ == "__main__":
    main()
