"""Conversations: the templates that checkpoints ship, and the text and spans that they make."""
