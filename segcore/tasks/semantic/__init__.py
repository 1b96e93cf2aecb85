"""Semantic segmentation: one class per pixel."""

from segcore.tasks.semantic.kind import KIND
from segcore.tasks.semantic.task import SemanticTask, create_semantic_task, semantic_arguments

__all__ = ["KIND", "SemanticTask", "create_semantic_task", "semantic_arguments"]
