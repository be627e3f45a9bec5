"""The verbs: each composes the layers below, and is what a command or ``edgecv.VERB`` calls."""
