"""The site's manifest and its cohort."""
