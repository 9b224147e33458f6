"""The outbox as one SQLite file, for one machine."""
