"""Pictures of architectures as SVG text: figure 3 of DetNAS, figure 5 of Hit-Detector."""

from detnas_d2.drawing.counts import KernelCounts, count_kernels
from detnas_d2.drawing.pictures import draw_genotype, draw_path, draw_side_by_side

__all__ = ["KernelCounts", "count_kernels", "draw_genotype", "draw_path", "draw_side_by_side"]
