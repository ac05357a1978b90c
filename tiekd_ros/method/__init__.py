"""The method: depth probability maps, losses, metrics and the comparison of two students."""
