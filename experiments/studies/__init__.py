"""Studies, one TOML each."""
