"""What the sensors are good for: how often a counter moves, and whether it agrees with the power gauge."""
