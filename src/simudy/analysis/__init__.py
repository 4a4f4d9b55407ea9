"""How good a reconstruction is, and how it looks. Only this room ever compares with the secret."""

from simudy.analysis.gallery import save_gallery
from simudy.analysis.report import save_report
from simudy.analysis.score import Score, paper_ssim, score

__all__ = ["Score", "paper_ssim", "save_gallery", "save_report", "score"]
