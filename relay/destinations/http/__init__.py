"""Sends HTTP requests to one host, each with one deadline, by the proxy that the environment names.

Only this package imports urllib3. Its own time limits start again with every byte, so a peer that
sends a byte now and then would block a thread for ever.
"""

from relay.destinations.http.client import HttpClient, Response
from relay.destinations.http.hosts import is_loopback

__all__ = ["HttpClient", "Response", "is_loopback"]
