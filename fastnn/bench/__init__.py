"""`python -m fastnn bench`: fastnn beside torch.nn, layer by layer."""
