"""DIODE: images optimised out of a pretrained detector (Chawla et al., WACV 2021)."""
