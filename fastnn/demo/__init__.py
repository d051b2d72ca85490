"""`python -m fastnn demo`: two models on real digits, trained with torch.nn and with fastnn."""
