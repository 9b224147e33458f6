"""What `relay demo` shows: made-up traffic, a stand-in for Segment, and a display of both."""
