"""The store that keeps the outbox in PostgreSQL, for any number of machines."""
