"""The same test at several rates: the search and what it shows."""
