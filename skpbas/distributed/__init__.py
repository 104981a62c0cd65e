"""Scoring on a Dask cluster (extra ``dask``)."""

try:
    import distributed  # noqa: F401
except ImportError as error:
    raise ImportError(f"skpbas.distributed needs Dask ({error}): pip install skpbas[dask]") from error

from skpbas.distributed._cluster import ImageResult, ScoringSummary, score_images

__all__ = ["ImageResult", "ScoringSummary", "score_images"]
