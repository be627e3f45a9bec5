"""Matching embeddings: enrol people, verify 1:1, identify 1:N, choose thresholds.

NumPy alone runs it; Milvus is an option for those who outgrow one machine (``edgecv[milvus]``).
"""

from edgecv.gallery.core import Candidate, Gallery, Identity, Verification, verify
from edgecv.gallery.metrics import METRICS, scores
from edgecv.gallery.search import Index
from edgecv.gallery.settings import POOLINGS, Settings, Space

__all__ = [
    "METRICS",
    "POOLINGS",
    "Candidate",
    "Gallery",
    "Identity",
    "Index",
    "Settings",
    "Space",
    "Verification",
    "scores",
    "verify",
]
