"""Data sets that need no download from a hub: TFDS builders over installed packages, archives and local files."""
