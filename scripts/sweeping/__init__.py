"""What `scripts/sweep.py` is made of: the grid, the plan of its runs, what they cost, and who starts them."""
