"""Tools for relay's own process: file descriptors, threads, heartbeats, messages to systemd."""
