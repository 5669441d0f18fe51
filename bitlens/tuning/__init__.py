"""The best low-bit network for a budget: what every layer costs and spoils is measured, then bits are chosen exactly.

float network ── variants, each at one choice of bits ──> errors (quant.sensitivity), milliseconds (engine.costs)
                                                                    │
                                   a program in whole numbers (quant.allocate), within the budgets
                                                                    │
         calibrated in several ways, the best kept ── refined against the float network ── measured
"""

from bitlens.tuning.measured import CHOICES, Measured
from bitlens.tuning.search import Budgets, tune

__all__ = ["CHOICES", "Budgets", "Measured", "tune"]
