"""Updates in few bytes: sparse and ternary differences, their codes and their files."""
