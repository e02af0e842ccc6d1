"""Bytes of media from where a part says they are: a data URI, a file, or a web address; each only where it is allowed.

The one place that opens a connection to an address out of a request. A name is resolved once, all its addresses must be
public, and the connection goes to one of those that were checked; a redirect is a new address. Nothing is ever told
about what was found there.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urljoin, urlsplit

from qwench.fault import fault
from qwench.media.sizes import Unusable

MOST_BYTES = 64 << 20
SECONDS = 20.0
REDIRECTS = 3
CHUNK = 1 << 16
MOST_ADDRESS = 4096  # characters
MOVED = frozenset((301, 302, 303, 307, 308))
PLAIN = re.compile(r"[!-\[\]-~]+")  # printable ASCII without a backslash, about which parsers disagree
HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+", re.IGNORECASE)
DATA = re.compile(r"data:(?P<type>[\w.+-]*(?:/[\w.+-]*)?)(?P<more>(?:;[\w.+-]+(?:=[^;,]*)?)*),", re.IGNORECASE)
WRAPPED = (  # networks that carry an IPv4 address, and where in their last bits it stands
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),
    (ipaddress.IPv6Network("::/96"), 0),
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
)
REFUSED = (ipaddress.ip_network("64:ff9b:1::/48"), ipaddress.ip_network("2001::/32"))  # local NAT64; Teredo
UNREACHED = "has an address that cannot be read within the time and size allowed; send the bytes as a data URI"
FORBIDDEN = "has an address that is not fetched; send the bytes as a data URI"

Resolve = Callable[[str, int], list[str]]


@dataclass(frozen=True)
class Sources:
    """Where media may come from besides the request itself. ``most`` bytes of each, within ``seconds``."""

    web: bool = False
    files: bool = False
    most: int = MOST_BYTES
    seconds: float = SECONDS


def fetch(address: str, sources: Sources) -> tuple[bytes, str]:
    """The bytes and the declared type ("" where there is none). Raises Unusable."""
    scheme = address[:8].partition(":")[0].lower()
    if scheme == "data":
        return read_data_uri(address, sources.most)
    if scheme in ("http", "https"):
        if not sources.web:
            raise Unusable("is a web address, not fetched without --allow-media-url; send the bytes as a data URI")
        return _fetch_web(address, sources), ""
    if sources.files:
        return _read_file(address, sources.most), ""
    raise Unusable('is neither a data URI nor a web address; send "data:image/png;base64,..."')


def read_data_uri(address: str, most: int) -> tuple[bytes, str]:
    """The bytes and the type of a data URI; line breaks inside base64 are passed over. Raises Unusable."""
    match = DATA.match(address[:MOST_ADDRESS])
    if match is None:
        raise Unusable('is not a data URI that can be read; send "data:image/png;base64,..."')
    body = address[match.end() :]
    if len(body) > most * 4 // 3 + most // 16 + 4:
        raise Unusable(f"has more than the {most:,} bytes that are read; send a smaller one", too_large=True)
    if ";base64" in match["more"].lower():
        data = read_base64(body)
    else:
        data = unquote_to_bytes(body)
    if not data:
        raise Unusable("is empty")
    return data, match["type"].lower()


def read_base64(text: str) -> bytes:
    """The bytes of base64 in either alphabet, with or without padding and line breaks. Raises Unusable."""
    packed = "".join(text.split())
    packed = (unquote(packed) if "%" in packed else packed).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Unusable("is not valid base64; encode the bytes of the file") from None


def _read_file(name: str, most: int) -> bytes:
    path = Path(unquote(urlsplit(name).path) if name.lower().startswith("file:") else name).expanduser()
    try:
        fault("read.media")
        if path.is_file() and path.stat().st_size > most:
            raise Unusable(f"has more than the {most:,} bytes that are read; send a smaller one", too_large=True)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise Unusable(f"cannot be opened ({getattr(error, 'strerror', None) or 'not a path'})") from None


def _fetch_web(address: str, sources: Sources) -> bytes:
    deadline = time.monotonic() + sources.seconds
    for _ in range(REDIRECTS + 1):
        found = _get(parse(address), sources.most, deadline)
        if isinstance(found, bytes):
            return found
        address = urljoin(address, found)
    raise Unusable(UNREACHED)


def parse(address: str) -> SplitResult:
    """The parts of a web address, which both the check and the connection use. Raises Unusable."""
    try:
        if len(address) > MOST_ADDRESS or not PLAIN.fullmatch(address):
            raise ValueError
        found = urlsplit(address)
        host, port = found.hostname or "", found.port
        if found.scheme not in ("http", "https") or "@" in found.netloc or not HOST.fullmatch(host) or port == 0:
            raise ValueError
    except ValueError:
        raise Unusable(FORBIDDEN) from None
    return found


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, as the system spells them."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def public_addresses(host: str, port: int, resolver: Resolve = resolve) -> list[str]:
    """What ``host`` resolves to. Raises Unusable if any of it is not open to everybody."""
    try:
        fault("connect.media")
        found = resolver(host, port)
    except (OSError, UnicodeError):
        raise Unusable(UNREACHED) from None
    if not found or not all(map(is_public, found)):
        raise Unusable(FORBIDDEN)
    return found


def is_public(address: str) -> bool:
    """Whether anybody may reach it: not this machine, its network, or a spelling of these."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if any(found in network for network in REFUSED):
            return False
        for network, shift in WRAPPED:
            if found in network:
                return is_public(str(ipaddress.IPv4Address(int(found) >> shift & 0xFFFFFFFF)))
    return found.is_global and not found.is_multicast and not found.is_reserved


