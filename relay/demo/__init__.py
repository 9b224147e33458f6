"""`relay demo`: the real relay between stand-ins."""
