"""From requirements to evidence: properties and requirements in files, decided, archived and traced."""
