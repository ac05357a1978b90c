"""tiekd_ros: metric depth on a robot from one camera, kept good by distillation.

A compact student network publishes depth; a large remote teacher labels logged frames; the
student is fine-tuned on the robot with the TIE-KD loss (arXiv 2402.14340) and goes live only
after it has proved better.
"""

__version__ = "0.1.0"
