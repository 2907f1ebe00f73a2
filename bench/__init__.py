"""What the code costs, measured as ratios within one run: `python -m bench.head` for the losses' head."""