def _get(address: SplitResult, most: int, deadline: float) -> bytes | str:
    """The body of one response, or where it says to go on. Raises Unusable."""
    host = address.hostname or ""
    port = address.port or (443 if address.scheme == "https" else 80)
    target = public_addresses(host, port)[0]
    connection = _Pinned(host, port, target, deadline, secure=address.scheme == "https")
    watch = threading.Timer(max(0.0, deadline - time.monotonic()), connection.cut)
    watch.daemon = True
    watch.start()  # each read may be quick and all of them together without end
    held = contextlib.ExitStack()
    try:
        where = (address.path or "/") + (f"?{address.query}" if address.query else "")
        connection.request("GET", where, headers={"User-Agent": "qwench", "Accept": "*/*"})
        response = held.enter_context(connection.getresponse())
        moved = response.getheader("Location") if response.status in MOVED else None
        if moved is not None:
            return moved
        if response.status != 200 or response.getheader("Content-Encoding", "identity").lower() != "identity":
            raise Unusable(UNREACHED)
        body = bytearray()
        while piece := response.read(CHUNK):
            body += piece
            if len(body) > most:
                raise Unusable(f"has more than the {most:,} bytes that are read; send a smaller one", too_large=True)
        if connection.is_cut or not body or response.length:
            raise Unusable(UNREACHED)
        return bytes(body)
    except (OSError, ValueError, http.client.HTTPException):
        raise Unusable(UNREACHED) from None
    finally:
        watch.cancel()
        held.close()
        connection.end()


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was checked, in the name of its host."""

    def __init__(self, host: str, port: int, target: str, deadline: float, *, secure: bool) -> None:
        super().__init__(host, port)
        self._target, self._deadline, self._secure = target, deadline, secure
        self.is_cut = False
        self._held: socket.socket | None = None  # a response may take `sock` over

    def connect(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._held = self.sock = socket.create_connection((self._target, self.port), timeout=left)
        if self._secure:
            context = ssl.create_default_context()
            self._held = self.sock = context.wrap_socket(self.sock, server_hostname=self.host)

    def end(self) -> None:
        self.close()
        if self._held is not None:
            self._held.close()

    def cut(self) -> None:
        """Called when the time is up, from another thread: whoever reads gets an error or an end."""
        self.is_cut = True
        if self._held is not None:
            with contextlib.suppress(OSError):
                self._held.shutdown(socket.SHUT_RDWR)
