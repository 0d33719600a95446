"""Relays TCP connections from an inherited listening socket to one address: `python -m local.forward FD HOST PORT`.

A socket belongs to the network namespace in which it was made. The launcher listens on the machine's loopback and
hands the socket to this program, which runs in the hub: so a kubeconfig works on the machine although it has no link
to the cluster.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import suppress

CHUNK = 1 << 16


async def relay(listener: socket.socket, host: str, port: int) -> None:
    """Serves until cancelled."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()  # the API server is down: the client sees a closed connection and comes again
            return
        await asyncio.gather(_copy(reader, upstream_writer), _copy(upstream_reader, writer))
        for end in (writer, upstream_writer):
            end.close()

    server = await asyncio.start_server(connected, sock=listener)
    await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()  # says "no more from here"; the other direction may still have words


def main() -> None:
    descriptor, host, port = sys.argv[1:]
    asyncio.run(relay(socket.socket(fileno=int(descriptor)), host, int(port)))


if __name__ == "__main__":
    main()
