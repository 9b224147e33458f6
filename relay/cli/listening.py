"""Defines the options `--host` and `--port`, and opens the listener for them."""

import errno
import socket

import click

from relay.receiver.server import listen

host_option = click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on."
)
port_option = click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to listen on; if unset, $PORT, or else 8000.",
)


def listen_or_exit(host: str, port: int, option: str) -> socket.socket:
    """Return a listener; exit with a sentence if there can be none.

    Args:
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        option: the option that sets the port.
    """
    try:
        return listen(host, port)
    except OSError as error:
        at_fault = option.replace("port", "host") if error.errno == errno.EADDRNOTAVAIL else option
        raise click.ClickException(
            f"cannot listen on {host}, port {port}: {error.strerror};"
            f" choose another with {at_fault}"
        ) from None
