"""`python -m fastnn demo`: two models on real digits, or two on a text, trained with torch.nn and with fastnn."""
