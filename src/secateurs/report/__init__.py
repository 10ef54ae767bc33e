"""What a run says about itself: the record behind result.json, the console table and the HTML page."""

from secateurs.report.page import render
from secateurs.report.record import Record

__all__ = ["Record", "render"]
