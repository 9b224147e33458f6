"""The outbox in PostgreSQL, for any number of machines."""
