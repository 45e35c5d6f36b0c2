"""Ports that must be free before anything is started."""

import socket
from typing import NamedTuple

import psutil

from alignflow.errors import ConfigError
from alignflow.stack.config import HOST


class PortClaim(NamedTuple):
    """A port that a service is about to take."""

    port: int
    service: str
    option: str
    """Option of `alignflow up` that gives it another."""


def check_ports(claims: list[PortClaim]) -> None:
    """See that every port is free and claimed once.

    Raises:
        ConfigError: One isn't; says which, who has it, and which option gives another.
    """
    first: dict[int, PortClaim] = {}
    for claim in claims:
        other = first.setdefault(claim.port, claim)
        if other.service != claim.service:
            raise ConfigError(
                f"Port {claim.port} is asked for by both {other.service} and {claim.service}; "
                f"give one of them another by {other.option} or {claim.option}."
            )
        if not _is_free(claim.port):
            raise ConfigError(
                f"Port {claim.port}, which {claim.service} needs, is taken by "
                f"{_holder(claim.port)}; give another by {claim.option}."
            )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Connections that have just ended don't count, as they don't for the servers.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    """Say who listens on a port."""
    for connection in psutil.net_connections("tcp"):
        address = connection.laddr
        if connection.status != psutil.CONN_LISTEN or not address or address.port != port:
            continue
        try:
            process = psutil.Process(connection.pid) if connection.pid else None
            if process is not None:
                return f"process {process.pid} ({process.name()})"
        except psutil.Error:
            break
    return "a process of another user"
