"""The console: pages for the operator."""
