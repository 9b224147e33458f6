"""Forwards what the outbox holds to its destination."""
