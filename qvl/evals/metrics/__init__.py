"""Scores: pure functions from texts, boxes and references to numbers. No model, file or sample type is known here."""
