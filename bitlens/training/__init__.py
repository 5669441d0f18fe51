"""Float training and quantization-aware training: one loop for both, see `loop.train`."""
