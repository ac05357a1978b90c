"""Mode `paper`: TIE-KD exactly as its published code computes it, number for number.

TIE-KD, arXiv 2402.14340. The published code's peculiarities are kept on purpose, so that its
results and checkpoints can be reproduced; `tiekd_ros.method.target` and `.losses` hold
the corrected method, and docs/method.md compares the two.
"""
