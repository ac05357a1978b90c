"""What runs a student: torch, CUDA graphs, onnxruntime, and the choice among them."""
