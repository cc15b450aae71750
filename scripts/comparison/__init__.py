"""Behind `scripts/compare.py`: statistics over games and seeds, and the forms they are shown in."""
