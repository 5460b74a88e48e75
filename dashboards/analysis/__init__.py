"""Columns, intervals and selections behind figures and tables."""
