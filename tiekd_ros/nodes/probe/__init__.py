"""Clients of running nodes: the probe behind `tiekd doctor`, the observer, snapshots."""
