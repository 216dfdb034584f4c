"""``fedml new`` and ``fedml import``: a study and site folders from a person's own table, images or VCF. What is guessed is said."""
