"""For a person at the site: doctor, preview, rehearsal, scores. Sends nothing."""
