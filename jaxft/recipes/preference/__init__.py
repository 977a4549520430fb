"""Tuning by preferences: losses by name, records of pairs and of judged responses, references, objectives, measures."""
