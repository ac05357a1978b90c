"""From camera topics, recordings and devices to (image, camera model, header)."""
