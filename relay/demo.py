"""Stand-ins for Vero and Segment on loopback, to see relay work without either."""
