"""Matching embeddings: enrol people, verify 1:1, identify 1:N, choose thresholds.

NumPy alone runs it; Milvus is an option for those who outgrow one machine (``edgecv[milvus]``).
"""

from edgecv.gallery.core import Candidate, Gallery, Identity, Verification, verify
from edgecv.gallery.likeness import Likeness
from edgecv.gallery.metrics import METRICS, scores
from edgecv.gallery.search import Index
from edgecv.gallery.settings import POOLINGS, Settings, Space, comparison

__all__ = [
    "METRICS",
    "POOLINGS",
    "Candidate",
    "Gallery",
    "Identity",
    "Index",
    "Likeness",
    "Settings",
    "Space",
    "Verification",
    "comparison",
    "scores",
    "verify",
]
