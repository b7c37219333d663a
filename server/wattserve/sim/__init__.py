"""`wattserve sim`: an OpenAI-compatible server on a simulated GPU."""
