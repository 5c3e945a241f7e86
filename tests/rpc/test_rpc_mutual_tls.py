"""Mutual TLS over real sockets: who shows no certificate of the right authority gets nothing, on either side."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tutelage.client import StudentClient, SyncStudentClient
from tutelage.domain.errors import InvalidInput, Unavailable
from tutelage.domain.task import Question
from tutelage.rpc.config import ChannelSettings, ServerSettings, TlsSettings, check_exposure

if TYPE_CHECKING:
    from tests.rpc.conftest import Serving


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


def openssl(*arguments: object) -> None:
    try:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the openssl command is not installed")


def authority(folder: Path, name: str) -> Pair:
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-keyout", pair.key, "-out", pair.certificate)  # fmt: skip
    return pair


def issued(folder: Path, name: str, by: Pair) -> Pair:
    """A certificate for localhost by an authority."""
    pair, request, names = Pair(folder / f"{name}.pem", folder / f"{name}.key"), folder / "csr", folder / "names"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", pair.key, "-out", request)  # fmt: skip
    openssl("x509", "-req", "-in", request, "-CA", by.certificate, "-CAkey", by.key, "-CAcreateserial", "-days", "2",
            "-extfile", names, "-out", pair.certificate)  # fmt: skip
    return pair


@dataclass(frozen=True)
class Papers:
    ours: Pair
    theirs: Pair
    server: Pair
    client: Pair
    stranger: Pair

    @property
    def tls(self) -> TlsSettings:
        return TlsSettings(certificate=self.server.certificate, key=self.server.key, client_ca=self.ours.certificate)

    def channel(self, address: str, shown: Pair | None, trusted: Pair) -> ChannelSettings:
        pair: dict[str, Any] = {"certificate": shown.certificate, "key": shown.key} if shown else {}
        return ChannelSettings(address=address, ca=trusted.certificate, **pair)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("papers")
    ours, theirs = authority(folder, "ours"), authority(folder, "theirs")
    return Papers(
        ours, theirs, issued(folder, "server", ours), issued(folder, "client", ours), issued(folder, "stranger", theirs)
    )


def test_only_who_has_the_right_papers_is_let_in(serving: Serving, papers: Papers, question: Question) -> None:
    def refused_blocking(settings: ChannelSettings) -> None:
        with SyncStudentClient(settings) as client, pytest.raises(Unavailable):
            client.answer([question], adapter_version="", timeout_s=10)

    async def body() -> None:
        async with serving(tls=papers.tls) as (_, ready):
            address = ready["address"]
            allowed = papers.channel(address, papers.client, papers.ours)
            for settings in (
                papers.channel(address, None, papers.ours),
                papers.channel(address, papers.stranger, papers.ours),
                # The client in turn does not believe a server of an authority that it does not know.
                papers.channel(address, papers.client, papers.theirs),
                ChannelSettings(address=address),
            ):
                async with StudentClient(settings) as client:
                    with pytest.raises(Unavailable, match=address):
                        await client.answer([question], adapter_version="", timeout_s=10)
                await asyncio.to_thread(refused_blocking, settings)
            # After all of these, whoever is known is still served.
            async with StudentClient(allowed) as client:
                (answer,) = await client.answer([question], adapter_version="", timeout_s=10)
                assert answer.text == question.text

    asyncio.run(asyncio.wait_for(body(), 120))


def metrics_page(address: str, papers: Papers, shown: Pair | None) -> str:
    context = ssl.create_default_context(cafile=str(papers.ours.certificate))
    if shown:
        context.load_cert_chain(shown.certificate, shown.key)
    with urllib.request.urlopen(f"https://{address}/metrics", timeout=10, context=context) as answer:
        return str(answer.read().decode())


def test_metrics_want_the_same_papers(serving: Serving, papers: Papers) -> None:
    async def body() -> None:
        async with serving(tls=papers.tls, metrics_port=0) as (_, ready):
            address = ready["metrics_address"]
            assert "tutelage_build_info" in await asyncio.to_thread(metrics_page, address, papers, papers.client)
            for shown in (None, papers.stranger):
                with pytest.raises(OSError):  # noqa: PT011 -- a reset or an alert, as the kernel likes
                    await asyncio.to_thread(metrics_page, address, papers, shown)

    asyncio.run(asyncio.wait_for(body(), 120))


def test_a_peer_that_says_nothing_keeps_neither_scrapes_nor_the_end_waiting(
    serving: Serving, papers: Papers, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a check whether the port is open does, or a balancer's spare connection."""

    async def body() -> None:
        async with serving(tls=papers.tls, metrics_port=0) as (_, ready):
            host, _, port = ready["metrics_address"].rpartition(":")
            with socket.create_connection((host, int(port))), socket.create_connection((host, int(port))) as plain:
                plain.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                page = await asyncio.to_thread(metrics_page, ready["metrics_address"], papers, papers.client)
                assert "tutelage_build_info" in page

    asyncio.run(asyncio.wait_for(body(), 120))
    assert "Traceback" not in capfd.readouterr().err


def test_client_certificates_stand_for_a_token_beyond_loopback(papers: Papers) -> None:
    check_exposure(ServerSettings(host="0.0.0.0", tls=papers.tls))
    without = TlsSettings(certificate=papers.server.certificate, key=papers.server.key)
    with pytest.raises(InvalidInput) as caught:
        check_exposure(ServerSettings(host="0.0.0.0", tls=without))
    assert [item.field for item in caught.value.violations] == ["server.token_file"]


@pytest.mark.parametrize("missing", ["certificate", "key"])
def test_half_a_pair_is_named(papers: Papers, missing: str) -> None:
    pair: dict[str, Any] = {"certificate": papers.client.certificate, "key": papers.client.key}
    pair[missing] = None
    settings = ChannelSettings(address="127.0.0.1:1", ca=papers.ours.certificate, **pair)
    open_client: Callable[[], object] = lambda: SyncStudentClient(settings)  # noqa: E731
    with pytest.raises(InvalidInput, match="a certificate and its key together"):
        open_client()


def test_files_that_are_no_papers_are_named(serving: Serving, papers: Papers, tmp_path: Path) -> None:
    swapped = TlsSettings(certificate=papers.client.certificate, key=papers.server.key)
    absent = TlsSettings(certificate=tmp_path / "absent.pem", key=papers.server.key)

    async def start(tls: TlsSettings) -> None:
        async with serving(tls=tls):
            pass

    with pytest.raises(InvalidInput, match="a certificate that fits its key"):
        asyncio.run(start(swapped))
    with pytest.raises(InvalidInput, match=r"server\.tls\.certificate.*absent\.pem"):
        asyncio.run(start(absent))
