"""The TCP ports on which the processes of Ray and of this package listen."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psutil

_OURS = re.compile(
    r"^ray::|/ray/(core|dashboard|autoscaler|util|_private)/|-m (orchestrator|ray)\b"
    r"|/(robust-vote|ray) "
)


@dataclass(frozen=True, order=True)
class OpenPort:
    """A port that a process listens on."""

    ip: str
    port: int
    process: str  # its name
    pid: int

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach it."""
        address = ipaddress.ip_address(self.ip)
        mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
        return (mapped or address).is_loopback


def open_ports(processes: Iterable[psutil.Process]) -> list[OpenPort]:
    """Return the ports of some processes; a process that has ended or is another user's has none."""
    ports = set()
    for process in processes:
        try:
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    ip, port = connection.laddr
                    ports.add(OpenPort(ip, port, process.name(), process.pid))
        except psutil.Error:
            continue
    return sorted(ports)


def ray_processes() -> Iterator[psutil.Process]:
    """Yield this user's processes of Ray and of this package."""
    for process in psutil.process_iter(["uids", "cmdline"]):
        uids = process.info["uids"]
        command = " ".join(process.info["cmdline"] or ())
        if uids is not None and uids.real == os.getuid() and _OURS.search(f"{command} "):
            yield process
