"""Public data turned into site folders, one file a study."""
