"""`tiekd doctor`: what keeps depth from coming, found from facts, each with its remedy."""
