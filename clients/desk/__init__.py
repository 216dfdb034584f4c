"""Commands for a person at the site: doctor, preview, rehearsal, scores. They send nothing."""
