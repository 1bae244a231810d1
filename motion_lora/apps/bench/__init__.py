"""The benchmark: which method takes the motion along and leaves the look behind, measured for anyone to rerun.

rows       what is compared, one row each
plan       motions, references, budget: the cells that follow from them
cells      trains, samples and scores one cell; a finished cell is a file
results    means and intervals over motions, and the calibration of the instrument
report     results.md, results.csv and one plot
real_base  methods side by side on a base of the user's, by proxies
"""

from __future__ import annotations

from .cells import run_cells
from .plan import BenchPlan, cells
from .real_base import BasePlan, bench_base
from .report import write_report
from .rows import ROWS, Row

__all__ = ["ROWS", "BasePlan", "BenchPlan", "Row", "bench_base", "cells", "run_cells", "write_report"]
