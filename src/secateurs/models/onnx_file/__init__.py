"""Networks from ONNX files: read, rebuilt in PyTorch, and held to what ONNX Runtime computes."""
