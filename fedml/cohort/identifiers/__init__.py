"""Rules that find identifiers of persons in texts, headers, names of files and pixels; they never say what they found, only its kind."""
