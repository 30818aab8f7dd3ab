"""Engines: compiled from ONNX graphs by TensorRT 10, TensorRT 11 or TensorRT-RTX."""
