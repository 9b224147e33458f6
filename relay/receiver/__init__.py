"""Receives webhooks over HTTP, stores them and answers."""
