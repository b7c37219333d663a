"""The energy monitor of one server: settling, the table of requests, windows."""
