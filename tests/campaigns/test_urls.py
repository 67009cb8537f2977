"""URLs as records may write them: none reaches a private address, and no answer hangs or fills memory.

The server stands on this machine. It is reached under the made-up name ``public.example``; every other way to
reach it is an attack, and it counts whoever gets through.
"""

import gzip
import random
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from faults.campaign import campaign_seed, campaign_size
from faults.watched import run_watched

from torchtune_qwenvl.data.records.urls import UrlPolicy, fetch
from torchtune_qwenvl.transforms.errors import BadSample

CONTENT = b"what the file holds"
MEGABYTE = 1 << 20


class Handler(BaseHTTPRequestHandler):
    """``/to?URL`` redirects, ``/raw?SEED`` answers with damaged HTTP, anything else is the file."""

    reached: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        name, _, rest = self.path.partition("?")
        try:
            if name == "/to":
                self.wfile.write(
                    f"HTTP/1.1 302 Found\r\nLocation: {rest}\r\n\r\n".encode("latin-1", "replace")
                )
            elif name == "/raw":
                for piece in damaged_answer(random.Random(rest)):
                    self.wfile.write(piece)
                    self.wfile.flush()
            else:
                self.reached.append(self.path)
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT)
        except OSError:
            pass  # the client has closed the connection, as it should
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


