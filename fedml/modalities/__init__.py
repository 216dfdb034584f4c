"""The inputs of a person, a file each: what a study, a site, a model, privacy and a report ask of an input, as one value."""
