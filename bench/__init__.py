"""Measures what relay costs, beside the script one would write instead: `make bench`."""
