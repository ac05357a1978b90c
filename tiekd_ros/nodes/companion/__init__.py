"""companion_node: logs frames, has them labelled, runs rounds."""
