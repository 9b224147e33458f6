"""What relay tells Prometheus."""
