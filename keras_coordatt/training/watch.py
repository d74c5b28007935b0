"""Ends a process when another one of its training has died or hangs.

A process that waits for another in a collective operation waits for minutes or forever,
and JAX then aborts it without saying what to do. Here every process keeps a connection
to the first one, over which both send heartbeats.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

from keras_coordatt.distribution import Devices, gather

# Seconds between heartbeats, and after which a silent process counts as lost.
INTERVAL = 2
LIMIT = 40
_ALIVE, _ENDED, _LOST = b".", b"E", b"!"


class Watch:
    """Watches the other processes in threads, until `end`.

    Args:
        devices: The current devices, of several processes.
        host: Host of the first process, or `None` for the name that it has itself.
        lost: Called in a thread with the number of a lost process. Defaults to ending
            this process with a message and status 1.
    """

    def __init__(
        self,
        devices: Devices,
        host: str | None,
        lost: Callable[[int], None] | None = None,
    ):
        self.process, self.processes = devices.process, devices.processes
        self.lost = lost or self._exit
        self.ended = threading.Event()
        self.once = threading.Lock()
        self.peers: dict[int, socket.socket] = {}
        if devices.first:
            with socket.create_server(("", 0)) as server:
                server.settimeout(LIMIT)
                gather((socket.gethostname(), server.getsockname()[1]))
                for _ in range(1, self.processes):
                    connection, _ = server.accept()
                    number = int.from_bytes(connection.recv(4), "big")
                    self.peers[number] = connection
        else:
            name, port = gather(None)[0]
            connection = socket.create_connection((host or name, port), LIMIT)
            connection.sendall(self.process.to_bytes(4, "big"))
            self.peers[0] = connection
        for peer in self.peers:
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()
        threading.Thread(target=self._talk, daemon=True).start()

    def end(self, failed: bool = False) -> None:
        """Stops watching, and sends the others the reason.

        Args:
            failed: Whether this process has failed, so that the others must end.
        """
        if failed:
            # If it failed because another one died, `lost` ends this process meanwhile.
            time.sleep(INTERVAL)
        self.ended.set()
        self._send(_LOST + b"%d\n" % self.process if failed else _ENDED)
        for connection in self.peers.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)

    def _listen(self, peer):
        connection = self.peers[peer]
        connection.settimeout(LIMIT)
        while not self.ended.is_set():
            try:
                data = connection.recv(64)
            except OSError:  # also a timeout
                data = b""
            if _ENDED in data or self.ended.is_set():
                return
            if not data or _LOST in data:
                number = data.partition(_LOST)[2].split(b"\n")[0]
                return self._report(int(number or peer))

    def _talk(self):
        while not self.ended.wait(INTERVAL):
            self._send(_ALIVE)

    def _send(self, data):
        for connection in self.peers.values():
            with contextlib.suppress(OSError):
                connection.sendall(data)

    def _report(self, number):
        if self.once.acquire(blocking=False):
            self._send(_LOST + b"%d\n" % number)
            self.lost(number)

    def _exit(self, number):
        end_process(
            f"process {number} of {self.processes} has ended or "
            "does not answer, so this one ends too. Run the same command again in all "
            "processes to continue after the last complete epoch"
        )


def end_process(message: str | None = None) -> None:
    """Ends this process with status 1 at once, even if other threads are blocked."""
    if message:
        print(f"keras-coordatt: error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
