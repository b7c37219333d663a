"""`wattserve meter`: the meter alone, beside any other server."""
