"""The shop's first data, from the original's books to catalogues for load."""
