"""What relay counts and measures, for Prometheus."""
