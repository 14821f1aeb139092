"""One configuration, its steps, one run or many."""
