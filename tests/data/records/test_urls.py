"""Images by URL against a server on this machine: blocked unless a test lets its address through."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from torchtune_qwenvl.data.records.media import MediaFinder
from torchtune_qwenvl.data.records.urls import UrlPolicy, fetch, is_public
from torchtune_qwenvl.transforms.errors import BadSample

CONTENT = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    hosts: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        name = self.path.strip("/").split("?")[0]
        getattr(self, f"get_{name.replace('-', '_')}", self.get_nothing)()

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def get_image(self) -> None:
        self.answer(200, CONTENT, Content_Length=str(len(CONTENT)))

    def get_unannounced(self) -> None:
        self.answer(200, CONTENT)

    def get_short(self) -> None:
        self.answer(200, CONTENT[:100], Content_Length=str(len(CONTENT)))

    def get_moved(self) -> None:
        self.answer(302, Location="/image")

    def get_loop(self) -> None:
        self.answer(302, Location="/loop")

    def get_to_private(self) -> None:
        self.answer(302, Location="http://internal.example/secret")

    def get_to_file(self) -> None:
        self.answer(302, Location="file:///etc/hostname")

    def get_drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(50):
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass  # the client has closed the connection, as it should

    def get_nothing(self) -> None:
        self.answer(404)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"public.example:{httpd.server_address[1]}"
        httpd.shutdown()


def resolve(host: str, port: int) -> list[str]:
    """`public.example` is the server, anything else a private address."""
    return ["127.0.0.1"] if host == "public.example" else ["10.0.0.7"]


def policy(**changes: object) -> UrlPolicy:
    """Allows 127.0.0.1 as if it were a public address."""
    given = {"timeout": 5.0, "resolve": resolve, "is_allowed": lambda address: address == "127.0.0.1"}
    return UrlPolicy(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["image", "unannounced", "moved", "image?size=3"])
def test_reads(server: str, path: str) -> None:
    assert fetch(f"http://{server}/{path}", policy()) == CONTENT


def test_sends_the_name_not_the_address(server: str) -> None:
    Handler.hosts.clear()
    fetch(f"http://{server}/image", policy())
    assert Handler.hosts == [server]


def test_connects_to_the_address_that_was_checked(server: str) -> None:
    """A second look-up would give another address (DNS rebinding); there is none."""
    answers = iter([["127.0.0.1"]])
    assert fetch(f"http://{server}/image", policy(resolve=lambda host, port: next(answers))) == CONTENT


def test_private_addresses_are_refused_by_default(server: str) -> None:
    Handler.hosts.clear()
    port = server.split(":")[1]
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(BadSample, match=f"{host} is .*expected public addresses only"):
            MediaFinder(urls=UrlPolicy())(f"http://{host}:{port}/image")
    assert Handler.hosts == []


def test_one_private_address_among_public_ones_is_enough() -> None:
    mixed = UrlPolicy(resolve=lambda host, port: ["8.8.8.8", "192.168.0.1"])
    with pytest.raises(BadSample, match=r"x\.org is 192\.168\.0\.1: expected public"):
        fetch("http://x.org/a.png", mixed)


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        (
            "to-private",
            {},
            r"redirected to http://internal\.example/secret\): internal\.example is 10\.0\.0\.7",
        ),
        ("to-file", {}, "redirected to file:///etc/hostname.*expected http or https"),
        ("loop", {"max_redirects": 2}, "more than 2 redirects"),
        ("nothing", {}, "expected status 200, got 404"),
        ("short", {}, f"cut short: 100 of {len(CONTENT)} bytes"),
        ("image", {"max_bytes": 1000}, r"larger than the limit of 1000 bytes \(url_max_bytes\)"),
        ("unannounced", {"max_bytes": 1000}, "larger than the limit of 1000 bytes"),
        ("drip", {"timeout": 0.3}, "timed out|within the time limit"),
    ],
)
def test_refuses(server: str, path: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadSample, match=message) as caught:
        fetch(f"http://{server}/{path}", policy(**changes))
    assert f"http://{server}/{path}" in str(caught.value) and "download the file first" in str(caught.value)


def test_a_server_that_does_not_answer(server: str) -> None:
    def no_such_host(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    with pytest.raises(BadSample, match=r"URL http://gone\.example/a\.png: Name or service not known"):
        fetch("http://gone.example/a.png", policy(resolve=no_such_host))


def test_looking_up_a_name_has_a_time_limit() -> None:
    answered = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        answered.wait(20)
        return ["127.0.0.1"]

    start = time.monotonic()
    with pytest.raises(BadSample, match=r"no complete answer within the time limit \(url_timeout\)"):
        fetch("http://slow.example/a.png", policy(resolve=slow, timeout=0.2))
    assert time.monotonic() - start < 5
    answered.set()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "fec0::1", "::7f00:1", "::ffff:0:7f00:1",
        "64:ff9b:1::7f00:1", "2001:20::1", "2001::1", "5f00::1", "3fff::1", "100::1", "192.0.0.8",
        "192.88.99.1", "198.18.0.1", "203.0.113.7", "2002:808:808::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)
