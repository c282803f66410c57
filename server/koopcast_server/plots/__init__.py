"""Figures of a job's operators, drawn with matplotlib (the extra `demo`); what `koopcast plot` writes."""

from koopcast_server.plots.figure import draw_job, write_plot
from koopcast_server.plots.finding import FoundBlock, PlotError, find_block

__all__ = ["FoundBlock", "PlotError", "draw_job", "find_block", "write_plot"]
