"""The compact networks, their checkpoints, the registry of versions and the runtimes."""
