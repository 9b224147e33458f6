"""The parts of `relay demo`: made-up webhooks, a stand-in for Segment, and a display of both."""
