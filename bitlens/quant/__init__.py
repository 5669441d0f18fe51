"""Float network + Recipe -> fake-quantized network: grids, ranges, layers, preparation, calibration."""
