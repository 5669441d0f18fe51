"""Measured speed: `turns` lets contestants take turns, each in a process of its own; `networks` times checkpoints on
every engine beside their float network (`contestants`), on a made scene or image (`subjects`)."""

from bitlens.bench.turns import PAUSE, Contestant, Timing, environment, interleave, peak_memory

__all__ = ["PAUSE", "Contestant", "Timing", "environment", "interleave", "peak_memory"]
