"""depth_node: images in, metric depth out."""
