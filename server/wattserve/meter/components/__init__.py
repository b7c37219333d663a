"""What a node uses besides its accelerators: one file a sensor, one line each in `components.KINDS`."""
