"""A home-made captioner of emoji and drawings, what finds a picture by its caption, and how captions are judged."""
