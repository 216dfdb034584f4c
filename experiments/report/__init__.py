"""A run's report, one self-contained HTML page for a reviewer (``fedml.experiments.report.page``); tables for a manuscript."""
