"""Pictures: the report page of a training run, and the module and style sheet that draw it."""
