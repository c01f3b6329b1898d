"""Whether a host name means this machine and nobody else. The only place that decides it; knows no sockets."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """True for `localhost` and addresses of the loopback network; other names may resolve to anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
