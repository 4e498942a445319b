"""What nano4M gains over a plain 4M: run with `make bench`."""
