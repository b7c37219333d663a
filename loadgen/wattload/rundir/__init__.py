"""What a run left behind: the run directory, its tables and run.json."""
