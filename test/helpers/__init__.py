"""What several tests share: stub teachers, small frame logs, small students, children.

Test code in a child process finds this package by `children.child_environment()`.
"""
