# SPDX-License-Identifier: GPL-3.0-or-later
"""A way to the API server that can be cut: a relay of bytes, and a kubeconfig that leads through it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import yaml

from conformance.kit.loop import CLIENT


class Outage:
    """Relays connections on a loopback port to the API server of a kubeconfig, as long as nothing is cut."""

    def __init__(self, kubeconfig: str, folder: Path) -> None:
        document = yaml.safe_load(Path(kubeconfig).read_text(encoding="utf-8"))
        context = next(each for each in document["contexts"] if each["name"] == document["current-context"])["context"]
        cluster = next(each for each in document["clusters"] if each["name"] == context["cluster"])["cluster"]
        server = urlsplit(cluster["server"])
        self._target = (server.hostname or "", server.port or 443)
        self._connections: set[asyncio.StreamWriter] = set()
        self._cut = False
        self._server: asyncio.Server | None = None
        port = CLIENT.run(self._start())
        # The certificate is still the API server's, so it must still be asked for by its own name.
        cluster.setdefault("tls-server-name", server.hostname)
        cluster["server"] = f"https://127.0.0.1:{port}"
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(document))
        self.kubeconfig.chmod(0o600)

    def __enter__(self) -> Outage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        CLIENT.run(self._stop())

    def begin(self) -> None:
        """Cut all connections, and refuse new ones."""
        CLIENT.run(self._set(cut=True))

    def end(self) -> None:
        """Let them through again."""
        CLIENT.run(self._set(cut=False))

    async def _start(self) -> int:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._set(cut=True)

    async def _set(self, cut: bool) -> None:
        self._cut = cut
        if cut:
            for each in tuple(self._connections):
                each.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        out_reader, out_writer = await asyncio.open_connection(*self._target)
        pair = (writer, out_writer)
        self._connections.update(pair)
        try:
            await asyncio.gather(_copy(reader, out_writer), _copy(out_reader, writer))
        finally:
            self._connections.difference_update(pair)
            for each in pair:
                each.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
