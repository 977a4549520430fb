"""Forms of examples that losses learn from, one module a form: its objective, its batches, and how a run reads it."""
