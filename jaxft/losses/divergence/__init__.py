"""Divergences of two distributions over a vocabulary: of a student from its teacher, of two passes of one model.

A value stands at the position whose logits are compared. In a language model these predict the next token, so labels
and the mask of tokens move one to the left: `next_tokens` does so.
"""
