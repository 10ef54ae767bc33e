"""Tasks: what networks are trained for and judged by."""

from __future__ import annotations

from secateurs.data.tasks.named import NAMED, asked_task, task
from secateurs.data.tasks.task import Task, classification

__all__ = ["NAMED", "Task", "asked_task", "classification", "task"]
