"""Filters: which rows of an unlabelled mixture are likely harmful."""
