"""Side by side with peers, in one run: `make bench`. Times are ratios of medians, taken in alternation."""
