"""What the endpoint's own /metrics says while a run goes on: read, kept, and put into common names."""
