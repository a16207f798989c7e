"""Corrections of moto where its behaviour differs from AWS's."""
