"""The study as a page and as figures: all aggregation in SQL, drawn by Vega-Altair."""
