"""A TCP proxy before a server: cuts its bytes into other pieces, and cuts the connection where a test wants it."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
from collections.abc import Iterator


class Proxy:
    """Pass connections on to a server's socket.

    ``target`` is the server's socket; another one is for connections to come. ``pieces`` is the longest piece in which
    the server's bytes are passed on; ``cut_after`` ends every connection after so many bytes of the server's. ``cuts``
    counts the connections that were cut one by one.
    """

    def __init__(self, socket_path: str, *, pieces: int = 65536, cut_after: int | None = None, seed: int = 0) -> None:
        self.target = socket_path
        self._pieces = pieces
        self.cut_after = cut_after
        self._dice = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._stopping = False
        self.cuts = 0
        self._lock = threading.Lock()
        self._left: int | None = None
        self._victims: set[socket.socket] = set()
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Stop to accept and cut every connection."""
        self._stopping = True
        for thread in list(self._threads):
            thread.join()
        self._listener.close()

    def cut_one(self, after: int) -> None:
        """Cut one connection, the one that is to carry the last of so many more bytes of the server's."""
        with self._lock:
            self._left = after

    def cut_all(self) -> None:
        """Cut the connections of now where they stand."""
        with self._lock:
            self._victims.update(self._clients)

    def cut_any(self) -> bool:
        """Cut one connection, whichever it is, where it stands; False when there is none."""
        with self._lock:
            if self._clients:
                self._victims.add(self._dice.choice(self._clients))
            return bool(self._clients)

    def _accept(self) -> None:
        while not self._stopping:
            if not select.select([self._listener], [], [], 0.05)[0]:
                continue
            client, _ = self._listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._pass_on, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        with self._lock:
            self._clients.append(client)
        try:
            with client, server, contextlib.suppress(OSError):
                server.connect(self.target)
                self._carry(client, server)
        finally:
            with self._lock:
                self._clients.remove(client)
                self._victims.discard(client)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        passed = 0
        while not self._stopping:
            with self._lock:
                if client in self._victims:
                    self.cuts += 1
                    return
            ready, _, _ = select.select([client, server], [], [], 0.05)
            if client in ready:
                data = client.recv(65536)
                if not data:
                    return
                server.sendall(data)
            if server in ready:
                data = server.recv(self._dice.randint(1, self._pieces))
                if not data:
                    return
                if self.cut_after is not None and passed + len(data) > self.cut_after:
                    client.sendall(data[: self.cut_after - passed])
                    return
                passed += len(data)
                rest = self._before_cut(len(data))
                client.sendall(data[:rest])
                if rest < len(data):
                    return

    def _before_cut(self, size: int) -> int:
        """Give how many of these bytes may pass."""
        with self._lock:
            if self._left is None:
                return size
            if self._left >= size:
                self._left -= size
                return size
            allowed, self._left = self._left, None
            self.cuts += 1
            return allowed


@contextlib.contextmanager
def proxy(socket_path: str, *, pieces: int = 65536, cut_after: int | None = None, seed: int = 0) -> Iterator[Proxy]:
    """Run a proxy for the length of the block."""
    running = Proxy(socket_path, pieces=pieces, cut_after=cut_after, seed=seed)
    try:
        yield running
    finally:
        running.close()
