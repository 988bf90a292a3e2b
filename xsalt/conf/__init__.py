"""YAML that Hydra reads. Defaults are not here: each has its one place in a dataclass."""
