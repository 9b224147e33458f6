"""What can only be this machine."""

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether the host, a name or an address, can only be this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
