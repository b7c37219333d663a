"""Sources of joules: one module a source, one line each in the registry."""
