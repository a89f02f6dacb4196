# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may read metrics, over HTTP and HTTPS, and what profiles show."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from epp.observe import AccessGuard, MetricsTls, ObserveOptions, ObserveServer, Recorder
from epp.observe import access as access_module
from epp.transport.tls import self_signed


class Reviews:
    """An API server's reviews: ``good`` is a monitoring system, ``other`` somebody without rights."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.broken = False

    async def send(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert method == "POST"
        self.asked.append(body)
        if self.broken:
            raise OSError("no API server")
        spec = body["spec"]
        if path.endswith("tokenreviews"):
            known = spec["token"] in ("good", "other")
            user = {"username": spec["token"], "uid": "1", "groups": ["g"], "extra": {"k": ["v"]}}
            return {"status": {"authenticated": known, "user": user}}
        return {"status": {"allowed": spec["user"] == "good" and spec["nonResourceAttributes"]["path"] == "/metrics"}}


@pytest.mark.parametrize(
    ("header", "path", "status", "text"),
    [
        ("", "/metrics", 401, "send a bearer token"),
        ("Basic Z29vZA==", "/metrics", 401, "send a bearer token"),
        ("Bearer ", "/metrics", 401, "send a bearer token"),
        ("Bearer wrong", "/metrics", 401, "does not know this token"),
        ("Bearer other", "/metrics", 403, "denied for user other: grant get of the nonResourceURL /metrics"),
        ("Bearer good", "/debug/endpoints", 403, "denied for user good"),
    ],
)
async def test_refusals(header: str, path: str, status: int, text: str) -> None:
    refusal = await AccessGuard(Reviews()).refusal(header, path)
    assert refusal is not None
    assert refusal.status == status
    assert text in refusal.text


async def test_allowed_and_remembered() -> None:
    reviews = Reviews()
    guard = AccessGuard(reviews)
    assert await guard.refusal("Bearer good", "/metrics") is None
    access = reviews.asked[1]["spec"]
    assert (access["groups"], access["extra"], access["nonResourceAttributes"]["verb"]) == (["g"], {"k": ["v"]}, "get")
    reviews.broken = True
    assert await guard.refusal("Bearer good", "/metrics") is None
    assert len(reviews.asked) == 2
    assert "good" not in repr(vars(guard._users)).replace("username", "").replace("name='good'", "")


async def test_an_api_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    reviews = Reviews()
    guard = AccessGuard(reviews)
    monkeypatch.setattr(access_module, "ALLOWED_SECONDS", 0.0)
    assert await guard.refusal("Bearer good", "/metrics") is None
    reviews.broken = True
    refusal = await guard.refusal("Bearer good", "/metrics")
    assert (refusal and refusal.status, refusal and "no API server" in refusal.text) == (500, True)
    refusal = await guard.refusal("Bearer other", "/metrics")
    assert (refusal and refusal.status, refusal and "Authentication failed" in refusal.text) == (500, True)


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "MAX_REMEMBERED", 2)
    memory: access_module._Memory[int] = access_module._Memory()
    for number in range(3):
        memory.put(number, number, 10.0)
    assert [memory.get(number) for number in range(3)] == [None, 1, 2]
    memory.put(2, 5, -1.0)
    assert memory.get(2) is None


def server(**options: Any) -> ObserveServer:
    recorder = Recorder()
    return ObserveServer(recorder, dict, lambda: ("", ""), ObserveOptions(host="127.0.0.1", port=0, **options))


async def test_only_health_is_open_to_all() -> None:
    observe = server(guard=AccessGuard(Reviews()))
    port = await observe.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        for path, status in {"/healthz": 200, "/metrics": 401, "/debug/decisions": 401, "/debug/pprof/": 401}.items():
            async with session.get(path) as response:
                assert response.status == status, path
                assert response.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
        for header in ("Authorization", "X-Authorization"):
            async with session.get("/metrics", headers={header: "Bearer good"}) as response:
                assert response.status == 200
    await observe.stop()


def write_pair(folder: Path) -> bytes:
    pair = self_signed()
    (folder / "tls.key").write_bytes(pair.key)
    (folder / "tls.crt").write_bytes(pair.chain)
    return pair.chain


async def test_https_with_a_certificate_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epp.observe.server.RELOAD_SECONDS", 0.02)
    old = write_pair(tmp_path)
    observe = server(tls=MetricsTls(str(tmp_path)))
    port = await observe.start()
    try:
        assert await shown(port) == old
        (tmp_path / "tls.key").write_text("no key")
        (tmp_path / "tls.crt").touch()
        new = write_pair(tmp_path)
        for _ in range(200):
            if await shown(port) == new:
                break
        else:
            pytest.fail("the new certificate was not taken over")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"https://127.0.0.1:{port}/metrics", ssl=False) as response:
                assert response.status == 200
    finally:
        await observe.stop()


async def shown(port: int) -> bytes:
    """The certificate that the server shows, PEM."""
    pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
    return pem.encode()


def client_pair() -> bytes:
    """A client's certificate, its own authority, and the key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "monitoring")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(encoding) + private


async def test_mutual_tls(tmp_path: Path) -> None:
    write_pair(tmp_path)
    client = tmp_path / "client.pem"
    client.write_bytes(client_pair())
    observe = server(tls=MetricsTls(str(tmp_path), str(client), ssl.TLSVersion.TLSv1_3))
    port = await observe.start()
    try:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"https://127.0.0.1:{port}/metrics", ssl=False)
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.load_cert_chain(client)
            async with session.get(f"https://127.0.0.1:{port}/metrics", ssl=context) as response:
                assert response.status == 200
    finally:
        await observe.stop()


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"--metrics-cert-dir={tmp_path}: cannot be used"):
        MetricsTls(str(tmp_path))
    write_pair(tmp_path)
    with pytest.raises(OSError, match=r"--metrics-client-ca-file=/nowhere: cannot be used"):
        MetricsTls(str(tmp_path), "/nowhere")
    tls = MetricsTls(str(tmp_path), ciphers="ECDHE-ECDSA-AES256-GCM-SHA384")
    assert not tls.refresh()
    (tmp_path / "tls.crt").unlink()
    with pytest.raises(OSError, match=r"it needs tls.crt and tls.key"):
        tls.refresh()


async def test_profiles() -> None:
    observe = server()
    port = await observe.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        seen = {}
        for name in ("", "profile?seconds=0.05", "profile?seconds=x", "goroutine", "heap"):
            async with session.get(f"/debug/pprof/{name}") as response:
                seen[name] = (response.status, await response.text())
    await observe.stop()
    assert "profile?seconds=N" in seen[""][1]
    stack, _, count = seen["profile?seconds=0.05"][1].splitlines()[0].rpartition(" ")
    assert int(count) > 0
    assert "asyncio" in stack
    assert seen["profile?seconds=x"] == (400, "seconds must be a number\n")
    assert "task Task-" in seen["goroutine"][1]
    assert "thread MainThread" in seen["goroutine"][1]
    assert "\tfunction\n" in seen["heap"][1]


async def test_profiles_can_be_switched_off() -> None:
    observe = server(profiling=False)
    port = await observe.start()
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/debug/pprof/") as response:
            assert response.status == 404
    await observe.stop()
