"""Finds, replays, imports, recovers and shows entries for an operator."""
