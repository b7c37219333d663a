"""What passes between an engine, its API processes and the meter: versioned messages, and how they travel.

docs/reference/step-record-protocol.md describes them for who writes a sender of their own.
"""
