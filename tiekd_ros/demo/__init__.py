"""The demonstration: the whole loop on one machine, measured as a client sees it."""
