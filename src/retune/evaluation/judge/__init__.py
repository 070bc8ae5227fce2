"""The blind human preference study of Tribes et al. 2024 (section "Human Preference" and its appendix).

Both models answer the same questions (`prepare`), people say in an offline page which answer is better without
knowing whose it is (`form`), their files are read and checked (`collect`) and counted (`score`, `agreement`).
"""
