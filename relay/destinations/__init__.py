"""Destinations: where relay sends events, and what each of them is held to."""
