"""The plan as a value. Opens no data file but the study's own."""
