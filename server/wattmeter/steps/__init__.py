"""What the engine did: batches of step records, when the device was busy with them, and their recordings."""
