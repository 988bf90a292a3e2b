"""From a configuration to a trained run: ``run.py`` builds, ``step.py`` is one step, ``trainer.py`` is the loop."""
