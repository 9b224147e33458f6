"""The metrics of relay, for Prometheus."""
