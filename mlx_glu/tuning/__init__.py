"""Which kernels are right and worth it on this machine."""

from .judging import judge
from .machine import Machine
from .measure import cases_of, tune
from .report import report, reset
from .store import Store

__all__ = ["Machine", "Store", "cases_of", "judge", "report", "reset", "tune"]
