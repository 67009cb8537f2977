"""Downloads images and videos by URL, without giving data files access to the private network.

A host name is resolved once, every address is checked, and the connection goes to a checked address: a second
look-up could give another address (DNS rebinding). Redirects are followed here and checked in the same way.
Proxies from the environment are not used, for the same reason.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.time_limit import within

MAX_BYTES = 20 * 2**20
PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
# All that is assigned to hosts so far (IANA). Outside it: site-local fec0::/10, segment routing 5f00::/16,
# IPv4-compatible ::/96 and others.
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# Ranges with a special purpose (RFC 6890), some of which Python counts as global: protocol assignments with
# Teredo and ORCHID, 6to4 and its relays, documentation.
SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
# Translates to an IPv4 address in its last 32 bits, which may be private (RFC 6052).
NAT64 = ipaddress.ip_network("64:ff9b::/96")

_TOO_SLOW = "no complete answer within the time limit (url_timeout)"
Answer = TypeVar("Answer")


def resolve_host(host: str, port: int) -> list[str]:
    """All addresses of a host, from the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether an address is that of a public host: outside all ranges with a special purpose."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in GLOBAL_UNICAST:
            return False
    special = any(ip in network for network in SPECIAL if network.version == ip.version)
    return ip.is_global and not (special or ip.is_multicast or ip.is_reserved)


@dataclass(frozen=True)
class UrlPolicy:
    """Limits for downloads.

    Attributes:
        timeout: seconds for the whole download, including name look-up and redirects.
        max_bytes: size limit of the file.
        max_redirects: redirects followed for one file.
        resolve: host, port -> addresses.
        is_allowed: whether connections to an address are allowed.
    """

    timeout: float = 10.0
    max_bytes: int = MAX_BYTES
    max_redirects: int = 5
    resolve: Callable[[str, int], list[str]] = resolve_host
    is_allowed: Callable[[str], bool] = is_public


def fetch(url: str, policy: UrlPolicy) -> bytes:
    """Read a file from an http or https URL.

    Raises:
        BadSample: an address that is not allowed, too many redirects, a status other than 200, a file that is
            too large, too slow or cut short, or any network error. The message names the URL.
    """
    deadline = time.monotonic() + policy.timeout
    target = url
    try:
        for _ in range(policy.max_redirects + 1):
            location, data = _within(deadline, partial(_get, urlsplit(target), policy, deadline))
            if location is None:
                return data
            target = urljoin(target, location)
        raise ValueError(f"more than {policy.max_redirects} redirects")
    except (OSError, http.client.HTTPException, ValueError) as error:
        via = "" if target == url else f" (redirected to {target})"
        reason = str(error) or type(error).__name__
        raise BadSample(
            f"URL {url}{via}: {reason}", fix="check the URL, or download the file first"
        ) from error


def _within(deadline: float, function: Callable[[], Answer]) -> Answer:
    """Call a function with what is left of the time: name look-up has no limit of its own."""
    try:
        return within(_left(deadline), function)
    except TimeoutError:
        raise TimeoutError(_TOO_SLOW) from None


def _get(url: SplitResult, policy: UrlPolicy, deadline: float) -> tuple[str | None, bytes]:
    """One request. Returns (redirect target, b"") or (None, content)."""
    with _connect(url, policy, deadline) as sock:
        connection = http.client.HTTPConnection(str(url.hostname), url.port or PORTS[url.scheme])
        connection.default_port = PORTS[url.scheme]  # otherwise the Host header would name port 443
        connection.sock, connection.auto_open = sock, 0  # type: ignore[assignment]
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request("GET", path, headers={"User-Agent": "torchtune_qwenvl", "Accept": "*/*"})
        response = connection.getresponse()
        location = response.getheader("Location")
        if response.status in REDIRECTS and location:
            return location, b""
        if response.status != 200:
            raise ValueError(f"expected status 200, got {response.status} {response.reason}")
        return None, _read(response, sock, policy.max_bytes, deadline)


def _connect(url: SplitResult, policy: UrlPolicy, deadline: float) -> socket.socket:
    """A connection to a checked address of the URL's host."""
    if url.scheme not in PORTS or not url.hostname:
        raise ValueError(f"expected http or https and a host, got {url.geturl()}")
    port = url.port or PORTS[url.scheme]
    addresses = policy.resolve(url.hostname, port)
    refused = [address for address in addresses if not policy.is_allowed(address)]
    if refused or not addresses:
        found = ", ".join(refused) or "no address"
        raise ValueError(f"{url.hostname} is {found}: expected public addresses only")
    sock = _first_open(addresses, port, deadline)
    if url.scheme == "http":
        return sock
    try:
        return ssl.create_default_context().wrap_socket(sock, server_hostname=url.hostname)
    except OSError:
        sock.close()
        raise


def _first_open(addresses: list[str], port: int, deadline: float) -> socket.socket:
    failure: OSError = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=_left(deadline))
        except OSError as error:
            failure = error
    raise failure


def _read(response: http.client.HTTPResponse, sock: socket.socket, max_bytes: int, deadline: float) -> bytes:
    announced = int(response.getheader("Content-Length") or 0)
    data = bytearray()
    # read1 returns after each receive, so that a server that sends single bytes meets the deadline.
    while announced <= max_bytes and len(data) <= max_bytes:
        sock.settimeout(_left(deadline))
        chunk = response.read1(2**16)
        if not chunk:
            if len(data) < announced:
                raise ValueError(f"cut short: {len(data)} of {announced} bytes")
            return bytes(data)
        data += chunk
    raise ValueError(f"larger than the limit of {max_bytes} bytes (url_max_bytes)")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(_TOO_SLOW)
    return left