def damaged_answer(rng: random.Random) -> Iterator[bytes]:
    """A status line, headers and content, of which each may be odd, endless or slow."""
    yield rng.choice(
        [b"HTTP/1.1 200 OK\r\n"] * 8 + [b"HTTP/9.9 200\r\n", b"\0\xff\r\n", b"HTTP/1.1 -1 x\r\n", b""]
    )
    lengths = [b"-5", b"abc", b"99999999999999999999", b"3", b"0", b"1e3", b"9" * 5_000, b"3, 4"]
    headers = [
        *(b"Content-Length: " + length + b"\r\n" for length in lengths),
        *(b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n", b"X: " + b"y" * 70_000 + b"\r\n"),
        *(b"X: y\r\n" * 1_000, b"no colon\r\n", b"\xff: \xfe\r\n", b": \r\n"),
        b"Location: http://127.0.0.1/\r\n",
    ]
    yield b"".join(rng.choices(headers, k=rng.choice([0, 0, 1, 1, 2])))
    if rng.random() < 0.9:
        yield b"\r\n"
    kind = rng.choice(["file", "chunks", "large", "slow", "zeros", "nothing"])
    if kind == "file":
        yield CONTENT
    elif kind == "chunks":
        sizes = [b"fffffffffffffff\r\nab", b"-1\r\nab", b"3\r\nabc\r\n0\r\n\r\n", b"zz\r\n"]
        yield rng.choice([*sizes, b"3;" + b"x" * 99_999])
    elif kind == "large":
        yield from (bytes(MEGABYTE) for _ in range(200))
    elif kind == "zeros":
        yield gzip.compress(bytes(50 * MEGABYTE))
    elif kind == "slow":
        for _ in range(200):
            yield b"x"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(autouse=True)
def nobody_has_come_through() -> None:
    Handler.reached.clear()


def refused(url: str, policy: UrlPolicy) -> str:
    """The message of the refusal.

    Raises:
        AssertionError: it was read.
    """
    try:
        content = fetch(url, policy)
    except BadSample as error:
        return str(error)
    raise AssertionError(f"{url!r} was read: {content[:50]!r}")


def private_address(rng: random.Random) -> str:
    """An address of this machine or a private network, in one of the many ways to write it."""
    last = rng.randrange(256)
    here = [f"127.0.0.{last}", f"127.{last}.0.1", "0.0.0.0", f"169.254.169.{last}"]
    private = [f"10.0.{last}.1", f"192.168.{last}.1", f"172.16.{last}.1", f"100.64.{last}.1"]
    one = rng.choice(here + private)
    parts = [int(part) for part in one.split(".")]
    number = int.from_bytes(bytes(parts), "big")
    high, low = f"{number >> 16:x}", f"{number & 0xFFFF:x}"
    digits = "".join(chr(ord(c) + 0xFEE0) if c.isdigit() else c for c in one)
    ways = (
        *(one, one + ".", digits, str(number), hex(number), oct(number).replace("0o", "0")),
        *(f"{parts[0]}.{number & 0xFFFFFF}", one.replace(".", "。"), one.replace(".", "%2e")),
        *(".".join(f"{part:#x}" for part in parts), ".".join(f"0{part:o}" for part in parts)),
        *(f"[::ffff:{one}]", f"[::ffff:{high}:{low}]", f"[::{high}:{low}]", f"[::ffff:0:{high}:{low}]"),
        *(f"[64:ff9b::{high}:{low}]", f"[64:ff9b:1::{high}:{low}]", f"[2002:{high}:{low}::]"),
        *(f"[2001:0:{high}:{low}::]", "[::1]", "[::]", "[fe80::1%25lo]", "[fd00::1]", "[fec0::1]"),
        *("localhost", "LOCALHOST", "localhost.", "localhost.localdomain", "ip6-localhost"),
        *(socket.gethostname(), ""),
    )
    return rng.choice(ways)


def attack(rng: random.Random, port: int) -> str:
    """A URL that leads to a private address, or hides it from a careless reader."""
    host = private_address(rng)
    before = rng.choice(["", "", "user@", "8.8.8.8@", "user:8.8.8.8@"])
    after = rng.choice(["", "", "#@8.8.8.8", "\\@8.8.8.8", "?@8.8.8.8", "/..//8.8.8.8"])
    path = rng.choice(["", "/", "/a.png", "/\r\nX: y", "/ü", "/%00", "/a b"])
    schemes = ["http://"] * 5 + ["HTTP://", "http:/", "http:", "http:///", "//", "hTTp://\t", " http://"]
    return f"{rng.choice(schemes)}{before}{host}:{port}{after}{path}"


def test_no_private_address_is_reached(port: int) -> None:
    rng = random.Random(campaign_seed())
    policy = UrlPolicy(timeout=3)
    for _ in range(campaign_size(300, 10_000)):
        assert len(refused(attack(rng, port), policy)) < 1_000
    assert Handler.reached == []


def test_no_redirect_leads_to_a_private_address(port: int) -> None:
    """The first address is let through, every later one is checked by the usual rule."""
    rng = random.Random(campaign_seed())
    others = [
        *(
            "file:///etc/passwd",
            "ftp://x/",
            "gopher://127.0.0.1",
            "javascript:1",
            "http://[::1",
            "http://a b/",
        ),
        *("", "http://", "data:,x", f"//127.0.0.1:{port}/", "http:\\\\127.0.0.1", "?", "#"),
    ]

    def resolve(host: str, port: int) -> list[str]:
        if host == "public.example":
            return ["127.0.0.1"]
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port)]

    for _ in range(campaign_size(200, 5_000)):
        first = iter([True])
        policy = UrlPolicy(timeout=3, resolve=resolve, is_allowed=lambda _, first=first: next(first, False))
        target = rng.choice([attack(rng, port).strip(), attack(rng, port).strip(), rng.choice(others)])
        refused(f"http://public.example:{port}/to?{target}", policy)
    assert Handler.reached == []


def test_damaged_answers_neither_hang_nor_fill_memory(port: int) -> None:
    policy = UrlPolicy(
        timeout=1, max_bytes=MEGABYTE, resolve=lambda *_: ["127.0.0.1"], is_allowed=lambda _: True
    )
    seeds = [f"{campaign_seed()}-{n}" for n in range(campaign_size(25, 2_000))]

    def read(seed: str) -> str:
        content = fetch(f"http://public.example:{port}/raw?{seed}", policy)
        assert len(content) <= MEGABYTE
        return "read"

    outcomes = run_watched(seeds, read, seconds=10)
    assert {one.kind for one in outcomes} == {"result", "BadSample"}
    assert max(one.seconds for one in outcomes) < 4
    assert max(one.megabytes for one in outcomes) < 40
