"""What is sent and when, fixed before the first request: the schedule, its tenants and its content."""
