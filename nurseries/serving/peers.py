"""Who a request comes from: the connection's other end, or what a trusted proxy says of it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNIX = "unix"
"""The address of every peer on a unix socket."""

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen
class Client:
    """Where a request comes from.

    Attributes:
        address: of the client.
        secure: whether the client's own connection is encrypted.
    """

    address: str
    secure: bool


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed; nobody else's are."""

    __slots__ = ("_networks", "_unix")

    def __init__(self, proxies: Iterable[str]) -> None:
        """Trust these addresses, networks (`10.0.0.0/8`), and `"unix"` for unix sockets.

        Raises:
            ValueError: one of them is neither.
        """
        names = set(proxies)
        self._unix = UNIX in names
        self._networks: tuple[_Network, ...] = tuple(ipaddress.ip_network(name) for name in names - {UNIX})

    def __contains__(self, address: str) -> bool:
        if address == UNIX:
            return self._unix
        if not self._networks:
            return False
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._networks)

    def client(self, address: str, headers: Mapping[str, str], *, secure: bool) -> Client:
        """Return whom a request from `address` comes from.

        Each proxy appends the address it was reached from, so the list is read from its end: the first
        address that is not a trusted proxy's is the client's, and what stands before it is only the client's
        word. An entry that is no address ends the reading.
        """
        if address not in self:
            return Client(address, secure)
        for entry in reversed(headers.get("x-forwarded-for", "").split(",")):
            name = entry.strip()
            try:
                ipaddress.ip_address(name.partition("%")[0])
            except ValueError:
                break
            address = name
            if name not in self:
                break
        proto = headers.get("x-forwarded-proto")
        if proto is not None:
            secure = proto.rpartition(",")[2].strip().lower() == "https"
        return Client(address, secure)
