"""Pure rules: plain facts in, findings with remedies out. The nodes and `tiekd doctor` ask them."""
