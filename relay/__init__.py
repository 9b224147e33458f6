"""Vero's email webhooks, stored durably and forwarded to Segment as track calls."""

__version__ = "0.1.0"
