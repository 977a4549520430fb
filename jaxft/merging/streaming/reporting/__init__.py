"""What a merge did: how far the models lie apart, as numbers and as a page."""
