"""What an operator does with the outbox's entries."""
