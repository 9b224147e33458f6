"""This process: its files, threads, heartbeats, and systemd."""
