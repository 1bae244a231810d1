"""The benchmark: does a method separate motion from appearance? Measured on the playground, for anyone to rerun.

variants   what is compared, one row each
settings   motions, references, seeds, budget
trainings  every training once, resumable
measure    sampling and scoring by the probe
run        the cells, one file each
table      means, intervals, paired differences, calibration
report     results.csv, RESULTS.md, plots
"""

from __future__ import annotations

from .choosing import ChoiceSettings, run_choices, write_choices
from .report import SUMMARY_HEADER, summary, write_report
from .run import run_cells
from .settings import TEST_MOTIONS, TUNING_MOTIONS, BenchSettings, cells, check_bench
from .variants import VARIANTS, Variant

__all__ = [
    "SUMMARY_HEADER",
    "TEST_MOTIONS",
    "TUNING_MOTIONS",
    "VARIANTS",
    "BenchSettings",
    "ChoiceSettings",
    "Variant",
    "cells",
    "check_bench",
    "run_cells",
    "run_choices",
    "summary",
    "write_choices",
    "write_report",
]
