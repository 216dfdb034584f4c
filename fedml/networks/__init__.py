"""Building blocks of a model: networks by name, and preprocessing. They do not depend on cohorts or sites."""
