"""Candidate against champion: figures, decision, report."""
