"""Checks of this project against numbers that the published TIE-KD code produced."""
