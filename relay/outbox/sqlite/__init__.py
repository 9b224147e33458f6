"""The store that keeps the outbox in one SQLite file, for one machine."""
