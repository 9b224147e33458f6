"""Receives email webhooks of Vero and Customer.io, stores them, and forwards them to Segment."""

__version__ = "0.1.0"
