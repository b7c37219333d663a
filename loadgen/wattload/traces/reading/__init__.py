"""Reading trace files: CSV, JSON lines, Parquet, and the checks of their rows."""
