"""What may leave a site, checked alike at both ends."""
