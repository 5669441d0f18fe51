"""Float networks, one file each, plain torch; they know nothing of quantization."""
