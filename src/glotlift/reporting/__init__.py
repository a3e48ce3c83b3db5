"""Figures, the HTML page, tables and the model card."""
