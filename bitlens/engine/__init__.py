"""Fake-quantized network -> integers that run: lowering, a reference in plain torch, and OpenVINO."""
