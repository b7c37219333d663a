"""What an engine step costs: the step model, fitting it while serving, and batching in modelled time."""
