"""A trained network answers: predictors, what images show, how often a network is right."""
