"""Several configurations of one run, and how to spend less than all of them would take."""
