"""What concerns this process: its files, threads and supervisor."""
