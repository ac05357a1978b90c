"""The method: depth probability maps, losses, metrics, trainer, gate and worker."""
