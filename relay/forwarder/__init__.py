"""Forwards entries from the outbox to their destinations."""
