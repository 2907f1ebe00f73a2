"""What a run leaves on disk and what is read from it: rows, folders, rates, the tidy table. No torch."""
