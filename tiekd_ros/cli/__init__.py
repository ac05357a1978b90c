"""The `tiekd` command: one file a group of verbs."""
